"""Frames of several sources that wait for one engine: a reader thread a source, turns for all.

A live source's lane holds its newest frame; a file's lane fills up and lets its reader wait. The
lane that has waited longest comes next, whatever the others do: a source that is slow, stalled or
gone has nothing waiting and so costs the others no turn.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from time import perf_counter

from runtime.contract.errors import KestrelError, one_line
from runtime.pipeline.accounting import AT_END, CORRUPT, REASONS, REPLACED, TOO_OLD, SourceSummary
from runtime.pipeline.ring import RingClosedError
from runtime.pipeline.sources.base import Frame, NoFrameYet, Source, SourceState
from runtime.pipeline.stopping import StopSignal
from runtime.pipeline.timing import AT_ONCE, RateMeter, StageTimes

FILE_FRAMES = 3  # decoded frames of a file that wait for the engine
LONGEST_BEFORE_S = 0.5  # a frame of a live source's opening waits while bundles load
AGES_KEPT = AT_ONCE  # a source's ages whose percentiles are exact

_log = logging.getLogger(__name__)


class Lane:
    """One source's way to the engine, and the count of its frames.

    Attributes:
        source: read by one thread, and closed at the end.
        rate: frames a second that were delivered.
        error: what the source failed with, or None.
        next_index: of the frame that would be next if none were dropped; of the inference.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.rate = RateMeter()
        self.error: BaseException | None = None
        self.next_index = 0
        self._capacity = 1 if source.is_live else FILE_FRAMES
        self._waiting: deque[Frame] = deque()
        self._waits_since = 0.0
        self._is_open = True
        self._num_read = 0
        self._num_delivered = 0
        self._num_reconnects = 0  # when the last frame was read
        self._begins_anew_at: int | None = None  # index of the first frame after a reconnect
        self._dropped = dict.fromkeys(REASONS, 0)
        self._ages = StageTimes(AGES_KEPT, stages=("age",))
        self._reader: threading.Thread | None = None

    def begins_anew(self, frame: Frame) -> bool:
        """Whether a frame is the first that is inferred since the source came back; told once."""
        first = self._begins_anew_at
        if first is None or frame.index < first:
            return False
        self._begins_anew_at = None
        return True

    def note_delivered(self, age_ms: float) -> None:
        """Count a frame whose results every sink was given."""
        self.rate.tick(perf_counter())
        self._num_delivered += 1
        self._ages.add({"age": age_ms})

    @property
    def num_delivered(self) -> int:
        """Frames whose results every sink was given, so far."""
        return self._num_delivered

    @property
    def num_dropped(self) -> int:
        """Decoded frames that were dropped, so far."""
        return sum(self._dropped.values())

    def summary(self) -> SourceSummary:
        """What became of its frames; exact when the reader has ended and all is delivered."""
        source = self.source
        dropped = {**self._dropped, CORRUPT: source.num_corrupt}
        dropped[REPLACED] += source.num_overtaken
        return SourceSummary(
            name=source.name,
            num_captured=self._num_read + source.num_overtaken + source.num_corrupt,
            num_delivered=self._num_delivered,
            dropped=dropped,
            ages=self._ages.spread("age"),
            num_reconnects=source.num_reconnects,
            num_promised=source.num_promised,
            state=source.state,
            error="" if self.error is None else one_line(self.error),
        )

    def drop(self, frame: Frame, reason: str) -> None:
        """Count a frame that goes no further, and give its memory back."""
        self._dropped[reason] += 1
        self.source.recycle(frame)


Turn = tuple[Lane, Frame]


