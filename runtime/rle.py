"""Masks as COCO's compressed run lengths, without COCO's tools.

Runs go down the columns of the whole frame, beginning with one of zeros; from the third run on,
what is written is the difference to the run before the last; five bits a character, 48 and up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BITS = 5
_MORE, _SIGN = 1 << _BITS, 1 << (_BITS - 1)
_FIRST_CHARACTER = 48
_MOST_CHARACTERS = 13  # of a 64-bit number


def encode_runs(inside: NDArray[np.bool_], x1: int, y1: int, frame_hw: tuple[int, int]) -> str:
    """The `counts` of a frame that is inside only in one place.

    Args:
        inside: (h, w) bool, that part of the frame; it may be empty.
        x1, y1: where its upper left pixel lies in the frame.
        frame_hw: height and width of the frame.
    """
    return _compress(count_runs(inside, x1, y1, frame_hw))


def count_runs(
    inside: NDArray[np.bool_], x1: int, y1: int, frame_hw: tuple[int, int]
) -> NDArray[np.int64]:
    """Lengths of the runs of zeros and ones in turn, as of `encode_runs`, not compressed."""
    height, width = frame_hw
    rows = inside.shape[0] + 2  # a zero above and one below, so that no column ends inside
    columns = np.zeros((inside.shape[1], rows), np.bool_)
    columns[:, 1:-1] = inside.T
    flat = columns.reshape(-1)
    edges = (
        np.flatnonzero(flat[1:] != flat[:-1]) + 1
    )  # where a run begins and where it ends, in turn
    edges = (edges // rows + x1) * height + edges % rows - 1 + y1
    starts, ends = edges[::2], edges[1::2]
    is_apart = starts[1:] > ends[:-1]  # a run may go on at the top of the next column
    starts = starts[np.concatenate([[True], is_apart])[: len(starts)]]
    ends = ends[np.concatenate([is_apart, [True]])[: len(ends)]]
    bounds = np.stack([starts, ends], axis=1).reshape(-1)
    runs = np.diff(bounds, prepend=0, append=height * width)
    return np.asarray(runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs, np.int64)


def _compress(runs: NDArray[np.int64]) -> str:
    rest = runs.copy()
    rest[3:] -= runs[1:-2]
    characters = np.zeros((len(rest), _MOST_CHARACTERS), np.uint8)
    is_used = np.zeros(characters.shape, np.bool_)
    is_open = np.ones(len(rest), np.bool_)
    for place in range(_MOST_CHARACTERS):
        is_used[:, place] = is_open
        low = rest & (_MORE - 1)
        rest >>= _BITS
        is_more = np.where(low & _SIGN, rest != -1, rest != 0)
        characters[:, place] = low + _MORE * is_more + _FIRST_CHARACTER
        is_open &= is_more
        if not is_open.any():
            break
    return characters[is_used].tobytes().decode("ascii")
