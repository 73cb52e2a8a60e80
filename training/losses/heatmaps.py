"""What heatmaps of centre points learn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.layers.heatmaps import to_rows


def penalty_reduced_focal_loss(
    logits: Tensor,
    heatmap: Tensor,
    weights: Tensor | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 4.0,
) -> Tensor:
    """Focal loss with a lower penalty near a centre (CenterNet, arXiv:1904.07850, eq. 1), summed.

    Args:
        logits: any shape, float32, before the sigmoid.
        heatmap: the same shape, 0..1; exactly 1 at centres.
        weights: the same shape, of each cell; None is 1.
        alpha: how strongly easy cells are played down.
        beta: how strongly cells near a centre are.
    """
    is_centre = heatmap == 1
    with torch.no_grad():
        penalty = torch.where(is_centre, 0.0, (1 - heatmap) ** beta)
        penalty = penalty if weights is None else penalty * weights
    missed = (torch.sigmoid(logits) ** alpha * functional.softplus(logits) * penalty).sum()
    centres = logits[is_centre]  # a few of many cells: the other half of the sum stays cheap
    found = torch.sigmoid(-centres) ** alpha * functional.softplus(-centres)
    return missed + (found if weights is None else found * weights[is_centre]).sum()


def absolute_error(maps: Tensor, cells: Tensor, wanted: Tensor) -> Tensor:
    """L1 of what maps say at cells, summed (CenterNet, equations 2 and 3).

    Args:
        maps: (B, C, h, w) float32.
        cells: (N,) int64, rows of the batch: image * h * w + cell.
        wanted: (N, C) float32.
    """
    return (to_rows(maps).flatten(0, 1).index_select(0, cells) - wanted).abs().sum()
