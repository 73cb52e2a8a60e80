"""What masks made of prototypes learn, and the semantic map beside them (YOLACT)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.layers.prototypes import assemble_masks, crop_inside, to_prototype_pixels

LEAST_AREA = 25  # prototype pixels of an object whose mask teaches re-scoring (YOLACT++)
MOST_POSITIVES = 100  # of an image that learn masks; the loss is scaled up for those left out


def shrink_masks(masks: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Masks (N, H, W) of 0 or 1 to (N, h, w) float32 of 0 or 1: bilinear, more than a half."""
    if len(masks) == 0:
        return torch.zeros(0, *size_hw, device=masks.device)
    small = functional.interpolate(masks[:, None].float(), size=size_hw, mode="bilinear")[:, 0]
    return (small > 0.5).float()


def mask_loss(
    coefficients: Tensor,
    prototypes: Tensor,
    match: Tensor,
    boxes_xyxy: Tensor,
    masks: Tensor,
    input_hw: tuple[int, int],
    *,
    most: int = MOST_POSITIVES,
) -> Tensor:
    """Cross-entropy of one image's masks (YOLACT, arXiv:1904.02689, section 3), summed.

    Each positive anchor counts the mean over its object's box: the sum over the crop, divided by
    the box's area in prototype pixels (at least one).

    Args:
        coefficients: (N, P) of the positive anchors. prototypes: (P, h, w), both float32.
        match: (N,) the object of each, 0..M-1.
        boxes_xyxy: (M, 4), pixels of the network input of `input_hw`.
        masks: (M, h, w) float32 of 0 or 1, see `shrink_masks`.
        most: positives that count, drawn at random.
    """
    count = len(coefficients)
    if count > most:
        drawn = torch.randperm(count, device=match.device)[:most]
        coefficients, match = coefficients[drawn], match[drawn]
    size_hw = (prototypes.shape[-2], prototypes.shape[-1])
    boxes = to_prototype_pixels(boxes_xyxy, input_hw, size_hw)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1.0)  # (M,)
    logits = coefficients @ prototypes.flatten(1)  # (N, h * w)
    inside = crop_inside(boxes, size_hw).flatten(1)[match]  # (N, h * w)
    entropy = functional.binary_cross_entropy_with_logits(
        logits[inside], masks.flatten(1)[match][inside], reduction="none"
    )
    row = inside.nonzero()[:, 0]
    loss = (entropy / areas[match][row]).sum()
    return loss * (count / max(1, len(coefficients)))


@torch.no_grad()
def judge_masks(
    coefficients: Tensor,
    prototypes: Tensor,
    match: Tensor,
    boxes_xyxy: Tensor,
    masks: Tensor,
    input_hw: tuple[int, int],
    *,
    most: int = MOST_POSITIVES,
) -> tuple[Tensor, Tensor, Tensor]:
    """How well the masks of one image cover their objects: what re-scoring learns from.

    The masks are given, not learnt through: no gradient reaches them. Objects of fewer than
    `LEAST_AREA` prototype pixels are left out.

    Args:
        as `mask_loss`.

    Returns:
        Soft masks (N', h, w), 0..1, cropped to their objects' boxes; the IoU (N',) of what is
        above a half with the object; and the number (N',) of the object.
    """
    rows = (masks.flatten(1).sum(1) >= LEAST_AREA)[match].nonzero()[:, 0]
    if len(rows) > most:
        rows = rows[torch.randperm(len(rows), device=match.device)[:most]]
    match = match[rows]
    soft = assemble_masks(coefficients[rows], prototypes, boxes_xyxy[match], input_hw)
    inside, truth = soft.flatten(1) > 0.5, masks.flatten(1)[match] > 0.5
    shared, either = (inside & truth).sum(1), (inside | truth).sum(1)
    return soft, shared / either.clamp(min=1), match


def semantic_loss(logits: Tensor, classes: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of one image's semantic map (YOLACT, section 5): summed over classes.

    Args:
        logits: (K, h, w) float32.
        classes: (M,) of the objects.
        masks: (M, h, w) float32 of 0 or 1.

    Returns:
        The sum over the classes of the mean over the map.
    """
    truth = torch.zeros_like(logits)
    for label, mask in zip(classes.tolist(), masks, strict=True):
        truth[label] = torch.maximum(truth[label], mask)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
    return entropy / (logits.shape[-2] * logits.shape[-1])
