"""Frames to prove an export on, at network size, and the samples they come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from training.data import each_once, open_data
from training.data.geometry import letterbox
from training.data.sample import Sample, Source


def proof_samples(source: Source, count: int | None) -> Iterator[Sample]:
    """The first `count` labelled frames of an open split (None: all), in source pixels."""
    return itertools.islice(each_once(source), count)


def network_frames(data: str, size_hw: tuple[int, int], count: int) -> np.ndarray:
    """(N, H, W, 3) uint8 BGR, letterboxed; N is smaller where the data set is."""
    samples = proof_samples(open_data(data, "val"), count)
    return np.stack([letterbox(sample, size_hw).image for sample in samples])
