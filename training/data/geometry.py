"""Images, boxes, masks and keypoints under affine maps; the letterbox.

Coordinates are continuous: the pixel in column c covers c..c+1. A map is a (2, 3) float64 matrix
from source pixels to target pixels in these coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from training.data.sample import Sample

PAD_VALUE = 114
MASK_PX = 1.0  # a box further from its mask than this is tightened
Window = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Keep:
    """Which objects stay when a map moves them partly out of the picture.

    Attributes:
        area: an object stays if its centre does, or this share of its box; 0..1. Crowds stay
            as long as any of them is seen: they are regions to ignore.
        side_px: an object goes if its visible box is thinner than this; 0 keeps everything.
    """

    area: float = 0.3
    side_px: float = 1.0


KEEP_ALL = Keep(area=0.0, side_px=0.0)


def letterbox_wh(image_hw: tuple[int, int], size_hw: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of an image scaled to fit a size; as the runtime rounds it."""
    height, width = image_hw
    scale = min(size_hw[1] / width, size_hw[0] / height)
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def letterbox_affine(image_hw: tuple[int, int], size_hw: tuple[int, int]) -> np.ndarray:
    """The map of the letterbox: scaled to fit, centred.

    Args:
        image_hw: (height, width) of the image, pixels.
        size_hw: (height, width) of the network input, pixels.

    Returns:
        (2, 3) float64, from pixels of the image to pixels of the network input. Its inverse is
        ``cv2.invertAffineTransform``.
    """
    new_w, new_h = letterbox_wh(image_hw, size_hw)
    left, top = (size_hw[1] - new_w) // 2, (size_hw[0] - new_h) // 2
    return np.array([[new_w / image_hw[1], 0, left], [0, new_h / image_hw[0], top]], np.float64)


def letterbox(sample: Sample, size_hw: tuple[int, int], *, pad_value: int = PAD_VALUE) -> Sample:
    """Scale a sample to fit the network input, centred on grey: what the runtime does to frames.

    Args:
        sample: any size.
        size_hw: (height, width) of the network input, pixels.
        pad_value: of all three channels around the image, 0..255.

    Returns:
        A sample of that size with every object of the old one, however small.
    """
    new_w, new_h = letterbox_wh(sample.image_hw, size_hw)
    left, top = (size_hw[1] - new_w) // 2, (size_hw[0] - new_h) // 2
    canvas = np.full((*size_hw, 3), pad_value, np.uint8)
    canvas[top : top + new_h, left : left + new_w] = cv2.resize(
        sample.image, (new_w, new_h), interpolation=cv2.INTER_LINEAR
    )
    matrix = letterbox_affine(sample.image_hw, size_hw)
    return _warp_labels(sample, matrix, canvas, (0, 0, size_hw[1], size_hw[0]), KEEP_ALL, ())


def warp(
    sample: Sample,
    matrix: np.ndarray,
    size_hw: tuple[int, int],
    *,
    keep: Keep = Keep(),  # noqa: B008 - frozen
    flip_pairs: Sequence[tuple[int, int]] = (),
    pad_value: int = PAD_VALUE,
) -> Sample:
    """Move a whole sample by one map onto a new picture.

    Args:
        sample: any size.
        matrix: (2, 3), scales, flips and shifts only: no rotation, no shear.
        size_hw: (height, width) of the result.
        keep: which objects stay.
        flip_pairs: joints that change names in a mirror; used where the map mirrors.
        pad_value: of what the image does not cover, 0..255.

    Returns:
        A sample of that size.
    """
    canvas = np.full((*size_hw, 3), pad_value, np.uint8)
    window = (0, 0, size_hw[1], size_hw[0])
    return warp_onto(sample, matrix, canvas, window, keep=keep, flip_pairs=flip_pairs)


def warp_onto(
    sample: Sample,
    matrix: np.ndarray,
    canvas: np.ndarray,
    window: Window,
    *,
    keep: Keep = Keep(),  # noqa: B008 - frozen
    flip_pairs: Sequence[tuple[int, int]] = (),
) -> Sample:
    """Draw a sample into a window of a picture, in place; see ``warp``.

    Args:
        sample: any size.
        matrix: (2, 3), to pixels of the picture.
        canvas: (H, W, 3) uint8; changed inside the window, where the image lands.
        window: (x1, y1, x2, y2) integers within the picture.
        keep: which objects stay, judged by the window.
        flip_pairs: joints that change names in a mirror.

    Returns:
        A sample whose image is the picture, with the objects of this sample alone.
    """
    assert not matrix[[0, 1], [1, 0]].any(), "scales, flips and shifts only"
    landing = _landing(sample.image_hw, matrix, window)
    _warp_into(sample.image, matrix, canvas, landing)
    return _warp_labels(sample, matrix, canvas, window, keep, flip_pairs)


