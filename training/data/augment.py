"""Augmentation for training: what may happen to a sample, and a function that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from training.data.colour import add_noise, blur, jitter_hsv, shift_brightness
from training.data.geometry import Keep, jitter_affine, warp
from training.data.mosaic import mosaic
from training.data.sample import DataError, Sample

MAX_BLUR_SIGMA = 1.5  # pixels
MAX_NOISE_SIGMA = 12.0  # grey levels of 255
MAX_ZOOM = 4.0  # of the letterbox: beyond it small objects are but blurs


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """What may happen to a sample. ``Augment.none()`` letterboxes and does nothing else.

    Attributes:
        flip: chance to mirror left and right.
        vertical_flip: chance to mirror top and bottom.
        scale: range of zoom, where 1 is the letterbox; above 1 the picture is cropped by chance.
        shift: 0 keeps the image centred; 1 lets it lie, or be cropped, anywhere.
        hsv: gains of hue, saturation and value, 0..1 each.
        brightness: range added, -b..b, in units of the full range.
        contrast: range of the factor, 1-c..1+c.
        blur: chance of a slight Gaussian blur.
        noise: chance of slight Gaussian noise.
        mosaic: chance of a mosaic of four.
        mosaic_scale: range of zoom of a mosaic's parts, where 1 letterboxes to the whole picture.
        keep_area: a cut object stays if its centre does, or this share of its box.
        min_side_px: an object goes if its visible box is thinner than this.
        flip_pairs: joints that change names in a mirror.
        view_hw: size of a part of the picture that is made in its place, at the whole one's zoom;
            None makes the whole. Not together with mosaics.
        focus: chance that a view lies about one of the objects, drawn at random.
        object_px: range of that object's longer side in the view, in place of `scale`: objects of
            all sizes are learnt at those that matter (SNIP, arXiv:1711.08189), up to MAX_ZOOM.
    """

    flip: float = 0.5
    vertical_flip: float = 0.0
    scale: tuple[float, float] = (0.7, 1.5)
    shift: float = 1.0
    hsv: tuple[float, float, float] = (0.015, 0.5, 0.35)
    brightness: float = 0.1
    contrast: float = 0.1
    blur: float = 0.1
    noise: float = 0.1
    mosaic: float = 0.0
    mosaic_scale: tuple[float, float] = (0.5, 1.0)
    keep_area: float = 0.3
    min_side_px: float = 1.0
    flip_pairs: tuple[tuple[int, int], ...] = ()
    view_hw: tuple[int, int] | None = None
    focus: float = 0.0
    object_px: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        shares = ("flip", "vertical_flip", "shift", "brightness", "contrast", "blur", "noise")
        for name in (*shares, "mosaic", "keep_area", "focus"):
            _expect(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number 0..1")
        _expect(all(0 <= gain <= 1 for gain in self.hsv), "hsv", self.hsv, "three gains 0..1")
        _expect(len(self.hsv) == 3, "hsv", self.hsv, "three gains 0..1")
        _expect(self.min_side_px >= 0, "min_side_px", self.min_side_px, "0 or more pixels")
        for name in ("scale", "mosaic_scale"):
            low, high = getattr(self, name)
            _expect(0 < low <= high, name, (low, high), "a range 0 < low <= high")
        if self.object_px is not None:
            low, high = self.object_px
            _expect(0 < low <= high, "object_px", (low, high), "a range 0 < low <= high")
        is_whole = self.view_hw is None or not self.mosaic
        _expect(is_whole, "view_hw", self.view_hw, "None where there are mosaics")

    @classmethod
    def none(cls) -> Augment:
        """Nothing but the letterbox."""
        return cls(
            flip=0, scale=(1, 1), shift=0, hsv=(0, 0, 0), brightness=0, contrast=0, blur=0, noise=0
        )

    def without_mosaic(self) -> Augment:
        """The same, for the last epochs."""
        return replace(self, mosaic=0.0)


def _expect(is_met: bool, name: str, value: object, expected: str) -> None:
    if not is_met:
        raise DataError(f"Augment.{name} is {value}; expected {expected}. Correct the recipe.")


def augmented(
    sample: Sample,
    draw_other: Callable[[], Sample] | None,
    size_hw: tuple[int, int],
    augment: Augment,
    rng: np.random.Generator,
) -> Sample:
    """Turn a sample into one of network size, by one map and one pass over its colours.

    Args:
        sample: any size; not changed.
        draw_other: gives another sample for a mosaic; may be None where ``augment.mosaic`` is 0.
        size_hw: (height, width) of the network input, pixels.
        augment: what may happen.
        rng: decides all of it; the same state gives the same result.

    Returns:
        A new sample of that size, or of ``augment.view_hw``.
    """
    keep = Keep(augment.keep_area, augment.min_side_px)
    if rng.random() < augment.mosaic:
        assert draw_other is not None, "a mosaic needs draw_other"
        result = mosaic(
            [sample, draw_other(), draw_other(), draw_other()],
            size_hw,
            rng,
            zoom=augment.mosaic_scale,
            flip=augment.flip,
            vertical_flip=augment.vertical_flip,
            keep=keep,
            flip_pairs=augment.flip_pairs,
        )
    else:
        matrix = draw_affine(sample.image_hw, size_hw, augment, rng, sample.boxes_xyxy)
        view_hw = augment.view_hw or size_hw
        result = warp(sample, matrix, view_hw, keep=keep, flip_pairs=augment.flip_pairs)
    result.image = recoloured(result.image, augment, rng)
    return result


def draw_affine(
    image_hw: tuple[int, int],
    size_hw: tuple[int, int],
    augment: Augment,
    rng: np.random.Generator,
    boxes_xyxy: np.ndarray | None = None,
) -> np.ndarray:
    """The map (2, 3) of an image into the network input, zoomed, placed and mirrored by chance.

    Args:
        image_hw, size_hw: (height, width) of the image and of the network input, pixels.
        augment: what may happen; with `view_hw` the map is into that part of the input.
        rng: decides all of it.
        boxes_xyxy: (N, 4) of the objects that a view may lie about, pixels of the image.
    """
    chances = rng.random(2)
    flips = bool(chances[0] < augment.flip), bool(chances[1] < augment.vertical_flip)
    fit = min(size_hw[1] / image_hw[1], size_hw[0] / image_hw[0])
    zoom = fit * rng.uniform(*augment.scale)
    view_hw = augment.view_hw or size_hw
    window = (0, 0, view_hw[1], view_hw[0])
    box, num = None, 0 if boxes_xyxy is None else len(boxes_xyxy)
    if num and augment.focus > 0 and rng.random() < augment.focus:
        box = boxes_xyxy[rng.integers(num)].astype(np.float64)  # type: ignore[index]
        if augment.object_px is not None:
            side = max(float((box[2:] - box[:2]).max()), 1.0)
            zoom = min(rng.uniform(*augment.object_px) / side, MAX_ZOOM * fit)
    matrix = jitter_affine(image_hw, window, zoom, rng, shift=augment.shift, flips=flips)
    if box is not None:
        _place_within(matrix, (box[:2] + box[2:]) / 2, image_hw, view_hw, rng)
    return matrix


def _place_within(
    matrix: np.ndarray,
    point_xy: np.ndarray,
    image_hw: tuple[int, int],
    view_hw: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    """Shift a map so that a point of the image lies anywhere in the view, which the image fills."""
    for axis in range(2):
        factor, size = matrix[axis, axis], view_hw[1 - axis]
        length = abs(factor) * image_hw[1 - axis]
        if length <= size:  # all of it is in the view anyway
            continue
        least = min(factor, 0) * image_hw[1 - axis]  # where the image begins, from its origin
        start = rng.uniform(0, size) - factor * point_xy[axis]
        matrix[axis, 2] = np.clip(start, size - length - least, -least)


def recoloured(image: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Change colour and sharpness of an (H, W, 3) uint8 BGR image by chance; a new one."""
    """An image (H, W, 3) uint8 in other colours, perhaps blurred or noisy, by chance."""
    if any(augment.hsv):
        image = jitter_hsv(image, augment.hsv, rng)
    if augment.brightness or augment.contrast:
        brightness, contrast = rng.uniform(-1, 1, 2) * (augment.brightness, augment.contrast)
        image = shift_brightness(image, brightness, 1 + contrast)
    if rng.random() < augment.blur:
        image = blur(image, rng.uniform(0.3, MAX_BLUR_SIGMA))
    if rng.random() < augment.noise:
        image = add_noise(image, rng.uniform(0, MAX_NOISE_SIGMA), rng)
    return image
