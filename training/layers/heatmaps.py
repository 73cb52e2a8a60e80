"""Heatmaps of centre points: their targets, and the peaks that are read from them.

A cell (column, row) of a heatmap covers `stride` x `stride` pixels of the network input: a point at
(x, y) pixels lies at (x, y) / stride in cells, in the cell of its whole part.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LOWEST = torch.finfo(torch.float32).min  # a logit that no threshold lets pass


def gaussian_radius(sizes_wh: Tensor, min_overlap: float = 0.7) -> Tensor:
    """How far both corners of a box may move for an IoU of at least `min_overlap`.

    CornerNet (arXiv:1808.01244), section 3.2: the least of three cases, the box moved as a whole,
    made smaller, made larger. Each is the lesser root of its quadratic. Much published code takes
    another root or divides by 2 in place of 2a; its radii are those of an overlap of about 0.3.

    Args:
        sizes_wh: (N, 2) widths and heights, 0 or more, in any unit.
        min_overlap: 0..1, exclusive.

    Returns:
        (N,) in the same unit.
    """
    total, area = sizes_wh.sum(-1), sizes_wh.prod(-1)
    moved = area * (1 - min_overlap) / (1 + min_overlap)
    cases = (
        (1.0, -total, moved),
        (4.0, -2 * total, area * (1 - min_overlap)),
        (4 * min_overlap, 2 * min_overlap * total, area * (min_overlap - 1)),
    )
    radii = [(-b - (b**2 - 4 * a * c).clamp(min=0).sqrt()) / (2 * a) for a, b, c in cases[:2]]
    a, b, c = cases[2]  # its roots have two signs
    radii.append((-b + (b**2 - 4 * a * c).sqrt()) / (2 * a))
    return torch.stack(radii).amin(0)


def draw_gaussians(
    cells_xy: Tensor, radii: Tensor, channels: Tensor, shape: tuple[int, int, int]
) -> Tensor:
    """Gaussians of height 1 around cells, the larger value where they overlap (section 3 of
    CenterNet, arXiv:1904.07850).

    The standard deviation is a third of the radius, rounded down to whole cells, and half a cell:
    (2 * floor(r) + 1) / 6; beyond floor(r) cells in x or y they end, as published.

    Args:
        cells_xy: (N, 2) int64, inside the map.
        radii: (N,) float32 in cells, 0 or more.
        channels: (N,) int64, 0..C-1.
        shape: (C, h, w) of the map.

    Returns:
        (C, h, w) float32, 0..1; exactly 1 at the cells.
    """
    result = radii.new_zeros(shape)
    reach = radii.floor().clamp(min=0)[:, None]  # (N, 1)
    sides = []
    for axis, size in ((0, shape[2]), (1, shape[1])):
        places = torch.arange(size, device=radii.device)
        distance = (places - cells_xy[:, axis, None]).float()  # (N, size)
        bell = torch.exp(-(distance**2) / (2 * ((2 * reach + 1) / 6) ** 2))
        sides.append(torch.where(distance.abs() <= reach, bell, 0.0))
    for channel in channels.unique().tolist():
        rows = channels == channel
        result[channel] = (sides[1][rows, :, None] * sides[0][rows, None, :]).amax(0)
    return result


def keep_peaks(logits: Tensor) -> Tensor:
    """Cells that no neighbour exceeds keep their value, all others get the lowest float.

    The peak test of CenterNet (section 3.1): 3x3 max-pooling, in place of suppression by IoU. Of
    neighbours with one value the first in row-major order is the peak, which matters where they
    were rounded: a plateau would be found once for each of its cells. NaN is no peak.

    Args:
        logits: (B, C, h, w) float32.

    Returns:
        (B, C, h, w) float32 without NaN.
    """
    lowest = logits.new_full((), LOWEST)
    values = torch.where(torch.lt(lowest, logits), logits, lowest)  # NaN is not above anything
    is_highest = torch.le(functional.max_pool2d(values, 3, 1, 1), values)
    height, width = logits.shape[-2:]
    count = height * width
    order = torch.arange(count, 0, -1, dtype=torch.float32, device=logits.device)
    ranks = torch.where(is_highest, order.reshape(1, 1, height, width), 0.0)
    is_first = torch.le(functional.max_pool2d(ranks, 3, 1, 1), ranks)
    return torch.where(is_highest & is_first, values, lowest)


def to_rows(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C): a row for each cell, in row-major order."""
    return maps.flatten(2).transpose(1, 2)


def cells_of(size_hw: tuple[int, int], device: torch.device) -> Tensor:
    """The (x, y) of every cell of a map, (h * w, 2) float32, in row-major order."""
    height, width = size_hw
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((xs, ys), -1).reshape(-1, 2).float().to(device)


def take_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """Rows (B, A, C) at indices (B, T) of each image: (B, T, C)."""
    return torch.gather(rows, 1, indices.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def cells_at(points: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """The cell (x, y) of points (..., 2) given in cells: int64, the nearest one of the map."""
    limit = points.new_tensor([size_hw[1] - 1, size_hw[0] - 1])
    return points.floor().clamp(min=0).minimum(limit).long()


def is_inside(box: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Which cells of a map have their middle inside a box (4,) xyxy, in cells: (h, w) bool."""
    ys, xs = (torch.arange(size, device=box.device) + 0.5 for size in size_hw)
    is_row, is_column = (ys >= box[1]) & (ys < box[3]), (xs >= box[0]) & (xs < box[2])
    return is_row[:, None] & is_column


def rows_of_batch(cells: list[Tensor], size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cells of each image, (N,) int64 in row-major order, as rows of the whole batch.

    Returns:
        (N of all images,) int64, image * h * w + cell; and (x, y) of the cells, (N, 2) int64.
    """
    count, every = size_hw[0] * size_hw[1], torch.cat(cells)
    rows = torch.cat([each + image * count for image, each in enumerate(cells)])
    return rows, torch.stack((every % size_hw[1], every // size_hw[1]), 1)
