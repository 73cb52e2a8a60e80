"""Objects that move as they are told, seen as a detector would see them."""

from __future__ import annotations

import numpy as np

from runtime.results import Detections

NAMES = ("person", "car")
SIDE_PX = 40.0


def seen(*objects: tuple, side_px: float = SIDE_PX) -> Detections:
    """Boxes around (centre x, centre y, score = 0.9, class = 0) each, by falling score."""
    rows = sorted(((*each, *(0.9, 0)[len(each) - 2 :]) for each in objects), key=lambda r: -r[2])
    values = np.array(rows, np.float64).reshape(-1, 4)
    centres, half = values[:, :2], side_px / 2
    return Detections(
        np.hstack([centres - half, centres + half]).astype(np.float32),
        values[:, 2].astype(np.float32),
        values[:, 3].astype(np.int32),
        NAMES,
    )


def centre_x(detections: Detections) -> list[float]:
    return detections.boxes_xyxy[:, ::2].mean(axis=1).tolist()


def ids_by_x(detections: Detections) -> list[int]:
    """Track ids from left to right."""
    assert detections.track_ids is not None
    return detections.track_ids[np.argsort(centre_x(detections))].tolist()
