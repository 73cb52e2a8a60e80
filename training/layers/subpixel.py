"""Joints as heatmaps without a whole cell's error, both ways (DARK, arXiv:1910.06278).

A cell (column, row) has its centre at (column + 0.5, row + 0.5) cells: a point at (x, y) pixels of
the network input lies at (x, y) / stride in cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST = 1e-10  # of a heatmap before its logarithm, as published
SMOOTHING = 1.0  # standard deviation of the Gaussian that smooths a heatmap, cells
REACH = 2  # cells that it reaches; one more on each side gives derivatives
LARGEST_STEP = 1.0  # cells; a peak that lies further away is noise
STENCIL = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


def draw_joints(points_xy: Tensor, size_hw: tuple[int, int], sigma: float) -> Tensor:
    """Gaussians of height 1 around points, which need not be a cell's centre (section 3.2).

    Args:
        points_xy: (..., 2), cells.
        size_hw: height and width of the maps, cells.
        sigma: standard deviation, cells.

    Returns:
        (..., h, w), 0..1, in the points' type.
    """
    sides = []
    for axis, size in ((1, size_hw[0]), (0, size_hw[1])):
        centres = torch.arange(size, dtype=points_xy.dtype, device=points_xy.device) + 0.5
        sides.append(torch.exp(-((centres - points_xy[..., axis, None]) ** 2) / (2 * sigma**2)))
    return sides[0][..., :, None] * sides[1][..., None, :]


def find_joints(heatmaps: Tensor) -> Tensor:
    """The points that heatmaps are of, by a Taylor step on their logarithm (section 3.1).

    The logarithm of a Gaussian is a quadratic, so one Newton step from any cell near the highest
    reaches its middle: m - H(m)^-1 g(m) (eq. 7), with central differences. Heatmaps are smoothed
    first (eq. 8). Near an edge the step begins at the nearest cell whose surroundings are whole.

    Args:
        heatmaps: (B, J, h, w), about 0..1, h and w at least 7; NaN counts as 0.

    Returns:
        (B, J, 3) as (x, y, c): x and y in cells, 0..w and 0..h; c the highest value, 0..1.
    """
    batch, joints, height, width = heatmaps.shape
    assert min(height, width) >= 2 * (REACH + 1) + 1, "a heatmap smaller than its smoothing"
    low = heatmaps.new_full((), SMALLEST)
    heatmaps = torch.where(torch.lt(low, heatmaps), heatmaps, low)  # NaN is not above anything
    best = heatmaps.flatten(2).argmax(2)  # (B, J)
    confidence = heatmaps.flatten(2).amax(2)
    row, column = best // width, best % width

    logs = _smooth(heatmaps).log()  # without REACH cells on every side
    inner_h, inner_w = height - 2 * REACH, width - 2 * REACH
    inner_row = (row - REACH).clamp(1, inner_h - 2)
    inner_column = (column - REACH).clamp(1, inner_w - 2)
    centre = (inner_row * inner_w + inner_column).unsqueeze(-1)  # (B, J, 1)
    places = torch.cat([centre + (dy * inner_w + dx) for dy, dx in STENCIL], -1)
    values = torch.gather(logs.flatten(2), 2, places).unbind(-1)  # nine of (B, J)
    step_x, step_y = _newton_step(dict(zip(STENCIL, values, strict=True)))

    points = []
    for step, inner, whole, size in (
        (step_x, inner_column, column, width),
        (step_y, inner_row, row, height),
    ):
        moved = (inner + REACH - whole).to(step.dtype) + step
        point = whole.to(step.dtype) + 0.5 + moved.clamp(-LARGEST_STEP, LARGEST_STEP)
        points.append(point.clamp(0, size))
    return torch.stack((*points, confidence.clamp(max=1)), -1)


def _smooth(heatmaps: Tensor) -> Tensor:
    """Gaussian-smoothed (B, J, h - 2 * REACH, w - 2 * REACH), where no edge enters."""
    kernel = [math.exp(-(d**2) / (2 * SMOOTHING**2)) for d in range(-REACH, REACH + 1)]
    total = sum(kernel)
    height, width = heatmaps.shape[-2:]
    for axis, size in ((2, height), (3, width)):
        length = size - 2 * REACH
        parts = [heatmaps.narrow(axis, d, length) * (k / total) for d, k in enumerate(kernel)]
        heatmaps = torch.stack(parts).sum(0)
    return heatmaps


def _newton_step(at: dict[tuple[int, int], Tensor]) -> tuple[Tensor, Tensor]:
    """The step to the stationary point, in x and y; none where that is no maximum."""
    slope_x, slope_y = (at[0, 1] - at[0, -1]) / 2, (at[1, 0] - at[-1, 0]) / 2
    bend_x = at[0, 1] - 2 * at[0, 0] + at[0, -1]
    bend_y = at[1, 0] - 2 * at[0, 0] + at[-1, 0]
    twist = (at[1, 1] - at[1, -1] - at[-1, 1] + at[-1, -1]) / 4
    determinant = bend_x * bend_y - twist**2
    is_maximum = torch.gt(determinant, SMALLEST) & torch.lt(bend_x, 0)
    safe = torch.where(is_maximum, determinant, 1.0)
    step_x = (twist * slope_y - bend_y * slope_x) / safe
    step_y = (twist * slope_x - bend_x * slope_y) / safe
    return torch.where(is_maximum, step_x, 0.0), torch.where(is_maximum, step_y, 0.0)
