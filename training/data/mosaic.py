"""Mosaic: four samples around one point (YOLOv4, arXiv:2004.10934), drawn straight to size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.data.geometry import PAD_VALUE, Keep, Window, jitter_affine, warp_onto
from training.data.sample import Sample

CENTRE_RANGE = (0.3, 0.7)  # where the four meet, as a share of the picture's sides


def mosaic(
    samples: Sequence[Sample],
    size_hw: tuple[int, int],
    rng: np.random.Generator,
    *,
    zoom: tuple[float, float] = (0.5, 1.0),
    flip: float = 0.0,
    vertical_flip: float = 0.0,
    keep: Keep = Keep(),  # noqa: B008 - frozen
    flip_pairs: Sequence[tuple[int, int]] = (),
) -> Sample:
    """Put four samples into one picture, each scaled, flipped and cropped on its own.

    Args:
        samples: four, of any sizes; id and name are taken from the first.
        size_hw: (height, width) of the result, pixels.
        rng: of everything.
        zoom: range of scale, where 1 letterboxes a sample to the whole picture.
        flip: chance to mirror a sample left and right, 0..1.
        vertical_flip: chance to mirror it top and bottom, 0..1.
        keep: which objects stay.
        flip_pairs: joints that change names in a mirror.

    Returns:
        A sample of that size with the objects of all four; with masks and keypoints if all four
        have them.
    """
    assert len(samples) == 4, len(samples)
    canvas = np.full((*size_hw, 3), PAD_VALUE, np.uint8)
    tiles = []
    for sample, window in zip(samples, _windows(size_hw, rng), strict=True):
        height, width = sample.image_hw
        scale = min(size_hw[1] / width, size_hw[0] / height) * rng.uniform(*zoom)
        chances = rng.random(2)
        flips = bool(chances[0] < flip), bool(chances[1] < vertical_flip)
        matrix = jitter_affine(sample.image_hw, window, scale, rng, flips=flips)
        tiles.append(warp_onto(sample, matrix, canvas, window, keep=keep, flip_pairs=flip_pairs))
    return _joined(tiles, canvas)


def _windows(size_hw: tuple[int, int], rng: np.random.Generator) -> list[Window]:
    height, width = size_hw
    x, y = (rng.uniform(*CENTRE_RANGE, 2) * (width, height)).astype(int).tolist()
    return [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]


def _joined(tiles: Sequence[Sample], canvas: np.ndarray) -> Sample:
    masks = [tile.masks for tile in tiles if tile.masks is not None]
    keypoints = [tile.keypoints_xyv for tile in tiles if tile.keypoints_xyv is not None]
    return Sample(
        image=canvas,
        boxes_xyxy=np.concatenate([tile.boxes_xyxy for tile in tiles]),
        classes=np.concatenate([tile.classes for tile in tiles]),
        is_crowd=np.concatenate([tile.is_crowd for tile in tiles]),
        image_id=tiles[0].image_id,
        file_name=tiles[0].file_name,
        masks=np.concatenate(masks) if len(masks) == len(tiles) else None,
        keypoints_xyv=np.concatenate(keypoints) if len(keypoints) == len(tiles) else None,
    )
