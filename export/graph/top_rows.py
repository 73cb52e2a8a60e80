"""The best rows as they are, for networks that find each object once: no suppression by IoU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def take_top_rows(
    boxes: Tensor, scores: Tensor, classes: Tensor, max_detections: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Keep the first M filled rows whose box is finite, in the form that KestrelNms gives.

    Plain operators, traced as they stand; `training.layers.suppression` has the same as method
    "none". A row that goes leaves no gap: the others move up.

    Args:
        boxes: (B, T, 4) f32 as (x1, y1, x2, y2).
        scores: (B, T) f32, falling, 0 in empty rows.
        classes: (B, T) i64.
        max_detections: M; may exceed T.

    Returns:
        num_detections (B) i32, boxes (B, M, 4) f32, scores (B, M) f32, classes (B, M) i32 with -1
        in padding, and indices (B, M) i64 into the T rows, 0 in padding.
    """
    count = scores.shape[1]
    is_finite = torch.lt(boxes.abs(), torch.inf).float().amin(2)  # 0 for NaN too
    is_usable = torch.lt(torch.zeros_like(scores), scores * is_finite)
    ranks = torch.arange(count, 0, -1, dtype=torch.float32, device=boxes.device)
    best, order = torch.where(is_usable, ranks, 0.0).topk(min(count, max_detections), dim=1)
    is_row = torch.lt(torch.zeros_like(best), best)
    order = torch.where(is_row, order, 0)  # empty rows may come in any order
    kept = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    rows = (
        torch.where(is_row[:, :, None], kept, 0.0),
        torch.where(is_row, scores.gather(1, order), 0.0),
        torch.where(is_row, classes.gather(1, order), -1).int(),
        order,
    )
    num_detections = is_row.float().sum(1).int()
    lacking = max_detections - order.shape[1]
    if lacking <= 0:
        return num_detections, *rows
    return (
        num_detections,
        functional.pad(rows[0], (0, 0, 0, lacking)),
        functional.pad(rows[1], (0, lacking)),
        functional.pad(rows[2], (0, lacking), value=-1),
        functional.pad(rows[3], (0, lacking)),
    )
