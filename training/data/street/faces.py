"""Faces of the street: their boxes, and how much of them is seen."""

from __future__ import annotations

import numpy as np

from training.data.street.render import Painting
from training.data.street.truth import Found

HEAD_RATIO = 1.16  # height over width of a head, as it is painted
MIN_FACING = 3  # landmarks of five on the near side of the head: a profile shows three


def faces_of(painting: Painting, found: list[Found]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes around the heads of people who do not look away, and how much one sees of them.

    Returns:
        (N, 4) float32, pixels, clipped to the frame, all 0 where there is no face; (N,) float32,
        0..1, the share of the middle half of the box that shows this person.
    """
    boxes, shares = np.zeros((len(found), 4), np.float32), np.zeros(len(found), np.float32)
    height, width = painting.ids.shape
    for row, item in enumerate(found):
        figure = item.painted.figure
        if figure is None:
            continue
        (u, v), head_depth = painting.camera.project(figure.head)
        _, depth = painting.camera.project(figure.landmarks)
        if (depth <= head_depth - 0.1 * figure.head_r).sum() < MIN_FACING:
            continue
        half_w = figure.head_r * painting.camera.focal / float(head_depth)
        half_h = HEAD_RATIO * half_w
        whole = np.array([u - half_w, v - half_h, u + half_w, v + half_h])
        box = whole.clip(0, (width, height, width, height))
        if (box[2:] - box[:2] < 1).any():
            continue
        boxes[row] = box
        x1, y1 = np.floor([u - half_w / 2, v - half_h / 2]).astype(int)
        x2, y2 = np.ceil([u + half_w / 2, v + half_h / 2]).astype(int)
        middle = painting.ids[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)]
        shares[row] = (middle == item.painted.value).sum() / ((x2 - x1) * (y2 - y1))
    return boxes, shares
