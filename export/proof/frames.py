"""Frames to prove an export on, at network size, and the samples they come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from training.data import each_once, open_data
from training.data.geometry import letterbox
from training.data.sample import Sample


def proof_samples(data: str, count: int | None, split: str = "val") -> Iterator[Sample]:
    """The first `count` labelled frames of a split (None: all), in source pixels."""
    return itertools.islice(each_once(open_data(data, split)), count)


def network_frames(data: str, size_hw: tuple[int, int], count: int) -> np.ndarray:
    """(N, H, W, 3) uint8 BGR, letterboxed; N is smaller where the data set is."""
    return np.stack([letterbox(s, size_hw).image for s in proof_samples(data, count)])
