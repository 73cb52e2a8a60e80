"""Run lengths are COCO's: held against its own tools, and read back by a decoder of our own."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.rle import count_runs, encode_runs


def decode(counts: str, height: int, width: int) -> np.ndarray:
    """COCO's `rleFrString` and `rleDecode`, one character and one run at a time."""
    runs: list[int] = []
    place = 0
    while place < len(counts):
        value, digit, is_more = 0, 0, True
        while is_more:
            code = ord(counts[place]) - 48
            value |= (code & 31) << (5 * digit)
            is_more = bool(code & 32)
            place, digit = place + 1, digit + 1
            if not is_more and code & 16:
                value |= -1 << (5 * digit)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    assert len(flat) == height * width
    return flat.reshape(width, height).T


def with_tools(bitmap: np.ndarray) -> str:
    from faster_coco_eval.core import mask

    counts = mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))["counts"]
    return counts.decode() if isinstance(counts, bytes) else counts


def place(inside: np.ndarray, x1: int, y1: int, height: int, width: int) -> np.ndarray:
    bitmap = np.zeros((height, width), bool)
    bitmap[y1 : y1 + inside.shape[0], x1 : x1 + inside.shape[1]] = inside
    return bitmap


CASES = {
    "nothing": (np.zeros((4, 5), bool), 1, 1, 9, 11),
    "no box": (np.zeros((0, 0), bool), 3, 4, 9, 11),
    "whole frame": (np.ones((9, 11), bool), 0, 0, 9, 11),
    "first pixel": (np.ones((1, 1), bool), 0, 0, 9, 11),
    "last pixel": (np.ones((1, 1), bool), 10, 8, 9, 11),
    "full columns": (np.ones((9, 3), bool), 4, 0, 9, 11),
    "bottom to top": (np.ones((9, 2), bool), 9, 0, 9, 11),
    "one row": (np.ones((1, 11), bool), 0, 5, 9, 11),
    "frame of one pixel": (np.ones((1, 1), bool), 0, 0, 1, 1),
    "runs beyond a thousand": (np.ones((700, 1), bool), 1200, 10, 720, 1280),
}


@pytest.mark.parametrize(("inside", "x1", "y1", "height", "width"), CASES.values(), ids=CASES)
def test_run_lengths_are_those_of_coco(inside, x1, y1, height, width):
    counts = encode_runs(inside, x1, y1, (height, width))
    bitmap = place(inside, x1, y1, height, width)
    assert counts == with_tools(bitmap)
    assert np.array_equal(decode(counts, height, width), bitmap)


def test_random_masks_are_encoded_as_coco_does():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 60, 2)
        y1, x1 = rng.integers(0, height), rng.integers(0, width)
        sides = rng.integers(0, height - y1 + 1), rng.integers(0, width - x1 + 1)
        inside = rng.random(sides) < rng.choice([0.02, 0.5, 0.98])
        if rng.random() < 0.5:  # runs that go on in the next column
            inside[:, rng.random(sides[1]) < 0.7] = True
        counts = encode_runs(inside, int(x1), int(y1), (int(height), int(width)))
        bitmap = place(inside, x1, y1, height, width)
        assert counts == with_tools(bitmap)
        assert np.array_equal(decode(counts, height, width), bitmap)


def test_runs_are_zeros_first_and_add_up_to_the_frame():
    inside = np.array([[True, False], [True, True]])
    runs = count_runs(inside, 1, 1, (4, 4))
    assert runs.tolist() == [5, 2, 3, 1, 5]
    assert count_runs(np.ones((4, 4), bool), 0, 0, (4, 4)).tolist() == [0, 16]
