"""Focal loss with hard or soft labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss (RetinaNet, arXiv:1708.02002, eq. 5), summed.

    Args:
        logits: (N, K) float32, before the sigmoid.
        labels: (N, K) 0 or 1.
        alpha: weight of positives; 1 - alpha of negatives.
        gamma: how strongly easy examples are played down.
    """
    probability = torch.sigmoid(logits)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    miss = torch.where(labels > 0.5, 1 - probability, probability)
    weight = torch.where(labels > 0.5, alpha, 1 - alpha)
    return (weight * miss**gamma * cross_entropy).sum()


def quality_focal_loss(logits: Tensor, labels: Tensor, *, beta: float = 2.0) -> Tensor:
    """Focal loss for soft labels (generalised focal loss, arXiv:2006.04388, eq. 6), summed.

    Args:
        logits: (N, K) float32, before the sigmoid.
        labels: (N, K) in 0..1: the IoU that the predicted box reaches, 0 for background.
        beta: how strongly examples near their label are played down.
    """
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return ((labels - torch.sigmoid(logits)).abs() ** beta * cross_entropy).sum()
