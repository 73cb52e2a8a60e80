"""What every data set gives: one image with its labels, and the interface that holds many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


class DataError(ValueError):
    """A data set cannot be used as it is: says what came, what was expected, what to do."""


@dataclass(slots=True, kw_only=True)
class Sample:
    """One image and its labels, all in pixels of that image, continuous coordinates.

    The pixel in column c covers c..c+1, so a box around the whole image is (0, 0, W, H).

    Attributes:
        image: (H, W, 3) uint8, BGR.
        boxes_xyxy: (N, 4) float32 as (x1, y1, x2, y2), pixels, x2 and y2 exclusive.
        classes: (N,) int64, 0..K-1, an index into ``Source.classes``.
        is_crowd: (N,) bool; a crowd is a region to ignore, not one object.
        image_id: as in the data set; unique within a source.
        file_name: of the image, as in the data set.
        masks: (N, H, W) uint8, 0 or 1; None where the data set has none.
        keypoints_xyv: (N, J, 3) float32 as (x, y, v), pixels; v is 0 (not labelled),
            1 (labelled, hidden) or 2 (visible), as in COCO. None where the data set has none.
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray
    image_id: int
    file_name: str
    masks: np.ndarray | None = None
    keypoints_xyv: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.check()

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    @property
    def image_hw(self) -> tuple[int, int]:
        return int(self.image.shape[0]), int(self.image.shape[1])

    def check(self) -> None:
        """Hold shapes and types to what the class promises; reads no pixel."""
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise DataError(
                f"{self.file_name}: image is {self.image.dtype} {self.image.shape}; "
                "expected uint8 (H, W, 3) in BGR. Convert it before making a Sample."
            )
        height, width = self.image.shape[:2]
        num = len(self.boxes_xyxy)
        self._expect("boxes_xyxy", self.boxes_xyxy, (num, 4), np.float32)
        self._expect("classes", self.classes, (num,), np.int64)
        self._expect("is_crowd", self.is_crowd, (num,), np.bool_)
        if self.masks is not None:
            self._expect("masks", self.masks, (num, height, width), np.uint8)
        if self.keypoints_xyv is not None:
            joints = self.keypoints_xyv.shape[1] if self.keypoints_xyv.ndim == 3 else -1
            self._expect("keypoints_xyv", self.keypoints_xyv, (num, joints, 3), np.float32)

    def _expect(self, name: str, value: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
        if value.shape != shape or value.dtype != dtype:
            raise DataError(
                f"{self.file_name}: {name} is {value.dtype} {value.shape}; expected "
                f"{np.dtype(dtype)} {shape}. One row per object, in the order of boxes_xyxy."
            )


@runtime_checkable
class Source(Protocol):
    """A split of a data set: a sequence of samples and the names of its classes.

    Attributes:
        classes: K names; ``Sample.classes`` indexes them.
        category_ids: K ids as the data set numbers them; COCO's have gaps.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