def horizontal_flip(sample: Sample, flip_pairs: Sequence[tuple[int, int]] = ()) -> Sample:
    """Mirror left and right; ``flip_pairs`` are the joints that change names."""
    return _flip(sample, 1, flip_pairs)


def vertical_flip(sample: Sample, flip_pairs: Sequence[tuple[int, int]] = ()) -> Sample:
    """Mirror top and bottom; ``flip_pairs`` are the joints that change names."""
    return _flip(sample, 0, flip_pairs)


def _flip(sample: Sample, axis: int, flip_pairs: Sequence[tuple[int, int]]) -> Sample:
    height, width = sample.image_hw
    matrix = np.array([[1, 0, 0], [0, 1, 0]], np.float64)
    matrix[1 - axis, 1 - axis], matrix[1 - axis, 2] = -1, (height, width)[axis]
    keypoints, masks = sample.keypoints_xyv, sample.masks
    if keypoints is not None:
        keypoints = swap_joints(map_keypoints(keypoints, matrix), flip_pairs)
    if masks is not None:
        masks = np.ascontiguousarray(np.flip(masks, axis=1 + axis))
    return replace(
        sample,
        image=cv2.flip(sample.image, axis),
        boxes_xyxy=map_boxes(sample.boxes_xyxy, matrix).astype(np.float32),
        masks=masks,
        keypoints_xyv=keypoints,
    )


def jitter_affine(
    image_hw: tuple[int, int],
    window: Window,
    zoom: float,
    rng: np.random.Generator,
    *,
    shift: float = 1.0,
    flips: tuple[bool, bool] = (False, False),
) -> np.ndarray:
    """Scale an image and place it in a window by chance; what is too large is cropped by chance.

    Args:
        image_hw: (height, width), pixels.
        window: (x1, y1, x2, y2), pixels of the target.
        zoom: target pixels per source pixel.
        rng: of the place.
        shift: 0 centres the image; 1 lets it lie anywhere in the window (or the window in it).
        flips: mirror (left and right, top and bottom).

    Returns:
        (2, 3) float64.
    """
    matrix = np.zeros((2, 3))
    chances = rng.random(2)
    for axis in range(2):
        length = image_hw[1 - axis] * zoom
        slack = window[2 + axis] - window[axis] - length
        start = window[axis] + slack * (0.5 + shift * (chances[axis] - 0.5))
        matrix[axis, axis] = -zoom if flips[axis] else zoom
        matrix[axis, 2] = start + length if flips[axis] else start
    return matrix