class Lanes:
    """All lanes to one engine.

    Args:
        sources: one lane each, in their order.
        stop: ends the reading when set.
        batches: how many frames the engine takes at once; 1 is always among them.
        max_age_s: a live source's frame that is older when its turn comes is dropped.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        stop: StopSignal,
        *,
        batches: Sequence[int] = (1,),
        max_age_s: float | None = None,
    ) -> None:
        self.each = tuple(Lane(source) for source in sources)
        self.max_age_s = max_age_s
        self._stop = stop
        self._batches = sorted({1, *batches})
        self._changed = threading.Condition()
        self._oldest = -math.inf  # capture time of a live source's frame, at the least

    def start(self) -> None:
        """Let a thread read each source; what a live one gave long before is too old."""
        self._oldest = perf_counter() - LONGEST_BEFORE_S
        for lane in self.each:
            name = f"capture {lane.source.name}"
            lane._reader = threading.Thread(target=self._read, args=(lane,), name=name, daemon=True)
            lane._reader.start()

    def take(self, most: int, timeout_s: float) -> list[Turn]:
        """The frames whose turn it is, at most one of each source; wait for one.

        As many as fill a batch of the engine's, of the lanes that have waited longest: what is
        waiting now is not held back for what may come.

        Args:
            most: frames that are wanted, 1 or more.

        Returns:
            Nothing once every source has ended and all its frames were taken.

        Raises:
            TimeoutError: nothing came in `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not (ready := self._ready_lanes()):
                if not any(lane._is_open for lane in self.each):
                    return []
                wait_s = deadline - time.monotonic()
                if wait_s <= 0:
                    raise TimeoutError
                self._changed.wait(wait_s)
            num_frames = max(size for size in self._batches if size <= min(most, len(ready)))
            now = perf_counter()
            turns = []
            for lane in ready[:num_frames]:
                turns.append((lane, lane._waiting.popleft()))
                lane._waits_since = now
            self._changed.notify_all()
            return turns

    def read_on_this_thread(self) -> list[Turn]:
        """The next frame of the only source, without a reader thread; nothing at its end."""
        (lane,) = self.each
        while not self._stop.is_set:
            try:
                frame = lane.source.read()
            except NoFrameYet:
                continue
            except Exception as error:
                lane.error = error
                lane.source.set_state(SourceState.FAILED, one_line(error))
                raise
            if frame is None:
                lane.source.set_state(SourceState.ENDED)
                break
            self._note_read(lane, frame)
            return [(lane, frame)]
        return []

    def close(self) -> None:
        """End all lanes: waiting readers go home, frames that wait are dropped and counted."""
        with self._changed:
            for lane in self.each:
                lane._is_open = False
                while lane._waiting:
                    lane.drop(lane._waiting.popleft(), AT_END)
            self._changed.notify_all()

    def join(self, timeout_s: float) -> list[Lane]:
        """Wait for the readers; give the lanes whose reader hangs."""
        deadline = time.monotonic() + timeout_s
        for lane in self.each:
            if lane._reader is not None:
                lane._reader.join(max(deadline - time.monotonic(), 0.0))
        return [lane for lane in self.each if lane._reader is not None and lane._reader.is_alive()]

    # --- on the readers' threads

    def _read(self, lane: Lane) -> None:
        source = lane.source
        try:
            while not self._stop.is_set:
                try:
                    frame = source.read()
                except NoFrameYet:
                    continue
                if frame is None:
                    source.set_state(SourceState.ENDED)
                    break
                self._put(lane, frame)
        except RingClosedError:
            pass
        except BaseException as error:  # told by the thread that runs the engine
            lane.error = error
            source.set_state(SourceState.FAILED, one_line(error))
            self._tell_failure(lane, error)
        finally:
            with self._changed:
                lane._is_open = False
                self._changed.notify_all()

    def _put(self, lane: Lane, frame: Frame) -> None:
        self._note_read(lane, frame)
        with self._changed:
            is_first = not lane._waiting
            while len(lane._waiting) >= lane._capacity and lane._is_open:
                if lane.source.is_live:
                    lane.drop(lane._waiting.popleft(), REPLACED)
                else:
                    self._changed.wait()
            if not lane._is_open:
                lane.drop(frame, AT_END)
                raise RingClosedError
            if is_first:  # a lane whose frame is replaced keeps its place in the row
                lane._waits_since = perf_counter()
            lane._waiting.append(frame)
            self._changed.notify_all()

    def _note_read(self, lane: Lane, frame: Frame) -> None:
        source = lane.source
        lane._num_read += 1
        if source.num_reconnects != lane._num_reconnects:
            lane._num_reconnects = source.num_reconnects
            lane._begins_anew_at = frame.index
        if source.state is SourceState.OPENING:
            source.set_state(SourceState.RUNNING)

    def _tell_failure(self, lane: Lane, error: BaseException) -> None:
        """Say that the others go on; a bug of ours comes with its traceback."""
        if len(self.each) == 1:
            return  # the run ends with the error
        num_others = sum(other is not lane and other._is_open for other in self.each)
        is_bug = not isinstance(error, KestrelError | OSError)
        _log.error(
            "%s is lost; %d of %d sources go on",
            lane.source.name,
            num_others,
            len(self.each),
            exc_info=error if is_bug else None,
        )

    # --- within the lock

    def _ready_lanes(self) -> list[Lane]:
        """Lanes with a frame that may be inferred, the longest-waiting first."""
        oldest = self._oldest
        if self.max_age_s is not None:
            oldest = max(oldest, perf_counter() - self.max_age_s)
        for lane in self.each:
            while lane.source.is_live and lane._waiting and lane._waiting[0].captured_at < oldest:
                lane.drop(lane._waiting.popleft(), TOO_OLD)
        return sorted(
            (lane for lane in self.each if lane._waiting), key=lambda lane: lane._waits_since
        )
