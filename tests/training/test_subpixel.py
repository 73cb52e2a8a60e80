"""Joints in heatmaps: drawn and found again without the error of a whole cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.layers.subpixel import draw_joints, find_joints

MEAN_ERROR = 0.05  # cells
BIAS = 0.01  # cells
SIZE_HW = (32, 24)


def spread_points(count: int, size_hw: tuple[int, int], margin: float = 0.0) -> torch.Tensor:
    """(count, 1, 2) float64 points in cells, anywhere but for a margin."""
    draw = torch.Generator().manual_seed(1)
    limit = torch.tensor(size_hw[::-1], dtype=torch.float64) - 2 * margin
    return torch.rand(count, 1, 2, dtype=torch.float64, generator=draw) * limit + margin


@pytest.mark.parametrize(("sigma", "margin"), [(1.0, 3.0), (1.5, 0.0), (2.0, 0.0), (3.0, 0.0)])
@pytest.mark.parametrize("size_hw", [SIZE_HW, (64, 48)], ids=["32x24", "64x48"])
def test_points_are_found_without_bias_anywhere_between_cells(sigma, margin, size_hw):
    points = spread_points(2000, size_hw, margin)
    found = find_joints(draw_joints(points, size_hw, sigma))
    error = found[..., :2] - points
    assert error.norm(dim=-1).mean() <= MEAN_ERROR
    assert error.mean((0, 1)).abs().max() <= BIAS


def test_the_highest_cell_alone_is_five_times_further_off():
    points = spread_points(2000, SIZE_HW, 3.0)
    heatmaps = draw_joints(points, SIZE_HW, 1.5)
    best = heatmaps.flatten(2).argmax(2)
    cells = torch.stack((best % SIZE_HW[1], best // SIZE_HW[1]), -1) + 0.5
    coarse = (cells - points).norm(dim=-1).mean()
    fine = (find_joints(heatmaps)[..., :2] - points).norm(dim=-1).mean()
    assert coarse > 0.3
    assert fine < coarse / 5


def test_noise_moves_points_by_less_than_half_a_cell():
    points = spread_points(1000, SIZE_HW, 2.0)
    heatmaps = draw_joints(points, SIZE_HW, 1.5)
    noise = torch.randn(heatmaps.shape, generator=torch.Generator().manual_seed(2)) * 0.05
    error = find_joints(heatmaps + noise)[..., :2] - points
    assert error.norm(dim=-1).mean() < 0.5
    assert error.mean((0, 1)).abs().max() < 0.03


def test_drawn_heatmaps_are_gaussians_around_the_points():
    points = np.array([[3.2, 8.9], [23.0, 0.4]])
    drawn = draw_joints(torch.from_numpy(points), SIZE_HW, 1.5).numpy()
    for (x, y), heatmap in zip(points, drawn, strict=True):
        for row, column in ((0, 0), (8, 3), (31, 23), (0, 22)):
            squared = (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2
            assert heatmap[row, column] == pytest.approx(np.exp(-squared / (2 * 1.5**2)))


def test_confidence_is_the_highest_value_and_never_above_one():
    heatmaps = draw_joints(torch.tensor([[[8.5, 8.5], [4.5, 20.5]]]), SIZE_HW, 1.5)
    heatmaps *= torch.tensor([0.4, 1.7])[None, :, None, None]
    torch.testing.assert_close(find_joints(heatmaps)[0, :, 2], torch.tensor([0.4, 1.0]))


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf"), float("-inf"), -1e30])
def test_flat_or_broken_heatmaps_give_finite_points_inside(value):
    found = find_joints(torch.full((1, 2, *SIZE_HW), value))
    assert found.isfinite().all()
    assert (found[..., 0] >= 0).all()
    assert (found[..., 0] <= SIZE_HW[1]).all()
    assert (found[..., 1] >= 0).all()
    assert (found[..., 1] <= SIZE_HW[0]).all()


def test_nan_in_a_cell_does_not_hide_the_joint():
    heatmaps = draw_joints(torch.tensor([[[15.25, 20.75]]], dtype=torch.float64), SIZE_HW, 1.5)
    heatmaps[0, 0, 2, 3] = float("nan")
    torch.testing.assert_close(
        find_joints(heatmaps)[0, 0, :2],
        torch.tensor([15.25, 20.75], dtype=torch.float64),
        rtol=0,
        atol=0.01,
    )
