"""Box regression losses: smooth L1 on deltas, GIoU on boxes."""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_l1_loss(deltas: Tensor, wanted: Tensor, *, beta: float = 1 / 9) -> Tensor:
    """Smooth L1 (Fast R-CNN, arXiv:1504.08083, eq. 3) of (N, 4) deltas, per row (N,)."""
    error = (deltas - wanted).abs()
    return torch.where(error < beta, error**2 / (2 * beta), error - beta / 2).sum(-1)


def giou_loss(boxes_xyxy: Tensor, wanted_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """1 - GIoU (arXiv:1902.09630) of (N, 4) boxes in pixels.

    Returns:
        (N,) loss in 0..2, and (N,) plain IoU in 0..1 without gradient.
    """
    low = torch.maximum(boxes_xyxy[:, :2], wanted_xyxy[:, :2])
    high = torch.minimum(boxes_xyxy[:, 2:], wanted_xyxy[:, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=0).prod(-1)
    wanted_area = (wanted_xyxy[:, 2:] - wanted_xyxy[:, :2]).clamp(min=0).prod(-1)
    union = (area + wanted_area - inter).clamp(min=1e-6)
    iou = inter / union
    hull_low = torch.minimum(boxes_xyxy[:, :2], wanted_xyxy[:, :2])
    hull_high = torch.maximum(boxes_xyxy[:, 2:], wanted_xyxy[:, 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(-1).clamp(min=1e-6)
    return 1 - (iou - (hull - union) / hull), iou.detach()
