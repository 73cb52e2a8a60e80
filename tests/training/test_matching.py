"""Matching, held against torchvision's Matcher and against ATSS written out in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from training.layers.anchors import level_sizes, make_anchors
from training.layers.matching import (
    IGNORED,
    NEGATIVE,
    ignore_crowds,
    match_by_atss,
    match_by_iou,
)

STRIDES = (8, 16, 32, 64, 128)
SIZE_HW = (160, 256)
SEEDS = range(6)


def grid(size_hw=SIZE_HW, *, scale=3.0, ratios=(1.0,)) -> tuple[torch.Tensor, list[int]]:
    sizes = level_sizes(size_hw, STRIDES)
    anchors = make_anchors(sizes, STRIDES, base_scale=scale, octaves=(1.0,), ratios=ratios)
    return anchors, [h * w * len(ratios) for h, w in sizes]


def objects(count: int, seed: int, sides=(3.0, 90.0)) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    height, width = SIZE_HW
    centres = rng.uniform((0, 0), (width, height), (count, 2))
    half = np.exp(rng.uniform(*np.log(sides), (count, 2))) / 2
    corners = np.concatenate((centres - half, centres + half), 1)
    return torch.tensor(corners.clip(0, (width, height) * 2), dtype=torch.float32)


# -------------------------------------------------------------------------------------- by IoU


@pytest.mark.parametrize("seed", SEEDS)
def test_iou_matching_is_torchvisions_but_for_the_best_anchors_of_each_object(seed):
    anchors, _ = grid(ratios=(0.5, 1.0, 2.0))
    boxes = objects(12, seed)
    iou = box_iou(boxes, anchors)  # (N, A), as torchvision wants it
    theirs = Matcher(0.5, 0.4, allow_low_quality_matches=False)(iou)
    is_best = (iou == iou.max(1, keepdim=True).values).any(0)
    ours = match_by_iou(anchors, boxes)
    assert is_best.any()
    assert torch.equal(ours[~is_best], theirs[~is_best])


@pytest.mark.parametrize("seed", SEEDS)
def test_best_anchors_go_to_the_object_that_overlaps_them_most_of_those_that_want_them(seed):
    anchors, _ = grid(ratios=(0.5, 1.0, 2.0))
    boxes = objects(12, seed)
    iou = box_iou(anchors, boxes).numpy()
    ours = match_by_iou(anchors, boxes)
    wanted: dict[int, list[tuple[float, int]]] = {}
    for box in range(len(boxes)):
        for anchor in np.flatnonzero(iou[:, box] == iou[:, box].max()):
            wanted.setdefault(int(anchor), []).append((float(iou[anchor, box]), -box))
    for anchor, claims in wanted.items():
        assert int(ours[anchor]) == -max(claims)[1]


def test_two_equal_objects_are_matched_the_same_way_every_time():
    anchors, _ = grid()
    boxes = objects(1, 0).repeat(2, 1)
    first = match_by_iou(anchors, boxes)
    assert (first >= 0).any()
    assert all(torch.equal(first, match_by_iou(anchors, boxes)) for _ in range(5))


def test_object_smaller_than_a_cell_gets_an_anchor_by_iou():
    anchors, _ = grid()
    match = match_by_iou(anchors, torch.tensor([[101.0, 75.0, 103.0, 76.5]]))
    assert (match == 0).any()


# -------------------------------------------------------------------------------------- by ATSS


def atss_in_numpy(anchors, boxes, counts, top=9) -> np.ndarray:
    """Algorithm 1 of arXiv:1912.02424, object by object, in float64; orphans get their best."""
    anchors, boxes = anchors.numpy().astype(np.float64), boxes.numpy().astype(np.float64)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    best_iou, match = np.full(len(anchors), -1.0), np.full(len(anchors), NEGATIVE)
    for index, box in enumerate(boxes):
        distance = np.hypot(*(centres - (box[:2] + box[2:]) / 2).T)
        candidates = []
        for level, count in enumerate(counts):
            start = sum(counts[:level])
            order = np.argsort(distance[start : start + count], kind="stable")
            candidates.extend(start + order[:top])
        candidates = np.array(candidates)
        low = np.maximum(anchors[candidates, :2], box[:2])
        high = np.minimum(anchors[candidates, 2:], box[2:])
        inter = np.clip(high - low, 0, None).prod(1)
        areas = (anchors[candidates, 2:] - anchors[candidates, :2]).prod(1)
        iou = inter / (areas + (box[2:] - box[:2]).prod() - inter)
        threshold = iou.mean() + iou.std(ddof=1)
        inside = (centres[candidates] > box[:2]).all(1) & (centres[candidates] < box[2:]).all(1)
        positive = (iou >= threshold) & inside
        if not positive.any():
            positive[iou.argmax()] = True
        for anchor, value in zip(candidates[positive], iou[positive], strict=True):
            if value > best_iou[anchor]:
                best_iou[anchor], match[anchor] = value, index
    return match


@pytest.mark.parametrize("seed", range(12))
def test_atss_is_that_of_the_paper(seed):
    anchors, counts = grid()
    boxes = objects(15, seed)
    ours = match_by_atss(anchors, boxes, counts)
    assert np.array_equal(ours.numpy(), atss_in_numpy(anchors, boxes, counts))


def test_atss_is_that_of_the_paper_with_several_anchors_a_cell():
    anchors, counts = grid(ratios=(0.5, 1.0, 2.0))
    boxes = objects(10, 50) + torch.tensor([0.13, 0.07, 0.13, 0.07])
    ours = match_by_atss(anchors, boxes, counts, top=12)  # whole cells: no ties at the cut
    assert np.array_equal(ours.numpy(), atss_in_numpy(anchors, boxes, counts, top=12))


def test_atss_finds_the_nearest_anchors_of_a_large_image_to_the_pixel():
    anchors, counts = grid((1024, 2048))
    # Centres a fiftieth of a pixel beside the corners of cells, where four are almost as near.
    corners = torch.cartesian_prod(torch.arange(1800.0, 2000, 40), torch.arange(800.0, 1000, 40))
    middle = corners + torch.tensor([0.02, 0.05])
    half = torch.linspace(6, 40, len(middle))[:, None]
    boxes = torch.cat((middle - half, middle + half), 1)
    ours = match_by_atss(anchors, boxes, counts)
    assert np.array_equal(ours.numpy(), atss_in_numpy(anchors, boxes, counts))


@pytest.mark.parametrize("seed", SEEDS)
def test_atss_gives_an_object_smaller_than_a_cell_one_anchor(seed):
    anchors, counts = grid()
    boxes = objects(1, seed, sides=(1.0, 3.0))
    match = match_by_atss(anchors, boxes, counts)
    assert int((match == 0).sum()) >= 1


def test_atss_works_where_a_level_has_fewer_anchors_than_candidates_asked_for():
    anchors, counts = grid((64, 96))
    assert min(counts) == 1
    boxes = torch.tensor([[2.0, 2.0, 90.0, 60.0]])
    ours = match_by_atss(anchors, boxes, counts)
    assert (ours == 0).any()


# ------------------------------------------------------------------------------- empty and crowds


def test_image_without_objects_is_all_background():
    anchors, counts = grid()
    none = torch.zeros(0, 4)
    assert (match_by_iou(anchors, none) == NEGATIVE).all()
    assert (match_by_atss(anchors, none, counts) == NEGATIVE).all()


def test_only_background_anchors_mostly_inside_a_crowd_are_ignored():
    anchors = torch.tensor([[0.0, 0, 10, 10], [6.0, 0, 16, 10], [4.0, 0, 14, 10], [0.0, 0, 9, 9]])
    match = torch.tensor([NEGATIVE, NEGATIVE, NEGATIVE, 0])
    crowd = torch.tensor([[0.0, 0, 10, 10]])
    assert ignore_crowds(match, anchors, crowd).tolist() == [IGNORED, NEGATIVE, IGNORED, 0]


def test_no_crowd_ignores_nothing():
    match = torch.tensor([NEGATIVE, 0])
    assert torch.equal(ignore_crowds(match, torch.zeros(2, 4), torch.zeros(0, 4)), match)
