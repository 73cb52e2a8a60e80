"""Masks of one frame: small and soft as the network gives them, enlarged where someone asks."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.contract.outputs import MASK_INSIDE
from runtime.preprocess import Letterbox
from runtime.rle import encode_runs

_ROUNDING = 1e-3  # of one step: a plain 128 that float32 gives as 127.99999 is inside
_AXES_KEPT = 8


class MaskCrop(NamedTuple):
    """A mask where its box lies.

    Attributes:
        x1, y1: upper left pixel, in the source frame.
        inside: (h, w) bool; empty where the box is.
    """

    x1: int
    y1: int
    inside: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """Masks of the objects of one frame, in their order.

    A mask of the frame is the soft mask sampled at the centre of every pixel of the frame
    (bilinear, half-pixel centres, through the inverse of the letterbox), and inside where that is
    128 or more. It is made each time it is asked for, within the box only: what lies beyond the
    box, rounded outward to whole pixels, is outside.

    Attributes:
        soft: (N, h, w) uint8, 0..255, over the network's input, at prototype size.
        boxes_xyxy: (N, 4) float32, pixels of the source frame, inside it.
        letterbox: between the source frame and the network's input.
    """

    soft: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    letterbox: Letterbox

    def __len__(self) -> int:
        return len(self.soft)

    def __getitem__(self, index: slice | NDArray[Any] | list[int]) -> Masks:
        """A part of them, as of `Detections`."""
        return Masks(self.soft[index], self.boxes_xyxy[index], self.letterbox)

    def crop(self, index: int) -> MaskCrop:
        """One mask within its box; the cheapest way to it."""
        height, width = self.letterbox.source_hw
        x1, y1, x2, y2 = self.boxes_xyxy[index].tolist()
        columns = slice(max(0, int(x1)), min(width, int(np.ceil(x2))))
        rows = slice(max(0, int(y1)), min(height, int(np.ceil(y2))))
        if columns.start >= columns.stop or rows.start >= rows.stop:
            return MaskCrop(columns.start, rows.start, np.zeros((0, 0), np.bool_))
        axes = _make_axes(self.letterbox, self.soft.shape[1:])
        return MaskCrop(columns.start, rows.start, _enlarge(self.soft[index], axes, rows, columns))

    def bitmap(self, index: int) -> NDArray[np.bool_]:
        """One mask as (H, W) bool, of the source frame."""
        bitmap = np.zeros(self.letterbox.source_hw, np.bool_)
        x1, y1, inside = self.crop(index)
        bitmap[y1 : y1 + inside.shape[0], x1 : x1 + inside.shape[1]] = inside
        return bitmap

    def bitmaps(self) -> list[NDArray[np.bool_]]:
        """All masks as (H, W) bool; a hundred of a full HD frame take 200 MB."""
        return [self.bitmap(index) for index in range(len(self))]

    def rle(self, index: int) -> dict[str, Any]:
        """One mask as COCO's {"size": [H, W], "counts": compressed text}."""
        x1, y1, inside = self.crop(index)
        size = self.letterbox.source_hw
        return {"size": list(size), "counts": encode_runs(inside, x1, y1, size)}

    def polygons(self, index: int) -> list[NDArray[np.int32]]:
        """One mask's outer outlines, as OpenCV finds them; holes are left out.

        Returns:
            For each part (n, 2) int32 as (x, y): pixels of the mask's rim, in the source frame.
        """
        import cv2

        x1, y1, inside = self.crop(index)
        if not inside.size:
            return []
        found, _ = cv2.findContours(
            inside.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x1, y1)
        )
        return [np.asarray(outline, np.int32).reshape(-1, 2) for outline in found]


class _Part(NamedTuple):
    """Some pixels of a frame's side, and the soft pixels first..stop that they are made of."""

    shares: NDArray[np.float32]
    first: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """One side of a frame on the same side of its soft masks.

    Attributes:
        shares: (size, n) float32, how much of each soft pixel each pixel of the frame takes.
        below, above: (size,) the two soft pixels that it takes of.
    """

    shares: NDArray[np.float32]
    below: NDArray[np.intp]
    above: NDArray[np.intp]

    def cut(self, part: slice) -> _Part:
        first, stop = int(self.below[part.start]), int(self.above[part.stop - 1]) + 1
        return _Part(self.shares[part, first:stop], first, stop)


@functools.lru_cache(_AXES_KEPT)
def _make_axes(letterbox: Letterbox, soft_hw: tuple[int, int]) -> tuple[_Axis, _Axis]:
    """Which rows and columns of soft masks make up those of a frame."""
    axes = []
    for side, first in ((0, letterbox.top), (1, letterbox.left)):
        size, last = letterbox.source_hw[side], soft_hw[side] - 1
        inputs = (np.arange(size) + 0.5) * letterbox.content_hw[side] / size + first
        places = inputs * soft_hw[side] / letterbox.network_hw[side] - 0.5
        places = places.clip(0, last)  # beyond the edge lies the edge
        below = places.astype(np.intp)
        above = np.minimum(below + 1, last)
        shares = np.zeros((size, last + 1), np.float32)
        shares[np.arange(size), below] = 1
        shares[np.arange(size), below] -= places - below
        shares[np.arange(size), above] += places - below
        axes.append(_Axis(shares, below, above))
    return axes[0], axes[1]


def _enlarge(
    soft: NDArray[np.uint8], axes: tuple[_Axis, _Axis], rows: slice, columns: slice
) -> NDArray[np.bool_]:
    """Sample a soft mask (h, w) at a part of the frame's rows and columns, and compare.

    Bilinear sampling is a product with a matrix on either side, which NumPy does faster than to
    look up and mix neighbours.
    """
    on_y, on_x = (axis.cut(part) for axis, part in zip(axes, (rows, columns), strict=True))
    few = soft[on_y.first : on_y.stop, on_x.first : on_x.stop].astype(np.float32)
    values = on_y.shares @ (few @ on_x.shares.T)
    return np.asarray(values >= MASK_INSIDE - _ROUNDING)
