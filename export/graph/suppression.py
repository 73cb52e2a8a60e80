"""What KestrelNms keeps of one image, in PyTorch; `export/graph/nms.py` has the definition."""

import numpy as np
import torch
import torchvision
from torch import Tensor


def keep_greedy(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: Tensor) -> Tensor:
    """Give the rows (n,) of one image that greedy NMS keeps, in order.

    Args:
        boxes: (T, 4).
        scores: (T,).
        classes: (T,).
        iou_threshold: ().
    """
    usable = (scores > 0) & boxes.isfinite().all(dim=1)
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
    """Give the rows (n,) of one image that Fast NMS keeps, in order; shapes as `keep_greedy`."""
    usable = (scores > 0) & boxes.isfinite().all(dim=1)
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
