"""A file played at its own rate, as a camera would give it."""

from __future__ import annotations

import time
from collections.abc import Callable

from runtime.pipeline.sources.base import Frame, NoFrameYet, Source

MOST_LATE_S = 0.25  # behind by more than this, a file goes on from where it is, and does not hurry
LONGEST_WAIT_S = 0.5  # of one call; a reader looks at its stop signal between two


class PacedSource(Source):
    """Frames of a file, none before its time; none is lost where the engine is slower.

    A frame's age counts from the moment that it was due.

    Args:
        source: of frames; closed with this one.
        clock: seconds that rise, such as `time.monotonic`.
        wait: sleeps for so many seconds.
    """

    def __init__(
        self,
        source: Source,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(source.name, fps=source.fps, is_live=source.is_live)
        self.size_wh = source.size_wh
        self.num_promised = source.num_promised
        self._source = source
        self._clock = clock
        self._wait = wait
        self._held: Frame | None = None
        self._read_at = 0.0
        self._begun_at: float | None = None

    def read(self) -> Frame | None:
        if self._held is None:
            self._held = self._read()
            self._read_at = self._clock()
        frame = self._held
        if frame is None:
            return None
        now = self._clock()
        if self._begun_at is None or now - (self._begun_at + frame.time_s) > MOST_LATE_S:
            self._begun_at = now - frame.time_s
        early_s = self._begun_at + frame.time_s - now
        if early_s > LONGEST_WAIT_S:
            self._wait(LONGEST_WAIT_S)
            raise NoFrameYet(f"the next frame of {self.name} is not due yet")
        if early_s > 0:
            self._wait(early_s)
        held_s = self._clock() - self._read_at
        frame.captured_at += held_s
        frame.wall_time_s += held_s
        self._held = None
        self.num_decoded += 1
        return frame

    def _read(self) -> Frame | None:
        try:
            return self._source.read()
        finally:
            self.num_corrupt = self._source.num_corrupt
            self.num_promised = self._source.num_promised

    def recycle(self, frame: Frame) -> None:
        self._source.recycle(frame)

    def close(self) -> None:
        self._source.close()
