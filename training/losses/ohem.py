"""Softmax cross-entropy with online hard example mining (SSD, arXiv:1512.02325, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

NEGATIVES_PER_POSITIVE = 3


def ohem_loss(logits: Tensor, labels: Tensor, *, ratio: int = NEGATIVES_PER_POSITIVE) -> Tensor:
    """Cross-entropy of the positives and of the hardest negatives of one image, summed.

    The negatives least sure to be background count, `ratio` for each positive; an image without
    positives counts nothing, as in YOLACT.

    Args:
        logits: (A, K + 1) float32, background first.
        labels: (A,) int64: 1..K for objects, 0 for background, below 0 to be left out.
        ratio: negatives for each positive.
    """
    positive, negative = labels > 0, (labels == 0).nonzero()[:, 0]
    wanted = min(ratio * int(positive.sum()), len(negative))
    with torch.no_grad():
        rows = logits[negative]
        hardness = rows.logsumexp(1) - rows[:, 0]
        hardest = negative[hardness.topk(wanted).indices]
    loss = functional.cross_entropy(logits[positive], labels[positive], reduction="sum")
    background = torch.zeros_like(hardest)
    return loss + functional.cross_entropy(logits[hardest], background, reduction="sum")
