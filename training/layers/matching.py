"""Which anchor learns which object: by fixed IoU thresholds, or adaptively (ATSS).

Both work on one image and give, for each anchor, the index of its object, NEGATIVE (learn
"background") or IGNORED (learn nothing).
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.layers.box_coding import pairwise_inside, pairwise_iou

NEGATIVE = -1
IGNORED = -2
CROWD_SHARE = 0.5  # an anchor with more than this share inside a crowd region is ignored


def match_by_iou(
    anchors: Tensor, boxes_xyxy: Tensor, *, positive: float = 0.5, negative: float = 0.4
) -> Tensor:
    """Match by thresholds on IoU (RetinaNet, arXiv:1708.02002, section 4).

    Every object also gets the anchors that overlap it best, so that none goes untrained; where
    objects want the same anchor, the one that overlaps it most has it.

    Args:
        anchors: (A, 4) xyxy pixels.
        boxes_xyxy: (N, 4) xyxy pixels, N >= 0.
        positive: an anchor with at least this IoU is the object's.
        negative: one with less than this is background; between the two it is ignored.

    Returns:
        (A,) int64: 0..N-1, NEGATIVE or IGNORED.
    """
    if len(boxes_xyxy) == 0:
        return anchors.new_full((len(anchors),), NEGATIVE, dtype=torch.long)
    iou = pairwise_iou(anchors, boxes_xyxy)  # (A, N)
    best, match = iou.max(1)
    match[best < positive] = IGNORED
    match[best < negative] = NEGATIVE
    best_of_box = iou.max(0).values  # (N,)
    is_best = (iou == best_of_box) & (best_of_box > 0)
    claim, claimant = torch.where(is_best, iou, -1.0).max(1)
    return torch.where(claim >= 0, claimant, match)


def match_by_atss(
    anchors: Tensor, boxes_xyxy: Tensor, level_counts: list[int], *, top: int = 9
) -> Tensor:
    """Adaptive training sample selection (ATSS, arXiv:1912.02424, algorithm 1).

    Per level the `top` anchors nearest to an object's centre are its candidates; those whose IoU
    reaches the candidates' mean plus standard deviation, and whose centre lies in the object, are
    positive. An object that ends with none, being smaller than a cell, gets its best candidate.
    An anchor that several objects want goes to the one it overlaps most.

    Args:
        anchors: (A, 4) xyxy pixels, level by level.
        boxes_xyxy: (N, 4) xyxy pixels, N >= 0.
        level_counts: anchors of each level; their sum is A.
        top: candidates per level.

    Returns:
        (A,) int64: 0..N-1 or NEGATIVE.
    """
    num_anchors, num_boxes = len(anchors), len(boxes_xyxy)
    if num_boxes == 0:
        return anchors.new_full((num_anchors,), NEGATIVE, dtype=torch.long)
    iou = pairwise_iou(anchors, boxes_xyxy)  # (A, N)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    box_centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    # The default of cdist goes through a matrix product, which loses half of float32's digits.
    distance = torch.cdist(
        centres, box_centres, compute_mode="donot_use_mm_for_euclid_dist"
    )  # (A, N)

    candidates = []
    start = 0
    for count in level_counts:
        near = distance[start : start + count].topk(min(top, count), dim=0, largest=False).indices
        candidates.append(near + start)
        start += count
    candidate = torch.cat(candidates)  # (C, N)

    overlap = iou.gather(0, candidate)
    threshold = overlap.mean(0) + overlap.std(0)
    centre = centres[candidate]  # (C, N, 2)
    inside = ((centre > boxes_xyxy[:, :2]) & (centre < boxes_xyxy[:, 2:])).all(-1)
    is_positive = (overlap >= threshold) & inside
    is_orphan = ~is_positive.any(0)
    is_positive[overlap.argmax(0), torch.arange(num_boxes, device=anchors.device)] |= is_orphan

    claimed = torch.full_like(iou, -1.0)
    claimed.scatter_(0, candidate, torch.where(is_positive, overlap, -1.0))
    best, match = claimed.max(1)
    return torch.where(best >= 0, match, NEGATIVE)


def match_objects(
    anchors: Tensor,
    boxes_xyxy: Tensor,
    classes: Tensor,
    is_crowd: Tensor,
    level_counts: list[int],
    method: str,
) -> tuple[Tensor, Tensor]:
    """Match the objects of one image, with its padding and its crowds.

    Args:
        anchors: (A, 4) xyxy pixels.
        boxes_xyxy: (N, 4) xyxy pixels.
        classes: (N,) int64; -1 is padding. is_crowd: (N,) bool.
        level_counts: anchors of each level.
        method: "iou" or "atss".

    Returns:
        (A,) int64, an index into the objects used, NEGATIVE or IGNORED; and those objects,
        (M,) int64 rows of the N: neither padding nor crowd.
    """
    is_real = classes >= 0
    used = (is_real & ~is_crowd).nonzero()[:, 0]
    if method == "atss":
        match = match_by_atss(anchors, boxes_xyxy[used], level_counts)
    else:
        match = match_by_iou(anchors, boxes_xyxy[used])
    return ignore_crowds(match, anchors, boxes_xyxy[is_real & is_crowd]), used


def ignore_crowds(match: Tensor, anchors: Tensor, crowds_xyxy: Tensor) -> Tensor:
    """Mark negatives that lie mostly inside a crowd region (M, 4) as IGNORED."""
    if len(crowds_xyxy) == 0:
        return match
    in_crowd = pairwise_inside(anchors, crowds_xyxy).amax(1) > CROWD_SHARE
    return torch.where((match == NEGATIVE) & in_crowd, IGNORED, match)
