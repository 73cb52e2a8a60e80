"""How far a flow is from the true one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

POWER = 0.5  # of an error: small ones count for more than in their mean (q of PWC-Net's eq. 2)
LEAST_SEEN = 0.5  # share of a cell's pixels whose flow has to be known


def cell_flow(flow: Tensor, is_seen: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A flow of pixels as one of cells: the mean over the pixels of a cell that are seen.

    Args:
        flow: (B, 2, H, W) float32 as (dx, dy), pixels.
        is_seen: (B, 1, H, W) bool, where it is known.
        size_hw: h and w of the level.

    Returns:
        (B, 2, h, w) float32, cells; and (B, 1, h, w) bool, where enough of a cell is seen.
    """
    weight = is_seen.to(flow.dtype)
    share = functional.adaptive_avg_pool2d(weight, size_hw)
    mean = functional.adaptive_avg_pool2d(torch.where(is_seen, flow, 0.0), size_hw)
    cells = (size_hw[1] / flow.shape[-1], size_hw[0] / flow.shape[-2])
    scale = flow.new_tensor(cells).reshape(1, 2, 1, 1)
    return mean / share.clamp(min=1e-6) * scale, share >= LEAST_SEEN


def end_point_error(found: Tensor, flow: Tensor, is_seen: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the difference to the true flow (EPE, Otte and Nagel 1994), cell by cell.

    Args:
        found: (B, 2, h, w) as (dx, dy), cells of its level.
        flow: (B, 2, H, W) float32, pixels. is_seen: (B, 1, H, W) bool, where it is known.

    Returns:
        (B, h, w) float32, cells; and (B, h, w) bool, where it counts.
    """
    truth, counts = cell_flow(flow, is_seen, (found.shape[-2], found.shape[-1]))
    # the square root's slope is infinite at 0
    error = ((found.float() - truth).square().sum(1) + 1e-6).sqrt()
    return error, counts[:, 0]


def flow_loss(flows: list[Tensor], flow: Tensor, is_seen: Tensor) -> Tensor:
    """Mean root of the end-point error over the cells that count, summed over the levels.

    A mean of the errors themselves would be that of what moves far alone; where things hardly move
    a flow has to be right to a part of a cell (PWC-Net, arXiv:1709.02371, fine-tunes likewise).

    Args:
        flows: (B, 2, h, w) each, cells of its level.
        flow, is_seen: as `end_point_error`.
    """
    total = flow.new_zeros(())
    for found in flows:
        error, counts = end_point_error(found, flow, is_seen)
        total = total + (error.pow(POWER) * counts).sum() / counts.sum().clamp(min=1)
    return total
