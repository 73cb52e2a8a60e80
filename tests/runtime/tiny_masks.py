"""Detections with masks of ellipses, made without a network."""

from __future__ import annotations

import numpy as np

from runtime.contract.manifest import InputGeometry
from runtime.masks import Masks
from runtime.preprocess import Letterbox
from runtime.results import Detections

NAMES = ("ball", "car", "cone")


def ellipses(
    boxes_xyxy: np.ndarray,
    source_hw: tuple[int, int],
    geometry: InputGeometry,
    soft_hw: tuple[int, int],
) -> Detections:
    """One object a box, a soft ellipse that fills it.

    Args:
        boxes_xyxy: (N, 4), pixels of the source frame.
        geometry: of the network input, over which the masks of `soft_hw` lie.
    """
    letterbox = Letterbox.fit(source_hw, geometry)
    scale = np.array([soft_hw[1] / geometry.width, soft_hw[0] / geometry.height] * 2)
    boxes = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    soft = np.zeros((len(boxes), *soft_hw), np.uint8)
    ys, xs = np.mgrid[: soft_hw[0], : soft_hw[1]] + 0.5
    for row, (x1, y1, x2, y2) in enumerate(letterbox.to_network(boxes) * scale):
        far = ((xs - (x1 + x2) / 2) * 2 / (x2 - x1)) ** 2
        far += ((ys - (y1 + y2) / 2) * 2 / (y2 - y1)) ** 2
        soft[row] = np.rint(255 / (1 + np.exp(np.clip(6 * (far - 0.8), -50, 50))))
    scores = np.linspace(0.9, 0.5, len(boxes)).astype(np.float32)
    classes = (np.arange(len(boxes)) % len(NAMES)).astype(np.int32)
    return Detections(boxes, scores, classes, NAMES, Masks(soft, letterbox))


def scattered_boxes(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """(N, 4) boxes within a frame, from a tenth to a third of its sides."""
    rng = np.random.default_rng(seed)
    size_wh = np.array([width, height])
    sides = rng.uniform(0.1, 0.33, (count, 2)) * size_wh
    near = rng.uniform(0, 1, (count, 2)) * (size_wh - sides)
    return np.concatenate([near, near + sides], axis=1).astype(np.float32)
