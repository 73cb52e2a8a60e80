"""Boxes to regression deltas and back (Faster R-CNN, arXiv:1506.01497, eq. 2), and overlaps."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_SCALE = 4.0


def encode_boxes(boxes_xyxy: Tensor, anchors: Tensor) -> Tensor:
    """Deltas that `decode_boxes` turns back into the boxes.

    Args:
        boxes_xyxy: (..., 4), pixels; sides are clamped to 1e-3 px.
        anchors: (..., 4), pixels.

    Returns:
        (..., 4) as (dx, dy, dw, dh), in units of the anchor's size.
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=1e-3)
    shift = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) - (anchors[..., :2] + anchors[..., 2:])
    return torch.cat((shift / 2 / anchor_size, torch.log(size / anchor_size)), -1)


def decode_boxes(
    deltas: Tensor, anchors: Tensor, *, max_log_scale: float = MAX_LOG_SCALE
) -> Tensor:
    """Turn regression deltas into corner boxes (Faster R-CNN, arXiv:1506.01497, eq. 2).

    Args:
        deltas: (..., 4) as (dx, dy, dw, dh), in units of the anchor's size.
        anchors: (..., 4) as (x1, y1, x2, y2), pixels of the network input.
        max_log_scale: dw and dh are clipped to [-max_log_scale, max_log_scale].

    Returns:
        (..., 4) as (x1, y1, x2, y2), pixels of the network input; may reach outside the image.
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * anchor_size
    log_scale = deltas[..., 2:].clamp(-max_log_scale, max_log_scale)
    half = torch.exp(log_scale) * anchor_size / 2
    return torch.cat((centre - half, centre + half), -1)


def clip_boxes(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Clip corner boxes (..., 4) to the image of `size_hw` pixels."""
    height, width = size_hw
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack(
        (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), -1
    )


def pairwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union of every pair: (..., N, 4) and (..., M, 4) to (..., N, M), 0..1."""
    inter, area_a, area_b = _pairwise_areas(boxes_a, boxes_b)
    return inter / (area_a[..., :, None] + area_b[..., None, :] - inter).clamp(min=1e-9)


def pairwise_inside(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Share of each a's area that lies inside each b: (..., N, 4), (..., M, 4) to (..., N, M)."""
    inter, area_a, _ = _pairwise_areas(boxes_a, boxes_b)
    return inter / area_a[..., :, None].clamp(min=1e-9)


def _pairwise_areas(boxes_a: Tensor, boxes_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low = torch.maximum(boxes_a[..., :, None, :2], boxes_b[..., None, :, :2])
    high = torch.minimum(boxes_a[..., :, None, 2:], boxes_b[..., None, :, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    area_a = (boxes_a[..., 2:] - boxes_a[..., :2]).clamp(min=0).prod(-1)
    area_b = (boxes_b[..., 2:] - boxes_b[..., :2]).clamp(min=0).prod(-1)
    return inter, area_a, area_b
