"""Joints that centres point to, moved to the peaks of the joints' own heatmaps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.layers.heatmaps import LOWEST, cells_at, cells_of, keep_peaks, take_rows, to_rows

SNAP_SCORE = 0.1  # of a peak that a joint moves to
SNAP_SHARE = 0.3  # of the box's longer side: how far a joint moves, at most
FAR = 1e12  # square of a distance in cells: that of a peak that does not count
LARGEST = 1e30  # what is regressed beyond it, or NaN, counts as 0


def snap_joints(
    maps: dict[str, Tensor], indices: Tensor, centres: Tensor, sizes: Tensor, num_peaks: int
) -> Tensor:
    """The joints of objects (CenterNet, arXiv:1904.07850, section 4.2, "grouping").

    A joint is where the displacement of its object's cell points, or the nearest peak of its
    heatmap among those inside the object's box that score over 0.1, if that is no further than 0.3
    of the box's longer side, as in the authors' implementation. Its confidence is the heatmap's:
    at the peak, or at the cell that was pointed to.

    Args:
        maps: (B, C, h, w) float32: "displacement" (2J channels), "joint_heatmap" (J, logits),
            "joint_offset" (2).
        indices: (B, T) int64 of the objects' cells, in row-major order.
        centres: (B, T, 2) x, y. sizes: (B, T, 2) width, height. Both in cells.
        num_peaks: the best of each heatmap are looked at.

    Returns:
        (B, T, J, 3) x, y in cells, and confidence 0..1; always finite.
    """
    logits = maps["joint_heatmap"]
    batch, num_joints, *size_hw = logits.shape
    cells = cells_of((size_hw[0], size_hw[1]), indices.device)  # (A, 2)
    ways = _without_nan(take_rows(to_rows(maps["displacement"]), indices))
    pointed = cells[indices][:, :, None] + ways.unflatten(2, (num_joints, 2))  # (B, T, J, 2)

    peaks = keep_peaks(logits).flatten(2)  # (B, J, A)
    scores, places = peaks.topk(min(num_peaks, peaks.shape[2]), dim=2)  # (B, J, P)
    offsets = take_rows(to_rows(_without_nan(maps["joint_offset"])), places.flatten(1))
    found = cells[places] + offsets.reshape(batch, num_joints, -1, 2)  # (B, J, P, 2)

    low, high = centres - sizes / 2, centres + sizes / 2  # (B, T, 2)
    square = torch.zeros((), device=logits.device)
    counts = torch.lt(logits.new_tensor(math.log(SNAP_SCORE / (1 - SNAP_SCORE))), scores)[:, None]
    for axis in range(2):
        place = found[..., axis][:, None]  # (B, 1, J, P)
        near, far = low[..., axis, None, None], high[..., axis, None, None]  # (B, T, 1, 1)
        counts = counts & torch.le(near, place) & torch.le(place, far)
        square = square + (place - pointed[..., axis, None]) ** 2
    square, nearest = torch.where(counts, square, FAR).min(3)  # (B, T, J)
    is_near = torch.le(square, (SNAP_SHARE * sizes.amax(2, keepdim=True)) ** 2)

    nearest = nearest.transpose(1, 2)  # (B, J, T)
    own_cells = cells_at(pointed, (size_hw[0], size_hw[1]))  # (B, T, J, 2)
    own = (own_cells[..., 1] * size_hw[1] + own_cells[..., 0]).transpose(1, 2)
    values = torch.where(torch.lt(logits.new_tensor(LOWEST), logits), logits, LOWEST).flatten(2)
    columns = [
        torch.where(
            is_near, found[..., axis].gather(2, nearest).transpose(1, 2), pointed[..., axis]
        )
        for axis in range(2)
    ]
    confidence = torch.where(
        is_near,
        scores.gather(2, nearest).transpose(1, 2),
        values.gather(2, own).transpose(1, 2),
    )
    return torch.stack((*columns, confidence.sigmoid()), 3)


def _without_nan(values: Tensor) -> Tensor:
    return torch.where(torch.lt(values.abs(), LARGEST), values, 0.0)
