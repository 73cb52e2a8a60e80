"""The map that makes the crop of a person, and crops turned, scaled and shifted by chance.

The map is that of `runtime/crops.py`; a test holds the two together.
"""

from __future__ import annotations

import cv2
import numpy as np

from training.data.augment import Augment, recoloured
from training.data.geometry import PAD_VALUE, map_boxes, map_keypoints, swap_joints
from training.data.sample import Sample

TURN_CHANCE = 0.6
MAX_TURN = 30.0  # degrees
MAX_SHIFT = 0.08  # of the crop's sides: how far a detector's box may be off


def crop_affine(box_xyxy: np.ndarray, size_hw: tuple[int, int], margin: float) -> np.ndarray:
    """The map from an image to the crop around a box: centred, of one scale, nothing distorted.

    Args:
        box_xyxy: (4,), pixels of the image.
        size_hw: (height, width) of the network input, pixels.
        margin: sides of the crop over those of the box; the shorter side grows further, to the
            aspect of the network input.

    Returns:
        (2, 3) float64, from pixels of the image to pixels of the crop.
    """
    x1, y1, x2, y2 = (float(side) for side in box_xyxy)
    width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    pixel = max(width * margin / size_hw[1], height * margin / size_hw[0])  # image px of a crop px
    left = (x1 + x2) / 2 - size_hw[1] * pixel / 2
    top = (y1 + y2) / 2 - size_hw[0] * pixel / 2
    return np.array([[1 / pixel, 0, -left / pixel], [0, 1 / pixel, -top / pixel]], np.float64)


def cut(image: np.ndarray, matrix: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Sample an image by an affine map, bilinear at pixel centres, grey beyond its edges.

    Args:
        image: (H, W, 3) uint8.
        matrix: (2, 3), from pixels of the image to pixels of the result, continuous coordinates.
        size_hw: (height, width) of the result.

    Returns:
        (h, w, 3) uint8.
    """
    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    return cv2.warpAffine(
        image,
        centred,
        size_hw[::-1],
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(PAD_VALUE,) * 3,
    )


def cropped(
    sample: Sample,
    row: int,
    matrix: np.ndarray,
    size_hw: tuple[int, int],
    flip_pairs: tuple[tuple[int, int], ...] = (),
) -> Sample:
    """One object of a sample under an affine map; joints outside the result are not labelled.

    Args:
        row: of the object.
        matrix: (2, 3), to pixels of the result; may rotate and mirror.
        size_hw: of the result.
        flip_pairs: joints that change names where the map mirrors.
    """
    assert sample.keypoints_xyv is not None, "crops are for joints"
    rows = slice(row, row + 1)
    keypoints = map_keypoints(sample.keypoints_xyv[rows], matrix)
    if np.linalg.det(matrix[:, :2]) < 0:
        keypoints = swap_joints(keypoints, flip_pairs)
    points, limit = keypoints[..., :2], np.array(size_hw[::-1])
    keypoints[((points < 0) | (points > limit)).any(axis=-1)] = 0
    boxes = map_boxes(sample.boxes_xyxy[rows], matrix).clip(0, np.tile(limit, 2))
    return Sample(
        image=cut(sample.image, matrix, size_hw),
        boxes_xyxy=boxes.astype(np.float32),
        classes=sample.classes[rows],
        is_crowd=sample.is_crowd[rows],
        image_id=sample.image_id,
        file_name=sample.file_name,
        keypoints_xyv=keypoints,
    )


def augmented_crop(
    sample: Sample,
    size_hw: tuple[int, int],
    margin: float,
    augment: Augment,
    rng: np.random.Generator,
) -> Sample:
    """Cut a person out, as `crop_affine` does, by chance turned, scaled, shifted and mirrored.

    Args:
        sample: with one object and room around it, any size.
        size_hw: (height, width) of the network input, pixels.
        margin: see `crop_affine`.
        augment: of which flip, scale, shift and colours are taken; shift 0 keeps it upright, too.
        rng: decides all of it.

    Returns:
        A sample of that size. Joints that leave it are not labelled.
    """
    assert len(sample) == 1, len(sample)
    matrix = crop_affine(sample.boxes_xyxy[0], size_hw, margin)
    chances, places = rng.random(2), rng.uniform(-1, 1, 3)
    zoom = rng.uniform(*augment.scale)
    turn = np.deg2rad(MAX_TURN * places[2]) * augment.shift * (chances[1] < TURN_CHANCE)
    mirror = -1.0 if chances[0] < augment.flip else 1.0
    cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
    around = np.array([[mirror * cos, -sin], [mirror * sin, cos]])  # mirrored, then turned
    sides = np.array([size_hw[1], size_hw[0]], np.float64)
    moved = np.zeros((2, 3))
    moved[:, :2] = around @ matrix[:, :2]
    shift = MAX_SHIFT * augment.shift * places[:2] * sides
    moved[:, 2] = around @ (matrix[:, 2] - sides / 2) + sides / 2 + shift
    result = cropped(sample, 0, moved, size_hw, augment.flip_pairs)
    result.image = recoloured(result.image, augment, rng)
    return result
