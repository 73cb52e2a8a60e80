"""Masks, boxes, labels and captions, drawn into frames fast enough for live video."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.masks import Masks
from runtime.preprocess import Frame
from runtime.results import Detections

# BGR; neighbours are far apart in hue and lightness, none is close to skin, sky or asphalt.
PALETTE_BGR = (
    (60, 76, 231), (113, 204, 46), (219, 152, 52), (15, 196, 241), (182, 89, 155),
    (34, 126, 230), (156, 188, 26), (180, 105, 255), (0, 215, 175), (255, 144, 30),
    (71, 99, 255), (50, 205, 154), (235, 206, 0), (147, 20, 255), (30, 225, 225),
    (225, 105, 65), (122, 160, 255), (0, 165, 110), (211, 85, 186), (208, 224, 64),
)  # fmt: skip
UNTRACKED_BGR = (150, 150, 150)
_DARK, _LIGHT = (20, 20, 20), (255, 255, 255)
_LUMA_BGR = (0.114, 0.587, 0.299)
_BRIGHT_LUMA = 140.0
_MARGIN = 3
_LABELS_KEPT = 2048
_MASK_OPACITY = 0.45  # of the object's colour over the frame


def class_colour(index: int) -> tuple[int, int, int]:
    """The colour of a class, BGR; the same in every frame, bundle and run."""
    return PALETTE_BGR[index % len(PALETTE_BGR)]


def track_colour(track_id: int) -> tuple[int, int, int]:
    """The colour of a track, BGR, the same in every frame; grey of what belongs to none."""
    return UNTRACKED_BGR if track_id < 0 else PALETTE_BGR[track_id % len(PALETTE_BGR)]


def draw_detections(frame_bgr: Frame, detections: Detections, *, labels: bool = True) -> Frame:
    """Draw boxes and their labels into a frame, in place, and below them the masks there are.

    Where there are tracks, colours are theirs; otherwise those of the classes. Lines and zones
    that are counted are drawn with their figures.

    Args:
        frame_bgr: (h, w, 3) uint8, contiguous.
        detections: boxes in pixels of this frame, with or without masks and tracks.
        labels: write "name 0.87" at each box, "#4 name 0.87" of a track.

    Returns:
        The same frame.
    """
    import cv2

    colours = _colours_of(detections)
    if detections.masks is not None:
        _tint_masks(frame_bgr, detections.masks, colours)
    thickness, font_scale = sizes_of(frame_bgr)
    corners = np.rint(detections.boxes_xyxy).astype(np.int32).tolist()
    rows = zip(corners, _texts_of(detections), colours, strict=True)
    for (x1, y1, x2, y2), text, colour in reversed(list(rows)):  # the surest lies on top
        cv2.rectangle(frame_bgr, (x1, y1), (x2 - 1, y2 - 1), colour, thickness)
        if labels:
            _paste_label(frame_bgr, _render(text, colour, font_scale), x1, y1, thickness)
    if detections.counts is not None:
        from runtime.tracking.drawing import draw_counts

        draw_counts(frame_bgr, detections.counts)
    return frame_bgr


def paste_text(
    frame_bgr: Frame, text: str, centre_xy: tuple[float, float], colour: tuple[int, int, int]
) -> None:
    """Write a text on its colour around a place, moved so that it is seen; in place."""
    label = _render(text, colour, sizes_of(frame_bgr)[1])
    height, width = label.shape[:2]
    _paste(frame_bgr, label, round(centre_xy[0] - width / 2), round(centre_xy[1] - height / 2))


def _colours_of(detections: Detections) -> list[tuple[int, int, int]]:
    if detections.track_ids is None:
        return [class_colour(index) for index in detections.classes.tolist()]
    return [track_colour(track_id) for track_id in detections.track_ids.tolist()]


def _texts_of(detections: Detections) -> list[str]:
    rows = zip(detections.classes.tolist(), detections.scores.tolist(), strict=True)
    texts = [f"{detections.names[index]} {score:.2f}" for index, score in rows]
    if detections.track_ids is None:
        return texts
    numbers = detections.track_ids.tolist()
    return [t if n < 0 else f"#{n} {t}" for n, t in zip(numbers, texts, strict=True)]


def draw_caption(frame_bgr: Frame, lines: Sequence[str]) -> Frame:
    """Write lines of text into the frame's upper left corner, in place."""
    _, font_scale = sizes_of(frame_bgr)
    top = _MARGIN
    for line in lines:
        label = _render(line, _DARK, font_scale)
        _paste(frame_bgr, label, _MARGIN, top)
        top += label.shape[0]
    return frame_bgr


def _tint_masks(frame_bgr: Frame, masks: Masks, colours: Sequence[tuple[int, int, int]]) -> None:
    """Mix their colours into the objects, each within its box only."""
    import cv2

    scratch = np.empty(
        frame_bgr.size, np.uint8
    )  # new memory for each mask costs more than the mask
    for index in reversed(range(len(masks))):
        x1, y1, inside = masks.crop(index)
        if not inside.any():
            continue
        part = frame_bgr[y1 : y1 + inside.shape[0], x1 : x1 + inside.shape[1]]
        faded = scratch[: part.size].reshape(part.shape)
        cv2.convertScaleAbs(part, dst=faded, alpha=1 - _MASK_OPACITY)
        # Whole numbers: with others OpenCV adds in float32, ten times slower.
        ink = np.rint(np.multiply((*colours[index], 0), _MASK_OPACITY))
        mixed = cv2.add(faded, ink, dst=part, mask=inside.view(np.uint8))
        if mixed is not part:
            np.copyto(part, mixed, where=inside[:, :, None])


def sizes_of(frame_bgr: Frame) -> tuple[int, float]:
    """Line thickness in pixels and font scale that suit the frame's size."""
    side = min(frame_bgr.shape[:2])
    return max(1, round(side / 270)), max(0.4, round(side / 1000, 1))


def _paste_label(frame_bgr: Frame, label: Frame, x1: int, y1: int, thickness: int) -> None:
    """Above the box; inside its upper edge where there is no room above."""
    top = y1 - label.shape[0] - thickness // 2
    _paste(frame_bgr, label, x1 - thickness // 2, top if top >= 0 else y1)


def _paste(frame_bgr: Frame, label: Frame, left: int, top: int) -> None:
    """Copy a label into the frame, moved so that as much as fits is seen."""
    height, width = frame_bgr.shape[:2]
    left = max(0, min(left, width - label.shape[1]))
    top = max(0, min(top, height - label.shape[0]))
    part = label[: height - top, : width - left]
    frame_bgr[top : top + part.shape[0], left : left + part.shape[1]] = part


@functools.lru_cache(_LABELS_KEPT)
def _render(text: str, colour: tuple[int, int, int], font_scale: float) -> NDArray[np.uint8]:
    """A label as a small picture: drawing text is slow, and the same labels come every frame."""
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX
    weight = 1 if font_scale < 1.2 else 2
    (width, height), below = cv2.getTextSize(text, font, font_scale, weight)
    size = (height + below + 2 * _MARGIN, width + 2 * _MARGIN, 3)
    label = np.full(size, colour, np.uint8)
    luma = sum(part * weight_ for part, weight_ in zip(colour, _LUMA_BGR, strict=True))
    ink = _DARK if luma > _BRIGHT_LUMA else _LIGHT
    origin = (_MARGIN, _MARGIN + height)
    cv2.putText(label, text, origin, font, font_scale, ink, weight, cv2.LINE_AA)
    return label
