"""How far a network's rows and maps are from those of another one: what it imitates."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from training.losses.focal import quality_focal_loss


def imitated_scores(logits: Tensor, wanted: Tensor, *, is_softmax: bool) -> tuple[Tensor, Tensor]:
    """How far scores are from the other network's.

    Args:
        logits, wanted: (B, A, K) float32 of sigmoids, or (B, A, K + 1) of a softmax, background
            first.

    Returns:
        The loss, a sum: quality focal loss to the other's sigmoids (arXiv:2006.04388, eq. 6), or
        the cross entropy to its softmax, by how far a row is from background. And (B, A), how sure
        the other network is of an object, 0..1.
    """
    if not is_softmax:
        probability = wanted.sigmoid()
        return quality_focal_loss(logits, probability), probability.amax(-1)
    probability = wanted.softmax(-1)
    is_object = 1 - probability[..., 0]
    weights = is_object.maximum(1 - logits.detach().softmax(-1)[..., 0])
    entropy = -(probability * logits.log_softmax(-1)).sum(-1)
    return (weights * entropy).sum(), is_object


def imitated_rows(rows: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Smooth L1 of rows (B, A, D), a mean over D, to the other network's; a sum by (B, A)."""
    error = functional.smooth_l1_loss(rows, wanted, reduction="none", beta=0.1).mean(-1)
    return (weights * error).sum()


def imitated_maps(maps: Tensor, wanted: Tensor) -> Tensor:
    """Mean distance of maps of one shape, over the other network's mean size of value."""
    return (maps - wanted).abs().mean() / wanted.abs().mean().clamp(min=1e-6)
