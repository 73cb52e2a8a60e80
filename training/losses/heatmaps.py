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


def place_entropy(
    logits: Tensor, places_xy: Tensor, regions: Tensor, sigma: float = 0.75
) -> Tensor:
    """Cross entropy of a softmax over the cells of a region to where a point is in it, summed.

    As Mask R-CNN's joints (arXiv:1703.06870, section 5), with a Gaussian about the point in place
    of one cell. Every point weighs the same however many cells are empty, so this learns far
    sooner than cells that are told apart one by one.

    Args:
        logits: (P, h, w) float32, the map of each point.
        places_xy: (P, 2) in cells. regions: (P, 4) xyxy in cells.
        sigma: standard deviation of the Gaussian, cells.
    """
    ys, xs = (torch.arange(n, device=logits.device) + 0.5 for n in logits.shape[-2:])
    is_row = (ys >= regions[:, 1, None]) & (ys < regions[:, 3, None])  # (P, h)
    is_column = (xs >= regions[:, 0, None]) & (xs < regions[:, 2, None])
    is_region = is_row[:, :, None] & is_column[:, None]
    square_y = (ys - places_xy[:, 1, None]) ** 2
    square_x = (xs - places_xy[:, 0, None]) ** 2
    bell = torch.exp(-(square_y[:, :, None] + square_x[:, None]) / (2 * sigma**2)) * is_region
    wanted = bell / bell.sum((1, 2), keepdim=True).clamp(min=1e-6)
    shares = torch.where(is_region, logits, -1e4).flatten(1).log_softmax(1)
    return -(wanted.flatten(1) * shares).sum()
