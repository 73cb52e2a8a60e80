"""A line on the terminal that says how the run goes."""

from __future__ import annotations

import time
from typing import TextIO

from runtime.pipeline.sinks.base import FrameResult, Sink
from runtime.pipeline.timing import RateMeter

INTERVAL_S = 1.0


class ProgressSink(Sink):
    """Rewrites one line a second: frames, frames a second, age, dropped frames."""

    target = "terminal"
    is_waited_for = False

    def __init__(self, stream: TextIO, num_promised: int | None) -> None:
        self._stream = stream
        self._of = f"/{num_promised}" if num_promised else ""
        self._rate = RateMeter()
        self._num_frames = 0
        self._num_captured: dict[str, int] = {}  # by source
        self._shown_at = time.perf_counter()
        self._width = 0

    def write(self, result: FrameResult) -> None:
        now = time.perf_counter()
        self._rate.tick(now)
        self._num_frames += 1
        self._num_captured[result.frame.source] = result.frame.index + 1
        if now - self._shown_at < INTERVAL_S:
            return
        self._shown_at = now
        num_dropped = sum(self._num_captured.values()) - self._num_frames
        dropped = f"  dropped {num_dropped}" if num_dropped else ""
        self._show(
            f"{self._num_frames}{self._of} frames  {self._rate.fps:.1f} fps  "
            f"age {result.age_ms:.0f} ms{dropped}"
        )

    def close(self) -> None:
        if self._width:
            self._show("")
            self._stream.write("\r")
            self._stream.flush()
            self._width = 0

    def _show(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)
