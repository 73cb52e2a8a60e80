"""Anchors, held against torchvision's generator."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from training.layers.anchors import level_sizes, make_anchors

STRIDES = (8, 16, 32, 64, 128)
RATIOS = (0.25, 1.0, 4.0)  # whose sides torchvision need not round
FLOAT32_PX = 1e-3  # rounding of float32 at coordinates of some hundred pixels


def anchors_of(size_hw: tuple[int, int], **changes: object) -> torch.Tensor:
    options = {"base_scale": 4.0, "octaves": (1.0,), "ratios": (1.0,)} | changes
    return make_anchors(level_sizes(size_hw, STRIDES), STRIDES, **options)


@pytest.mark.parametrize("ratios", [(1.0,), RATIOS], ids=["squares", "three-ratios"])
def test_anchors_are_torchvisions_moved_to_the_middle_of_their_cells(ratios):
    size_hw = (256, 384)
    generator = AnchorGenerator(tuple((4 * s,) for s in STRIDES), (ratios,) * len(STRIDES))
    maps = [torch.zeros(1, 1, h, w) for h, w in level_sizes(size_hw, STRIDES)]
    theirs = generator(ImageList(torch.zeros(1, 3, *size_hw), [size_hw]), maps)[0]
    counts = [m.shape[-2] * m.shape[-1] * len(ratios) for m in maps]
    strides = torch.tensor(STRIDES, dtype=torch.float32)
    half_cell = strides.repeat_interleave(torch.tensor(counts))[:, None] / 2
    ours = anchors_of(size_hw, ratios=ratios)
    torch.testing.assert_close(ours, theirs + half_cell, rtol=0, atol=FLOAT32_PX)


def test_level_sizes_round_up_as_strided_convolutions_do():
    feature = torch.zeros(1, 1, 90, 150)
    halve = torch.nn.Conv2d(1, 1, 3, stride=2, padding=1)
    shapes = []
    for _ in range(7):
        feature = halve(feature)
        shapes.append(tuple(feature.shape[-2:]))
    assert level_sizes((90, 150), STRIDES) == shapes[2:]


def test_anchor_of_a_ratio_is_that_much_higher_than_wide_and_keeps_the_area():
    boxes = anchors_of((64, 64), ratios=(0.5, 2.0))[:2]
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    torch.testing.assert_close(height / width, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(width * height, torch.full((2,), 32.0**2))


def test_octave_scales_the_side():
    sides = anchors_of((64, 64), octaves=(1.0, 1.5))[:2]
    torch.testing.assert_close(sides[:, 2] - sides[:, 0], torch.tensor([32.0, 48.0]))


def test_anchors_run_level_by_level_row_by_row_with_the_shapes_innermost():
    boxes = anchors_of((64, 96), octaves=(1.0, 2.0))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert centres[:6].tolist() == [[4, 4], [4, 4], [12, 4], [12, 4], [20, 4], [20, 4]]
    assert centres[2 * 12].tolist() == [4, 12]  # the second row
    assert centres[2 * 8 * 12].tolist() == [8, 8]  # the second level
    assert len(boxes) == 2 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1)
