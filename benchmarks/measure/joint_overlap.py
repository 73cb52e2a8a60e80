"""COCO's object keypoint similarity of every result with every object: what IoU is to boxes.

Joints are scored as boxes are, with this in the place of the overlap. COCO's rules for objects
without a labelled joint: the distance counts by which joints leave the box, doubled in size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def joint_overlap(
    keypoints_xyc: NDArray,
    true_keypoints_xyv: NDArray,
    true_boxes_xyxy: NDArray,
    areas: NDArray,
    sigmas: Sequence[float],
) -> Floats:
    """Similarity of results and objects of one image.

    Args:
        keypoints_xyc: (N, J, 3) of results, pixels. true_keypoints_xyv: (G, J, 3); v 0 is not
            labelled. true_boxes_xyxy: (G, 4). areas: (G,) of the objects, square pixels.
        sigmas: (J,).

    Returns:
        (N, G) 0..1.
    """
    found = np.asarray(keypoints_xyc, np.float64)[:, None, :, :2]  # (N, 1, J, 2)
    true = np.asarray(true_keypoints_xyv, np.float64)[None]  # (1, G, J, 3)
    boxes = np.asarray(true_boxes_xyxy, np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    low, high = (boxes[:, :2] - sides)[None, :, None], (boxes[:, 2:] + sides)[None, :, None]
    is_labelled = true[..., 2] > 0  # (1, G, J)
    has_joints = is_labelled.any(axis=2)[..., None]  # (1, G, 1)
    outside = np.maximum(low - found, 0) + np.maximum(found - high, 0)  # (N, G, J, 2)
    gaps = np.where(has_joints[..., None], found - true[..., :2], outside)
    spread = 2 * (2 * np.asarray(sigmas, np.float64)) ** 2  # (J,)
    area = np.asarray(areas, np.float64)[None, :, None] + np.spacing(1.0)
    likeness = np.exp(-(gaps**2).sum(axis=3) / (spread * area))
    counted = is_labelled | ~has_joints
    total = np.where(counted, likeness, 0.0).sum(axis=2)
    return np.asarray(total / np.maximum(counted.sum(axis=2), 1), np.float64)
