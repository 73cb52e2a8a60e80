"""Which rows of one image stay: the definition of `Spec.nms` in PyTorch.

Training's evaluation and the exported operator KestrelNms run this code; `export/graph/nms.py`
writes the same in standard operators.
"""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from torch import Tensor

PER_CLASS_LIMIT = 200  # of Fast NMS, as published


def keep_rows(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    iou_threshold: Tensor,
    method: str,
    per_class_limit: int = PER_CLASS_LIMIT,
) -> Tensor:
    """Give the rows of one image that a method keeps, in order.

    Args:
        boxes: (T, 4) float32 as (x1, y1, x2, y2).
        scores: (T,) float32, falling, 0 in empty rows.
        classes: (T,) int64.
        iou_threshold: () float32, at least 0.
        method: "greedy"; "fast"; or "none": all filled rows with a finite box.
        per_class_limit: rows of a class that Fast NMS looks at.

    Returns:
        (n,) int64, rising.

    Raises:
        ValueError: another method.
    """
    if method == "greedy":
        return keep_greedy(boxes, scores, classes, iou_threshold)
    if method == "fast":
        return keep_fast(boxes, scores, classes, iou_threshold, per_class_limit)
    if method == "none":
        return _usable(boxes, scores).nonzero()[:, 0]
    raise ValueError(
        f"the method of suppression is {method!r}, expected one of greedy, fast, none. "
        "Correct the spec's nms."
    )


def keep_greedy(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: Tensor) -> Tensor:
    """Greedy NMS, class by class; shapes as `keep_rows`."""
    usable = _usable(boxes, scores)
    # Ranks instead of scores: equal scores keep their order whatever torchvision's sort does.
    ranks = torch.arange(len(boxes), 0, -1, dtype=torch.float32, device=boxes.device)
    # torchvision compares the float32 IoU with a double: hand over the float32 threshold, exactly.
    threshold = float(np.float32(iou_threshold.item()))
    kept = [
        rows[torchvision.ops.nms(boxes[rows], ranks[rows], threshold)]
        for label in classes[usable].unique()
        for rows in [(usable & (classes == label)).nonzero()[:, 0]]
    ]
    return torch.cat(kept).sort().values if kept else classes.new_zeros(0)


def keep_fast(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: Tensor, per_class_limit: int
) -> Tensor:
    """Fast NMS (YOLACT, arXiv:1904.02689, section 3.3); shapes as `keep_rows`."""
    usable = _usable(boxes, scores)
    kept = []
    for label in classes[usable].unique():
        rows = (usable & (classes == label)).nonzero()[:per_class_limit, 0]
        near, far = boxes[rows, :2], boxes[rows, 2:]
        areas = (far - near).prod(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        gaps = torch.minimum(far[:, None], far) - torch.maximum(near[:, None], near)
        inter = gaps.clamp(min=0).prod(dim=2)  # (n, n)
        iou = inter / (areas[:, None] + areas - inter)
        is_beaten = (iou > iou_threshold).triu(diagonal=1).any(dim=0)
        kept.append(rows[~is_beaten])
    return torch.cat(kept).sort().values if kept else classes.new_zeros(0)


def _usable(boxes: Tensor, scores: Tensor) -> Tensor:
    """(T,) bool: filled rows whose box is finite."""
    return (scores > 0) & boxes.isfinite().all(dim=1)
