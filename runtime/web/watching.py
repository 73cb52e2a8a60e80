"""What the pipeline tells of itself, read once a second: figures of each source, and its health."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from runtime.pipeline.accounting import CORRUPT, SourceSummary
from runtime.pipeline.sources.base import SourceState
from runtime.pipeline.stages import Pipeline
from runtime.web.board import Board
from runtime.web.history import RecentTimes

RATE_S = 5.0  # frames a second are of so many seconds
LONGEST_QUIET_S = 10.0  # without any frame, and the run is not well
LONGEST_START_S = 60.0  # the same before the first frame
_OVER = (SourceState.ENDED, SourceState.FAILED)


@dataclass(slots=True)
class _Rate:
    """Frames a second of one source, from its own count."""

    seen: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, now: float, count: int) -> float:
        """Add what the count is now; the rate over the last RATE_S."""
        self.seen.append((now, count))
        while len(self.seen) > 2 and now - self.seen[0][0] > RATE_S:
            self.seen.popleft()
        begun, first = self.seen[0]
        return (count - first) / (now - begun) if now > begun else 0.0


class Watch:
    """The figures of a run that goes on; nothing is counted again.

    For the server's thread. `sample` is to be called once a second; what is read is as of then.

    Args:
        pipeline: whose sources, accounts and ages are told.
        times: those that the pipeline adds to.
        board: what its sources showed last.
    """

    def __init__(self, pipeline: Pipeline, times: RecentTimes, board: Board) -> None:
        self._pipeline = pipeline
        self._board = board
        self._started = monotonic()
        self._rates = {lane: _Rate() for lane in pipeline.lanes.each}
        self._num_delivered = 0
        self._delivered_at = self._started
        self.times = times
        self.summaries: list[SourceSummary] = []
        self.rates: list[float] = []
        self.stages: list[dict[str, Any]] = []
        self.sample()

    @property
    def uptime_s(self) -> float:
        return monotonic() - self._started

    def sample(self) -> None:
        """Read the figures."""
        now = monotonic()
        lanes = self._pipeline.lanes.each
        self.summaries = [lane.summary() for lane in lanes]
        self.rates = [
            self._rates[lane].note(now, each.num_delivered)
            for lane, each in zip(lanes, self.summaries, strict=True)
        ]
        num_delivered = sum(each.num_delivered for each in self.summaries)
        if num_delivered != self._num_delivered:
            self._num_delivered, self._delivered_at = num_delivered, now
        self.stages = self.times.recent()

    def why_ill(self) -> str:
        """Why the run is not well, without names; "" where it is."""
        states = [source.state for source in self._pipeline.sources]
        if all(state in _OVER for state in states):
            has_failed = SourceState.FAILED in states
            return "all sources have failed or ended" if has_failed else "all sources have ended"
        quiet_s = monotonic() - self._delivered_at
        if quiet_s > (LONGEST_QUIET_S if self._num_delivered else LONGEST_START_S):
            return f"no frame was delivered for {quiet_s:.0f} s"
        return ""

    def sources_to_json(self) -> list[dict[str, Any]]:
        """Each source's state, rate, ages and counts."""
        return [
            self._source_to_json(summary, fps)
            for summary, fps in zip(self.summaries, self.rates, strict=True)
        ]

    def _source_to_json(self, summary: SourceSummary, fps: float) -> dict[str, Any]:
        shown = self._board.last(summary.name)
        ages = summary.ages
        age_ms = shown.age_ms
        if age_ms is not None:  # of what is to be seen: it grows while nothing comes
            age_ms += max(monotonic() - shown.seen_at, 0.0) * 1e3
        return {
            "name": summary.name,
            "state": summary.state.value,
            "error": summary.error,
            "fps": round(fps, 2),
            "age_ms": None if age_ms is None else round(age_ms, 2),
            "age_p50_ms": None if ages is None else round(ages.p50, 2),
            "age_p99_ms": None if ages is None else round(ages.p99, 2),
            "num_captured": summary.num_captured,
            "num_delivered": summary.num_delivered,
            "num_dropped": summary.num_dropped,
            "num_corrupt": summary.dropped[CORRUPT],
            "num_reconnects": summary.num_reconnects,
            "num_objects": shown.num_objects,
        }
