"""`render_frame`: one frame of the street with the labels that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data.street import truth
from training.data.street.faces import faces_of
from training.data.street.render import Painting, paint_frame
from training.data.street.vocabulary import LABELS


@dataclass(frozen=True, slots=True, kw_only=True)
class StreetFrame:
    """A frame and its truth; N objects, in pixels of the image; what was not asked for is None.

    image: (H, W, 3) uint8 BGR.
    boxes_xyxy: (N, 4) float32, the tight box of the visible mask: x2, y2 are past the last pixel.
    classes: (N,) int64, index into CLASSES.
    visibility: (N,) float32 0..1, visible over amodal area inside the frame.
    is_crowd: (N,) bool, too little of it is seen (under 25 % of the whole): to be ignored.
    track_ids: (N,) int64, stable over the frames of one seed.
    amodal_xyxy: (N, 4) float32, the box of the object as if nothing stood before it.
    masks: (N, H, W) uint8 0/1, visible pixels.
    keypoints_xyv: (N, 17, 3) float32, COCO joints and v (0 none, 1 hidden, 2 seen).
    landmarks_xyv: (N, 5, 3) float32, LANDMARK_NAMES, v likewise; asked for as "landmarks", as are
    faces_xyxy: (N, 4) float32, the box of the face of a person who does not look away, else 0.
    face_visibility: (N,) float32 0..1, how much of that box's middle one sees of the person.
    semantic: (H, W) uint8, index into SEMANTIC_CLASSES.
    panoptic: (H, W) int32, semantic x 10000 + track id (0 for stuff).
    depth: (H, W) float32 metres, 1000 in the sky.
    flow: (H, W, 2) float32 pixels (x, y) to the frame at index + 1.
    is_blurred, is_shadowed: out of focus or shaken; much of the ground in the houses' shade.
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    classes: np.ndarray
    visibility: np.ndarray
    is_crowd: np.ndarray
    track_ids: np.ndarray
    amodal_xyxy: np.ndarray
    is_blurred: bool
    is_shadowed: bool
    masks: np.ndarray | None = None
    keypoints_xyv: np.ndarray | None = None
    landmarks_xyv: np.ndarray | None = None
    faces_xyxy: np.ndarray | None = None
    face_visibility: np.ndarray | None = None
    semantic: np.ndarray | None = None
    panoptic: np.ndarray | None = None
    depth: np.ndarray | None = None
    flow: np.ndarray | None = None

    @property
    def is_degraded(self) -> bool:
        """Blurred or shadowed."""
        return self.is_blurred or self.is_shadowed


def check_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    """The size as two ints, or ValueError."""
    height, width = int(size_hw[0]), int(size_hw[1])
    if not (64 <= height <= 2160 and 64 <= width <= 3840):
        raise ValueError(
            f"size_hw is {height}x{width}; expected height 64 to 2160 and width 64 to 3840. "
            "Give (height, width) in pixels, such as (432, 768)."
        )
    return height, width


def check_labels(labels: Sequence[str]) -> frozenset[str]:
    """The labels as a set, or ValueError where one is unknown."""
    if isinstance(labels, str):
        labels = (labels,)
    unknown = [label for label in labels if label not in LABELS]
    if unknown:
        raise ValueError(
            f"unknown label {unknown[0]!r}; expected some of {', '.join(LABELS)}. "
            "Correct the spelling or leave it out."
        )
    return frozenset(labels)


def render_frame(
    seed: int,
    index: int = 0,
    *,
    size_hw: tuple[int, int] = (432, 768),
    labels: Sequence[str] = ("boxes",),
) -> StreetFrame:
    """Render frame `index` (25 a second) of the scene of a seed, with its truth.

    Args:
        seed: 0 or more; fixes the street, its weather, its objects and the camera's path.
        index: 0 or more; neighbouring indices make a coherent video.
        size_hw: height and width of the frame in pixels.
        labels: some of LABELS. Boxes and what is cheap always come; the image never depends on it.
    """
    if seed < 0 or index < 0:
        raise ValueError(
            f"seed is {seed} and index {index}; expected both to be 0 or more. Choose others."
        )
    asked = check_labels(labels)
    return label_painting(paint_frame(int(seed), int(index), check_size(size_hw)), asked)


def label_painting(painting: Painting, asked: frozenset[str]) -> StreetFrame:
    """A painting with the labels of it that are asked for, some of LABELS."""
    found = truth.find_objects(painting)
    more: dict[str, np.ndarray] = {}
    if "masks" in asked:
        more["masks"] = truth.masks_of(painting, found)
    if "keypoints" in asked:
        more["keypoints_xyv"] = truth.keypoints_of(painting, found)
    if "landmarks" in asked:
        more["landmarks_xyv"] = truth.landmarks_of(painting, found)
        more["faces_xyxy"], more["face_visibility"] = faces_of(painting, found)
    if asked & {"semantic", "panoptic", "depth", "flow"}:
        backdrop = truth.backdrop_of(painting)
        semantic, depth = truth.semantic_of(painting, backdrop), truth.depth_of(painting, backdrop)
        dense = {"semantic": semantic, "depth": depth}
        if "panoptic" in asked:
            dense["panoptic"] = truth.panoptic_of(painting, semantic)
        if "flow" in asked:
            dense["flow"] = truth.flow_of(painting, depth)
        more |= {name: value for name, value in dense.items() if name in asked}
    amodal = [
        (f.painted.x, f.painted.y, f.painted.x + f.painted.solid.shape[1],
         f.painted.y + f.painted.solid.shape[0]) for f in found
    ]  # fmt: skip
    return StreetFrame(
        image=painting.image,
        boxes_xyxy=np.array([f.box_xyxy for f in found], np.float32).reshape(-1, 4),
        classes=np.array([f.painted.placed.actor.kind for f in found], np.int64),
        visibility=np.array([f.visibility for f in found], np.float32),
        is_crowd=np.array([f.is_crowd for f in found], bool),
        track_ids=np.array([f.painted.placed.track_id for f in found], np.int64),
        amodal_xyxy=np.array(amodal, np.float32).reshape(-1, 4),
        is_blurred=painting.is_blurred,
        is_shadowed=painting.is_shadowed,
        **more,
    )
