"""How the letterbox kernel is called: a description of each frame, and the shape of the launch.

The geometry is `runtime/preprocess.py`'s; nothing of it is computed here a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.engines.kernels.shipped import LETTERBOX_ROW_BYTES, LETTERBOX_ROWS
from runtime.preprocess import Letterbox

BLOCK = (32, 8, 1)
_PIXELS = 4  # that a thread writes
_MOST_PLACES = 2**31 - 1  # the kernel counts half pixels of the frame in 32 bits

# `Row` in letterbox.cu; a test compares the two.
_ROW = np.dtype(
    [
        ("frame", "<u8"),
        ("pitch", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("channels", "<i4"),
        ("content_height", "<i4"),
        ("content_width", "<i4"),
        ("top", "<i4"),
        ("left", "<i4"),
        ("pad_value", "<i4"),
        ("reserved", "<i4"),
    ]
)
assert _ROW.itemsize == LETTERBOX_ROW_BYTES


@dataclass(frozen=True, slots=True)
class PlacedFrame:
    """A frame in memory that the GPU reads.

    Attributes:
        address: of its first byte.
        pitch: bytes from one line to the next.
        channels: 3 BGR, 4 BGRA or 1 grey, uint8.
        letterbox: for its size.
    """

    address: int
    pitch: int
    channels: int
    letterbox: Letterbox


def can_letterbox(letterbox: Letterbox) -> bool:
    """Whether the kernel's whole numbers hold this pair of sizes; all but absurd ones fit."""
    pairs = zip(letterbox.source_hw, letterbox.content_hw, strict=True)
    return all((2 * now + 1) * old <= _MOST_PLACES for old, now in pairs)


def pack_rows(frames: Sequence[PlacedFrame]) -> bytes:
    """The kernel's first argument; at most LETTERBOX_ROWS frames."""
    assert 1 <= len(frames) <= LETTERBOX_ROWS
    rows = np.zeros(LETTERBOX_ROWS, _ROW)
    for row, frame in zip(rows, frames, strict=False):
        letterbox = frame.letterbox
        row["frame"], row["pitch"], row["channels"] = frame.address, frame.pitch, frame.channels
        row["height"], row["width"] = letterbox.source_hw
        row["content_height"], row["content_width"] = letterbox.content_hw
        row["top"], row["left"] = letterbox.top, letterbox.left
        row["pad_value"] = letterbox.pad_value
    return rows.tobytes()


def grid_for(network_hw: tuple[int, int], num_frames: int) -> tuple[int, int, int]:
    """Blocks for the rows of a batch."""
    height, width = network_hw
    return -(-width // (BLOCK[0] * _PIXELS)), -(-height // BLOCK[1]), num_frames
