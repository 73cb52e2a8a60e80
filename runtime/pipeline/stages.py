"""Capture, inference and writing of one or several streams, overlapped or one after the other.

    source -> reader thread -> lane --,
    source -> reader thread -> lane ----> inference (the caller's) -> ring -> writing thread
    source -> reader thread -> lane --'

A file's lane and the ring wait when full, so no frame is lost; a live source's lane keeps the
newest frame. What is dropped is counted by reason. Whatever ends a run - the last frame, a signal,
an error on any thread - closes lanes and ring, and what is under way is finished and written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from runtime.contract.errors import one_line
from runtime.pipeline.accounting import RunSummary
from runtime.pipeline.lanes import AGES_KEPT, Lane, Lanes, Turn
from runtime.pipeline.pacing import EnginePace
from runtime.pipeline.ring import Ring, RingClosedError
from runtime.pipeline.sinks.base import FrameResult, Sink
from runtime.pipeline.sources.base import Frame, Image, Source
from runtime.pipeline.stopping import StopSignal
from runtime.pipeline.timing import RateMeter, StageTimes
from runtime.restarting import restart

__all__ = ["Batches", "Infers", "Pipeline", "RunSummary"]

RESULT_RING = 3  # results that wait to be written
IN_FLIGHT = 2  # engine calls under way: the next is prepared while one is computed
POLL_S = 0.1  # how often a wait for a frame looks for the stop signal
LONGEST_JOIN_S = 3.0  # a camera's driver may hang in a read; the process then ends without it

_log = logging.getLogger(__name__)


class Ticket(Protocol):
    """A frame under way in a predictor."""

    def result(self) -> Any: ...

    @property
    def timings(self) -> Any: ...


class Infers(Protocol):
    """What the pipeline needs of `runtime.Predictor`. Called on one thread, but for `draw`."""

    def submit(
        self,
        frame_bgr: Image,
        score_threshold: Any = None,
        iou_threshold: Any = None,
        *,
        time_s: float | None = None,
        num_dropped: int = 0,
    ) -> Ticket: ...

    def draw(self, frame_bgr: Image, result: Any) -> Image: ...


class Batches(Protocol):
    """What the pipeline needs of `runtime.batching.MicroBatcher`."""

    @property
    def batches(self) -> Sequence[int]: ...

    def flush(self) -> None: ...


class Pipeline:
    """Sources through one engine into sinks.

    Args:
        sources: one or several; each is read on a thread of its own, and closed at the end.
        predictors: one for each source, as many streams of one engine; or one for all, where it
            keeps nothing of a frame for the next. Used by the thread that calls `run`; not closed.
        sinks: given every result, those of a source in their order, and closed at the end.
        score_threshold, iou_threshold: as for the predictor; may be changed while running.
        max_frames: end after so many frames, of all sources together.
        max_age_ms: a live source's frame that is older when its turn comes is not inferred.
        batchers: put frames of several sources into one engine call.
        is_sequential: a file's stages run one after the other on the caller's thread. A live
            source always has its reader: without it its frames would grow old in the driver.
        caption: lines for the picture's corner, given the source's lane; None writes none.
        stop: ends the run when set.
        is_wanted: asked before frames are inferred; the run ends when nobody wants the results.
        times: takes what every frame cost.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        predictors: Infers | Sequence[Infers],
        sinks: Sequence[Sink],
        *,
        score_threshold: Any = None,
        iou_threshold: Any = None,
        max_frames: int | None = None,
        max_age_ms: float | None = None,
        batchers: Sequence[Batches] = (),
        is_sequential: bool = False,
        caption: Callable[[Lane], Sequence[str]] | None = None,
        stop: StopSignal | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
        times: StageTimes | None = None,
    ) -> None:
        self.sources = (sources,) if isinstance(sources, Source) else tuple(sources)
        given = predictors if isinstance(predictors, Sequence) else [predictors]
        assert len(given) in (1, len(self.sources))
        self.sinks = tuple(sinks)
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_frames = max_frames
        self.is_sequential = is_sequential
        self.stop = stop if stop is not None else StopSignal()
        self.times = times if times is not None else StageTimes(AGES_KEPT)
        self.rate = RateMeter()
        self._pace = EnginePace()
        self._is_live = any(source.is_live for source in self.sources)
        self._caption = caption
        self._is_wanted = is_wanted
        self._batchers = tuple(batchers)
        batches = self._batchers[0].batches if self._batchers else (1,)
        self.lanes = Lanes(
            self.sources,
            self.stop,
            batches=batches,
            max_age_s=None if max_age_ms is None else max_age_ms / 1e3,
        )
        by_lane = given if len(given) > 1 else list(given) * len(self.sources)
        self._predictors = dict(zip(self.lanes.each, by_lane, strict=True))
        self._results: Ring[tuple[Lane, FrameResult]] = Ring(max(RESULT_RING, *batches))
        self._writer: _Worker | None = None
        self.summary: RunSummary | None = None  # of a run that is over

    @property
    def num_written(self) -> int:
        """Frames that every sink has, so far."""
        return sum(lane.num_delivered for lane in self.lanes.each)

    @property
    def num_dropped(self) -> int:
        """Decoded frames that were not inferred, so far."""
        return sum(lane.num_dropped for lane in self.lanes.each)

    def run(self) -> RunSummary:
        """Run to the end of all sources, to `max_frames`, or until `stop` is set.

        Of several sources the others go on where one fails.

        Raises:
            Whatever a stage, or the last source, raised, once what was under way is written and
            all is closed. What became of the frames is in `summary` then.
        """
        started = perf_counter()
        try:
            if self.is_sequential and not self._is_live and len(self.sources) == 1:
                take = self._read_turn
            else:
                self.lanes.start()
                take = self._wait_for_turns
            deliver = self._deliver
            if not self.is_sequential:
                self._writer = _Worker("write", self._write_all)
                self._writer.start()
                deliver = self._hand_over
            self._infer_all(take, deliver)
        except RingClosedError:
            pass  # the writing thread failed: its error is raised below
        except BaseException as error:
            self._finish(error)
            self.summary = self._sum_up(started)
            raise
        first_error = self._finish(None)
        self.summary = self._sum_up(started)
        if first_error is not None:
            raise first_error
        return self.summary

    def _sum_up(self, started: float) -> RunSummary:
        return RunSummary.of(
            tuple(lane.summary() for lane in self.lanes.each),
            seconds=perf_counter() - started,
            was_stopped=self.stop.is_set,
            ages=self.times.spread("age"),
        )

    # --- inference

    def _read_turn(self, most: int) -> list[Turn]:
        return self.lanes.read_on_this_thread()

    def _wait_for_turns(self, most: int) -> list[Turn]:
        while True:
            try:
                return self.lanes.take(most, POLL_S)
            except TimeoutError:
                if self.stop.is_set:  # a camera that gives no frame is not waited for
                    return []

    def _infer_all(
        self,
        take: Callable[[int], list[Turn]],
        deliver: Callable[[Lane, FrameResult], None],
    ) -> None:
        """Keep the engine busy until there are no more frames, or no more are wanted."""
        depth = 1 if self.is_sequential else IN_FLIGHT
        calls: deque[_Call] = deque()
        num_wanted = self.max_frames if self.max_frames is not None else 1 << 62
        is_over = False
        while calls or not is_over:
            is_over = is_over or num_wanted <= 0 or not self._is_wanted()
            turns: list[Turn] = []
            if not is_over and calls and self._is_live:
                turns = self._take_in_time(calls[0], num_wanted)
            elif not is_over:
                turns = take(num_wanted)
                is_over = not turns
            if turns:
                calls.append(self._call(turns))
                num_wanted -= len(turns)
            if calls and (not turns or len(calls) >= depth):
                self._answer(calls.popleft(), deliver)

    def _take_in_time(self, call: _Call, most: int) -> list[Turn]:
        """Of live sources: what there is just before the engine is through with a call."""
        take_at = self._pace.take_at(call.submitted_at)
        is_writing_late = len(self._results) >= self._results.capacity
        if take_at is None or is_writing_late:  # the frame would wait behind a full ring
            return []
        time.sleep(max(take_at - perf_counter(), 0.0))
        try:
            return self.lanes.take(most, 0.0)
        except TimeoutError:
            return []

    def _call(self, turns: list[Turn]) -> _Call:
        """Give frames to the engine."""
        begun = perf_counter()
        tickets = [self._submit(*turn) for turn in turns]
        for batcher in self._batchers:
            batcher.flush()
        submitted_at = perf_counter()
        self._pace.note_submitted(begun, submitted_at)
        return _Call(turns, tickets, submitted_at)

    def _answer(self, call: _Call, deliver: Callable[[Lane, FrameResult], None]) -> None:
        """Wait for a call and hand its results on."""
        results = [_result_of(*pair) for pair in zip(call.turns, call.tickets, strict=True)]
        self._pace.note_answered(call.submitted_at, perf_counter())
        for (lane, _), result in zip(call.turns, results, strict=True):
            deliver(lane, result)

    def _submit(self, lane: Lane, frame: Frame) -> Ticket:
        num_dropped, lane.next_index = frame.index - lane.next_index, frame.index + 1
        if lane.begins_anew(frame):
            restart(self._predictors[lane], "reconnect")
        return self._predictors[lane].submit(
            frame.image_bgr,
            self.score_threshold,
            self.iou_threshold,
            time_s=frame.time_s,
            num_dropped=num_dropped,
        )

    # --- writing

    def _hand_over(self, lane: Lane, result: FrameResult) -> None:
        self._results.put((lane, result))

    def _write_all(self) -> None:
        try:
            while True:
                self._deliver(*self._results.get())
        finally:
            self._results.close()

    def _deliver(self, lane: Lane, result: FrameResult) -> None:
        begun = perf_counter()
        self.rate.tick(begun)
        if any(sink.wants_picture for sink in self.sinks):
            image = result.frame.image_bgr
            self._predictors[lane].draw(image, result.results)
            if self._caption is not None:
                from runtime.draw import draw_caption

                draw_caption(image, self._caption(lane))
            result.times_ms["draw"] = (perf_counter() - begun) * 1e3
        drawn = perf_counter()
        for sink in self.sinks:
            sink.write(result)
        done = perf_counter()
        result.times_ms["sink"] = (done - drawn) * 1e3
        result.times_ms["total"] = (done - result.frame.captured_at) * 1e3
        self.times.add(result.times_ms)
        lane.note_delivered(result.age_ms)
        lane.source.recycle(result.frame)

    # --- the end

    def _finish(self, under_way: BaseException | None) -> BaseException | None:
        """Let threads end, close everything; the first error unless one is under way."""
        self.lanes.close()
        self._results.close()
        errors: list[BaseException] = []
        if self._writer is not None:
            self._writer.join()  # sinks of `BufferedSink` bound their waits once it is stopped
            errors += [self._writer.error] if self._writer.error is not None else []
        hanging = self.lanes.join(LONGEST_JOIN_S)
        for lane in hanging:
            _log.warning("%s does not answer; ending without it", lane.source.name)
        failed = [lane.error for lane in self.lanes.each if lane.error is not None]
        if len(failed) == len(self.sources):
            errors += failed[:1]
        for sink in self.sinks:  # all finish at once: one that hangs takes no time of another's
            sink.expect_no_more()
        closers = [sink.close for sink in self.sinks]
        # Closing a capture that is being read would crash.
        closers += [lane.source.close for lane in self.lanes.each if lane not in hanging]
        for close in closers:
            try:
                close()
            except Exception as error:
                errors.append(error)
        if under_way is not None:
            errors = [under_way, *(error for error in errors if error is not under_way)]
        for later in errors[1:]:
            _log.warning("%s", one_line(later))
        return errors[0] if errors else None


class _Worker(threading.Thread):
    """A thread whose exception is kept for the thread that joins it."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.error: BaseException | None = None
        self._work = work

    def run(self) -> None:
        try:
            self._work()
        except RingClosedError:
            pass
        except BaseException as error:  # carried to the main thread
            self.error = error


@dataclass(frozen=True, slots=True)
class _Call:
    """Frames in the engine, and since when."""

    turns: list[Turn]
    tickets: list[Ticket]
    submitted_at: float


def _result_of(turn: Turn, ticket: Ticket) -> FrameResult:
    _, frame = turn
    results = ticket.result()
    age_ms = (perf_counter() - frame.captured_at) * 1e3
    timings = ticket.timings
    times_ms = {
        "capture": frame.capture_ms,
        "preprocess": timings.preprocess_ms,
        "engine": timings.engine_ms,
        "finish": timings.finish_ms,
        "age": age_ms,
    }
    return FrameResult(frame, results, age_ms, times_ms)
