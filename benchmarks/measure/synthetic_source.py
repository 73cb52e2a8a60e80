"""Pictures from memory as a source: a file, as fast as asked for, or a camera by the clock."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np

from runtime.pipeline.sources import Frame, Image, Source
from runtime.pipeline.sources.base import NoFrameYet, SourceState

NUM_PICTURES = 8
NOISE = 2.0  # standard deviation in grey levels, as of a camera by day
LONGEST_READ_S = 0.5  # of a camera that stalls


class SyntheticSource(Source):
    """Pictures of a gradient with a camera's noise, copied out one after the other.

    A live one has a picture at each tick of its rate from the first read on, whoever is late; its
    capture time is that of the tick, so lateness counts in its age. While it stalls there is none.

    Args:
        name: of the source.
        size_wh: of the pictures.
        fps: nominal rate; of a live one, how often a picture comes.
        is_live: a camera.
        num_frames: then it ends; None never does.
        seconds: of a live one, it ends after so long; None never does.
        stall: (every_s, length_s): a live one gives nothing in the last `length_s` of every
            `every_s` seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        size_wh: tuple[int, int],
        fps: float,
        is_live: bool,
        num_frames: int | None = None,
        seconds: float | None = None,
        stall: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(name, fps=fps, is_live=is_live)
        self.size_wh = size_wh
        self.num_promised = num_frames
        self.num_ticks_stalled = 0
        self._num_frames = num_frames
        self._seconds = seconds
        self._stall = stall
        self._pictures = make_pictures(size_wh)
        self._ticks: Iterator[int] = itertools.count()
        self._tick: int | None = None  # under way
        self._started: float | None = None

    def read(self) -> Frame | None:
        begun = time.perf_counter()
        if self._started is None:
            self._started = begun
        index = self.num_decoded
        if index == self._num_frames:
            return None
        captured_at = self._wait_for_tick() if self.is_live else begun
        if captured_at is None:
            return None
        if self.state is SourceState.STALLED:
            self.set_state(SourceState.RUNNING)
        copied = time.perf_counter()
        picture = self._pictures[index % len(self._pictures)]
        buffer = self.take_buffer()
        image = np.empty_like(picture) if buffer is None else buffer
        np.copyto(image, picture)
        self.num_decoded += 1
        time_s = captured_at - self._started if self.is_live else index / self.fps
        capture_ms = (time.perf_counter() - copied) * 1e3
        return Frame(image, index, time_s, captured_at, capture_ms, self.name)

    def close(self) -> None:
        self._num_frames = self.num_decoded

    def _wait_for_tick(self) -> float | None:
        """When the next picture was there; None at the end."""
        assert self._started is not None
        give_up = time.perf_counter() + LONGEST_READ_S
        while True:
            if self._tick is None:
                self._tick = next(self._ticks)
            due_s = self._tick / self.fps
            if self._seconds is not None and due_s >= self._seconds:
                return None
            due = self._started + due_s
            if due > give_up:
                time.sleep(max(give_up - time.perf_counter(), 0.0))
                raise NoFrameYet
            time.sleep(max(due - time.perf_counter(), 0.0))
            self._tick = None
            if not self._stalls_at(due_s):
                return due
            self.num_ticks_stalled += 1
            self.set_state(SourceState.STALLED)

    def _stalls_at(self, time_s: float) -> bool:
        if self._stall is None:
            return False
        every_s, length_s = self._stall
        return round(time_s % every_s, 6) >= round(every_s - length_s, 6)


def make_pictures(size_wh: tuple[int, int], count: int = NUM_PICTURES) -> list[Image]:
    """`count` pictures, (H, W, 3) uint8, BGR."""
    width, height = size_wh
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 160, width, dtype=np.float32)[None, :, None]
    pictures = []
    for number in range(count):
        noise = random.normal(0.0, NOISE, (height, width, 3)).astype(np.float32)
        shifted = np.roll(ramp, 4 * number, axis=1) + np.asarray((0, 30, 60), np.float32)
        pictures.append(np.clip(shifted + noise, 0, 255).astype(np.uint8))
    return pictures
