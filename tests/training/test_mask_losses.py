"""Mask, semantic and mined losses, held against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.layers.prototypes import assemble_masks, crop_inside
from training.losses.masks import mask_loss, semantic_loss, shrink_masks
from training.losses.ohem import ohem_loss

FLOAT32 = 1e-5
INPUT_HW, MAP_HW = (48, 80), (12, 20)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scene(rows: int = 7, prototypes: int = 5) -> tuple[torch.Tensor, ...]:
    """Coefficients, prototypes, match, boxes and masks of an image with three objects."""
    boxes = torch.tensor([[3.0, 5, 40, 30], [50.5, 10.2, 79.9, 47.3], [60, 1, 63, 4]])
    masks = (draw(3, *MAP_HW, seed=3) > 0).float()
    match = torch.randint(3, (rows,), generator=torch.Generator().manual_seed(4))
    return draw(rows, prototypes), draw(prototypes, *MAP_HW, seed=2).relu(), match, boxes, masks


def mask_loss_by_loops(coefficients, prototypes, match, boxes, masks) -> float:
    total = 0.0
    scale_x, scale_y = MAP_HW[1] / INPUT_HW[1], MAP_HW[0] / INPUT_HW[0]
    for row, thing in enumerate(match.tolist()):
        x1, y1, x2, y2 = boxes[thing].double().tolist()
        x1, x2, y1, y2 = x1 * scale_x, x2 * scale_x, y1 * scale_y, y2 * scale_y
        entropy = 0.0
        for y in range(MAP_HW[0]):
            for x in range(MAP_HW[1]):
                if not (x1 - 1 <= x < x2 + 1 and y1 - 1 <= y < y2 + 1):
                    continue
                logit = float(coefficients[row].double() @ prototypes[:, y, x].double())
                p = 1 / (1 + np.exp(-logit))
                entropy -= np.log(p if masks[thing, y, x] else 1 - p)
        total += entropy / max(1.0, (x2 - x1) * (y2 - y1))
    return total


def test_mask_loss_is_the_mean_entropy_inside_each_box_summed_over_positives():
    parts = scene()
    wanted = mask_loss_by_loops(*parts)
    assert float(mask_loss(*parts, INPUT_HW)) == pytest.approx(wanted, rel=FLOAT32)


def test_mask_loss_of_no_positives_is_zero_and_differentiable():
    coefficients, prototypes, _, boxes, masks = scene()
    none = coefficients[:0].requires_grad_()
    loss = mask_loss(none, prototypes, torch.zeros(0).long(), boxes, masks, INPUT_HW)
    loss.backward()
    assert float(loss) == 0


def test_mask_loss_of_many_positives_is_scaled_up_from_those_drawn():
    coefficients, prototypes, _, boxes, masks = scene(rows=1)
    match = torch.zeros(30).long()
    same = coefficients.expand(30, -1)
    whole = mask_loss(same, prototypes, match, boxes, masks, INPUT_HW, most=100)
    drawn = mask_loss(same, prototypes, match, boxes, masks, INPUT_HW, most=10)
    assert float(drawn) == pytest.approx(float(whole), rel=FLOAT32)


def test_mask_loss_reaches_only_the_pixels_of_the_crop():
    coefficients, prototypes, _, boxes, masks = scene(rows=1)
    prototypes.requires_grad_()
    mask_loss(coefficients, prototypes, torch.zeros(1).long(), boxes, masks, INPUT_HW).backward()
    reached = prototypes.grad.abs().sum(0) > 0
    assert torch.equal(reached, crop_inside(boxes[:1] / 4, MAP_HW)[0])


def test_crop_reaches_one_pixel_beyond_the_box_and_ends_at_the_map():
    inside = crop_inside(
        torch.tensor([[2.0, 3, 4, 5], [-9, -9, 99, 99], [2.5, 3, 4.5, 5]]), (9, 11)
    )
    assert inside[0].nonzero().aminmax(dim=0).min.tolist() == [2, 1]
    assert inside[0].nonzero().aminmax(dim=0).max.tolist() == [5, 4]
    assert inside[1].all()
    assert inside[2].any(0).nonzero()[:, 0].tolist() == [2, 3, 4, 5]


def test_assembled_masks_are_sigmoids_inside_the_crop_and_nothing_outside():
    coefficients, prototypes, match, boxes, _ = scene()
    masks = assemble_masks(coefficients, prototypes, boxes[match], INPUT_HW)
    inside = crop_inside(boxes[match] / 4, MAP_HW)
    assert (masks[~inside] == 0).all()
    value = torch.sigmoid(coefficients[2] @ prototypes[:, 4, 4])
    if inside[2, 4, 4]:
        assert float(masks[2, 4, 4]) == pytest.approx(float(value), rel=FLOAT32)
    assert inside.any()


def test_shrunken_masks_are_opencvs_bilinear_resize_above_a_half():
    import cv2

    masks = (draw(4, 48, 80, seed=8) > 0.3).to(torch.uint8)
    wanted = [
        cv2.resize(m, (20, 12), interpolation=cv2.INTER_LINEAR) > 0.5 for m in masks.float().numpy()
    ]
    assert np.array_equal(shrink_masks(masks, MAP_HW).numpy(), np.stack(wanted))
    assert shrink_masks(masks[:0], MAP_HW).shape == (0, *MAP_HW)


def test_semantic_loss_is_the_entropy_against_the_union_of_each_class():
    logits, masks = draw(3, *MAP_HW), (draw(4, *MAP_HW, seed=5) > 1).float()
    classes = torch.tensor([2, 0, 2, 2])
    wanted = 0.0
    for label in range(3):
        union = (masks[classes == label].sum(0) > 0).double()
        p = logits[label].double().sigmoid()
        wanted -= float((union * p.log() + (1 - union) * (1 - p).log()).mean())
    assert float(semantic_loss(logits, classes, masks)) == pytest.approx(wanted, rel=FLOAT32)


# ---------------------------------------------------------------------------------- mined entropy


def ohem_by_loops(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The published order: rank all rows, count those among the hardest 3 per positive."""
    shares = torch.softmax(logits.double(), 1).numpy()
    positives = [r for r, label in enumerate(labels.tolist()) if label > 0]
    negatives = [r for r, label in enumerate(labels.tolist()) if label == 0]
    negatives.sort(key=lambda r: shares[r, 0])  # least sure of background first
    total = -sum(np.log(shares[r, int(labels[r])]) for r in positives)
    return total - sum(np.log(shares[r, 0]) for r in negatives[: 3 * len(positives)])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.6], ids=["few", "some", "most"])
def test_ohem_loss_is_that_of_positives_and_three_times_as_many_hardest_negatives(share):
    draw_of = torch.Generator().manual_seed(1)
    chance = torch.rand(400, generator=draw_of)
    labels = torch.randint(1, 6, (400,), generator=draw_of)
    labels[chance > share] = 0
    labels[chance > 0.95] = -1
    logits = draw(400, 6) * 3
    wanted = ohem_by_loops(logits, labels)
    assert float(ohem_loss(logits, labels)) == pytest.approx(wanted, rel=FLOAT32)


def test_ohem_trains_three_negatives_for_each_positive_and_none_left_out():
    logits = (draw(200, 4) * 2).requires_grad_()
    labels = torch.zeros(200).long()
    labels[:5], labels[5:50] = 2, -1
    ohem_loss(logits, labels).backward()
    reached = logits.grad.abs().sum(1) > 0
    assert reached[:5].all()
    assert not reached[5:50].any()
    assert int(reached[50:].sum()) == 15


def test_ohem_loss_without_positives_is_zero_and_differentiable():
    logits = draw(20, 4).requires_grad_()
    loss = ohem_loss(logits, torch.zeros(20).long())
    loss.backward()
    assert float(loss) == 0
