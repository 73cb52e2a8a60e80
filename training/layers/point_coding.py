"""Points to offsets from an anchor and back (RetinaFace, arXiv:1905.00641, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def encode_points(points_xy: Tensor, anchors: Tensor, variance: float) -> Tensor:
    """Offsets that `decode_points` turns back into the points.

    Args:
        points_xy: (..., J, 2), pixels.
        anchors: (..., 4) xyxy, pixels.
        variance: offsets are divided by it.

    Returns:
        (..., J, 2) from the anchor's centre, in units of its size times the variance.
    """
    centre, size = _centre_and_size(anchors)
    return (points_xy - centre) / size / variance


def decode_points(offsets: Tensor, anchors: Tensor, variance: float) -> Tensor:
    """Turn offsets (..., J, 2) from anchors (..., 4) into points (..., J, 2), pixels."""
    centre, size = _centre_and_size(anchors)
    return centre + offsets * variance * size


def _centre_and_size(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Of (..., 4) xyxy, each (..., 1, 2)."""
    low, high = torch.split(anchors, 2, -1)
    return ((low + high) / 2).unsqueeze(-2), (high - low).unsqueeze(-2)