def map_boxes(boxes_xyxy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Move boxes by a map.

    Args:
        boxes_xyxy: (N, 4), pixels of the source.
        matrix: (2, 3), any affine map.

    Returns:
        (N, 4) float64, the upright boxes around the moved corners; not clipped.
    """
    x1, y1, x2, y2 = boxes_xyxy.astype(np.float64).T
    corners = np.stack([x1, y1, x2, y1, x1, y2, x2, y2], axis=1).reshape(-1, 4, 2)
    moved = corners @ matrix[:, :2].T + matrix[:, 2]  # (N, 4, 2)
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def map_keypoints(keypoints_xyv: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Move keypoints by a map; joints that are not labelled (v = 0) stay (0, 0, 0).

    Args:
        keypoints_xyv: (N, J, 3), pixels of the source.
        matrix: (2, 3), any affine map.

    Returns:
        (N, J, 3) float32; not clipped.
    """
    moved = keypoints_xyv.astype(np.float64)
    moved[..., :2] = moved[..., :2] @ matrix[:, :2].T + matrix[:, 2]
    moved[keypoints_xyv[..., 2] <= 0] = 0
    return moved.astype(np.float32)


def swap_joints(keypoints_xyv: np.ndarray, flip_pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Exchange left and right joints of (N, J, 3) keypoints, as a mirror does."""
    order = np.arange(keypoints_xyv.shape[1])
    for left, right in flip_pairs:
        order[left], order[right] = right, left
    return keypoints_xyv[:, order]


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(x1, y1, x2, y2) around the non-zero pixels of an (H, W) uint8 mask; None where none are."""
    if mask.size == 0:
        return None
    x, y, width, height = cv2.boundingRect(mask)
    return (x, y, x + width, y + height) if width else None


def _landing(image_hw: tuple[int, int], matrix: np.ndarray, window: Window) -> Window:
    """The pixels of a window whose centres the moved image covers."""
    height, width = image_hw
    low_x, low_y, high_x, high_y = map_boxes(np.array([[0.0, 0.0, width, height]]), matrix)[0]
    edges = np.ceil(np.array([low_x, low_y, high_x, high_y]) - 0.5).astype(int)
    x1, y1 = max(edges[0], window[0]), max(edges[1], window[1])
    return int(x1), int(y1), int(min(edges[2], window[2])), int(min(edges[3], window[3]))


def _warp_into(source: np.ndarray, matrix: np.ndarray, target: np.ndarray, place: Window) -> None:
    """Fill a place of the target from the source; its edge pixels reach half a pixel further."""
    x1, y1, x2, y2 = place
    if x2 <= x1 or y2 <= y1:
        return
    local = matrix.copy()
    local[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5 - np.array([x1, y1])  # pixel centres
    target[y1:y2, x1:x2] = cv2.warpAffine(
        source, local, (x2 - x1, y2 - y1), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _warp_labels(
    sample: Sample,
    matrix: np.ndarray,
    canvas: np.ndarray,
    window: Window,
    keep: Keep,
    flip_pairs: Sequence[tuple[int, int]],
) -> Sample:
    moved = map_boxes(sample.boxes_xyxy, matrix)
    boxes = moved.clip(window[:2] * 2, window[2:] * 2)
    rows = np.flatnonzero(_is_kept(moved, boxes, sample.is_crowd, keep))
    moved, boxes = moved[rows], boxes[rows]
    masks, keypoints = None, sample.keypoints_xyv
    if sample.masks is not None:
        landing = _landing(sample.image_hw, matrix, window)
        sources = [sample.masks[row] for row in rows]  # views: a frame's masks are megabytes
        masks, tight = _warp_masks(sources, matrix, boxes, canvas.shape[:2], landing)
        is_seen = tight[:, 2] > tight[:, 0]
        _tighten(boxes, tight, is_seen & _is_loose(moved, boxes, tight, keep))
        if keep.side_px > 0 and not is_seen.all():
            masks, boxes, rows = masks[is_seen], boxes[is_seen], rows[is_seen]
    if keypoints is not None:
        keypoints = map_keypoints(keypoints[rows], matrix)
        if matrix[0, 0] * matrix[1, 1] < 0:
            keypoints = swap_joints(keypoints, flip_pairs)
        points = keypoints[..., :2]
        keypoints[((points < window[:2]) | (points > window[2:])).any(axis=-1)] = 0
    return Sample(
        image=canvas,
        boxes_xyxy=boxes.astype(np.float32),
        classes=sample.classes[rows],
        is_crowd=sample.is_crowd[rows],
        image_id=sample.image_id,
        file_name=sample.file_name,
        masks=masks,
        keypoints_xyv=keypoints,
    )


def _is_kept(
    moved: np.ndarray, clipped: np.ndarray, is_crowd: np.ndarray, keep: Keep
) -> np.ndarray:
    """(N,) bool: which boxes stay, from where they would be and what is seen of them."""
    sides = (clipped[:, 2:] - clipped[:, :2]).clip(0)
    full = (moved[:, 2:] - moved[:, :2]).prod(axis=1)
    centres = (moved[:, :2] + moved[:, 2:]) / 2
    is_centre_in = ((centres >= clipped[:, :2]) & (centres <= clipped[:, 2:])).all(axis=1)
    is_enough = sides.prod(axis=1) >= keep.area * np.maximum(full, 1e-12)
    is_thick = (sides >= keep.side_px).all(axis=1)
    return (is_centre_in | is_enough | is_crowd) & is_thick


def _warp_masks(
    masks: Sequence[np.ndarray],
    matrix: np.ndarray,
    boxes: np.ndarray,
    hw: tuple[int, ...],
    landing: Window,
) -> tuple[np.ndarray, np.ndarray]:
    """Move masks, each only around its box.

    Returns:
        (N, H, W) masks, and (N, 4) the tight boxes of what is left of them; all 0 where nothing is.
    """
    result = np.zeros((len(masks), *hw), np.uint8)
    tight = np.zeros((len(masks), 4))
    low = np.maximum(np.floor(boxes[:, :2]) - 1, landing[:2]).astype(int)
    high = np.minimum(np.ceil(boxes[:, 2:]) + 1, landing[2:]).astype(int)
    for row, mask in enumerate(masks):
        (x1, y1), (x2, y2) = low[row], high[row]
        _warp_into(mask, matrix, result[row], (x1, y1, x2, y2))
        seen = tight_box(result[row, y1:y2, x1:x2])
        if seen is not None:
            tight[row] = np.add(seen, (x1, y1, x1, y1))
    return result, tight


def _is_loose(moved: np.ndarray, boxes: np.ndarray, tight: np.ndarray, keep: Keep) -> np.ndarray:
    """(N,) bool: boxes that were cut, or whose masks lost parts too thin for the new scale."""
    is_cut = (np.abs(moved - boxes) > 0.01).any(axis=1)
    if keep.side_px <= 0:
        return is_cut
    return is_cut | (np.abs(tight - boxes) > MASK_PX).any(axis=1)


def _tighten(boxes: np.ndarray, tight: np.ndarray, rows: np.ndarray) -> None:
    """Shrink, in place, some boxes to what is seen of their masks."""
    boxes[rows, :2] = np.maximum(boxes[rows, :2], tight[rows, :2])
    boxes[rows, 2:] = np.minimum(boxes[rows, 2:], tight[rows, 2:])
