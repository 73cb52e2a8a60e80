"""What every frame cost, stage by stage, in bounded memory and with nothing cut off."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The stages in the order in which a frame passes them. "total" is from the start of capture until
# every sink has the frame, waits between threads included; "age" is until its results are there.
STAGES = ("capture", "preprocess", "engine", "finish", "draw", "sink", "total", "age")
CHUNK = 4096  # rows allocated at a time
AT_ONCE = 16_384  # rows: a table of up to so many is there from the beginning, and never grows
PERCENTILES = (50.0, 90.0, 99.0)


@dataclass(frozen=True, slots=True)
class Spread:
    """How one stage's milliseconds are spread: over all frames, the slowest included."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class StageTimes:
    """Milliseconds of every stage of every frame.

    Percentiles are exact up to `capacity` frames. From there on a uniform sample of `capacity`
    whole frames is kept (reservoir sampling, so no part of the spread is favoured or cut);
    count, mean and maximum stay exact for ever. Memory: 4 bytes x stages x capacity at most.
    One thread adds; any thread may read.

    Args:
        capacity: frames that are kept.
        stages: names of the columns.
    """

    def __init__(self, capacity: int = 100_000, stages: Sequence[str] = STAGES) -> None:
        assert capacity >= 1
        self.stages = tuple(stages)
        self.capacity = capacity
        self.num_frames = 0
        num_rows = capacity if capacity <= AT_ONCE else 0
        self._rows = np.full((num_rows, len(self.stages)), np.nan, np.float32)
        self._counts = np.zeros(len(self.stages), np.int64)
        self._sums = np.zeros(len(self.stages), np.float64)
        self._maxima = np.full(len(self.stages), -np.inf)
        self._random = random.Random(0)

    @property
    def is_exact(self) -> bool:
        """Whether every frame is still there."""
        return self.num_frames <= self.capacity

    def add(self, times_ms: Mapping[str, float]) -> None:
        """Note one frame; a stage that did not happen is left out of the mapping."""
        row = np.array([times_ms.get(stage, np.nan) for stage in self.stages])
        is_there = ~np.isnan(row)
        self._counts += is_there
        self._sums += np.where(is_there, row, 0.0)
        self._maxima = np.fmax(self._maxima, row)
        place = self.num_frames
        if place >= self.capacity:
            place = self._random.randrange(self.num_frames + 1)
        elif place == len(self._rows):
            size = min(place + max(CHUNK, place // 2), self.capacity)
            grown = np.empty((size, len(self.stages)), np.float32)
            grown[:place] = self._rows
            self._rows = grown
        if place < self.capacity:
            self._rows[place] = row
        self.num_frames += 1

    def samples(self, stage: str) -> NDArray[np.float32]:
        """(N,) milliseconds of one stage, in the order of frames while `is_exact`."""
        column = self._rows[: min(self.num_frames, self.capacity), self.stages.index(stage)]
        return column[~np.isnan(column)]

    def percentile(self, stage: str, percent: float) -> float:
        """0..100 -> milliseconds, interpolated as numpy.percentile does; NaN without a sample."""
        samples = self.samples(stage)
        return float(np.percentile(samples, percent)) if len(samples) else float("nan")

    def spread(self, stage: str) -> Spread | None:
        """Percentiles, mean and maximum of one stage; None if it never happened."""
        column = self.stages.index(stage)
        count = int(self._counts[column])
        if count == 0:
            return None
        samples = self.samples(stage)
        p50, p90, p99 = np.percentile(samples, PERCENTILES) if len(samples) else [float("nan")] * 3
        return Spread(
            count,
            float(self._sums[column] / count),
            float(p50),
            float(p90),
            float(p99),
            float(self._maxima[column]),
        )

    def spreads(self) -> dict[str, Spread]:
        """Every stage that happened."""
        found = {stage: self.spread(stage) for stage in self.stages}
        return {stage: spread for stage, spread in found.items() if spread is not None}


class RateMeter:
    """Frames a second over the last moments, for showing.

    Args:
        window: frames that are looked back upon.
        seconds: the same in time; older frames are forgotten.
    """

    def __init__(self, window: int = 64, seconds: float = 2.0) -> None:
        self._ticks: deque[float] = deque(maxlen=window)
        self._seconds = seconds

    def tick(self, now_s: float) -> None:
        """Note a frame at `now_s` of a rising clock."""
        self._ticks.append(now_s)
        while len(self._ticks) > 2 and now_s - self._ticks[0] > self._seconds:
            self._ticks.popleft()

    @property
    def fps(self) -> float:
        """0 until two frames were seen."""
        if len(self._ticks) < 2 or self._ticks[-1] <= self._ticks[0]:
            return 0.0
        return (len(self._ticks) - 1) / (self._ticks[-1] - self._ticks[0])
