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

_LIMIT = np.float32(MASK_INSIDE - 1e-3)  # a plain 128 that float32 gives as 127.99999 is inside
_AXES_KEPT = 8
_BLOCK_ROWS = 64  # of the frame that are enlarged at a time


class MaskCrop(NamedTuple):
    """A mask where its object lies.

    Attributes:
        x1, y1: upper left pixel, in the source frame.
        inside: (h, w) bool; empty where no pixel can be inside.
    """

    x1: int
    y1: int
    inside: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """Masks of the objects of one frame, in their order.

    A mask of the frame is the soft mask sampled at the centre of every pixel of the frame
    (bilinear, half-pixel centres, through the inverse of the letterbox), and inside where that is
    128 or more. It is made each time it is asked for, around the object only.

    The graph has cropped the soft mask to its box and one soft pixel around it, and nothing is cut
    after that, as YOLACT publishes it: a mask may reach some pixels beyond its box.

    Attributes:
        soft: (N, h, w) uint8, 0..255, over the network's input, at prototype size.
        letterbox: between the source frame and the network's input.
    """

    soft: NDArray[np.uint8]
    letterbox: Letterbox

    def __len__(self) -> int:
        return len(self.soft)

    def __getitem__(self, index: slice | NDArray[Any] | list[int]) -> Masks:
        """A part of them, as of `Detections`."""
        return Masks(self.soft[index], self.letterbox)

    def crop(self, index: int) -> MaskCrop:
        """One mask around its object; the cheapest way to it."""
        soft = self.soft[index]
        is_high = soft >= MASK_INSIDE
        parts = []
        axes = _make_axes(self.letterbox, soft.shape)
        for axis, filled in zip(axes, (is_high.any(axis=1), is_high.any(axis=0)), strict=True):
            places = filled.nonzero()[0]
            parts.append(axis.reach(places[0], places[-1]) if len(places) else slice(0, 0))
        rows, columns = parts
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return MaskCrop(columns.start, rows.start, np.zeros((0, 0), np.bool_))
        return MaskCrop(columns.start, rows.start, _enlarge(soft, axes, rows, columns))

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
        below, above: (size,) the two soft pixels that it takes of, rising.
    """

    shares: NDArray[np.float32]
    below: NDArray[np.intp]
    above: NDArray[np.intp]

    def reach(self, first: int, last: int) -> slice:
        """The pixels of the frame that take of the soft pixels first..last."""
        start = int(self.above.searchsorted(first))
        return slice(start, int(self.below.searchsorted(last, side="right")))

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
    look up and mix neighbours; some rows at a time, since each takes of two soft rows only.
    """
    on_x = axes[1].cut(columns)
    few = soft[:, on_x.first : on_x.stop]
    inside = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
    for start in range(rows.start, rows.stop, _BLOCK_ROWS):
        block = slice(start, min(start + _BLOCK_ROWS, rows.stop))
        on_y = axes[0].cut(block)
        values = few[on_y.first : on_y.stop].astype(np.float32) @ on_x.shares.T
        part = inside[start - rows.start : block.stop - rows.start]
        np.greater_equal(on_y.shares @ values, _LIMIT, out=part)
    return inside
