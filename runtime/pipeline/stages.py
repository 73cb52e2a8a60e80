"""Capture, inference and writing of one stream, overlapped on threads or one after the other.

    source -> capture thread -> ring -> inference (the caller's thread) -> ring -> writing thread

A file's rings wait when full, so no frame is lost; a camera's keeps the newest frame and counts
what it drops. Whatever ends a run - the last frame, a signal, an error on any thread - closes the
rings, and what is under way is finished and written.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from runtime.contract.errors import one_line
from runtime.pipeline.ring import Ring, RingClosedError
from runtime.pipeline.sinks.base import FrameResult, Sink
from runtime.pipeline.sources.base import Frame, Image, Source
from runtime.pipeline.stopping import StopSignal
from runtime.pipeline.timing import RateMeter, StageTimes

FILE_RING = 3  # decoded frames that wait for the engine
RESULT_RING = 3  # results that wait to be written
IN_FLIGHT = 2  # frames in the engine: the next is prepared while one is computed
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


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run did.

    Attributes:
        num_frames: inferred and written.
        num_decoded: delivered by the source. num_dropped: of these, replaced by newer ones.
        num_corrupt: could not be decoded. num_promised: by the file's header, or None.
        seconds: wall time. was_stopped: ended by a signal.
    """

    num_frames: int
    num_decoded: int
    num_dropped: int
    num_corrupt: int
    num_promised: int | None
    seconds: float
    was_stopped: bool

    @property
    def fps(self) -> float:
        return self.num_frames / self.seconds if self.seconds > 0 else 0.0


class Pipeline:
    """One source through one predictor into its sinks.

    Args:
        source: read, and closed at the end.
        predictor: used by the thread that calls `run`; not closed.
        sinks: given every result in order, and closed at the end.
        score_threshold, iou_threshold: as for the predictor; may be changed while running.
        max_frames: end after so many frames.
        is_sequential: a file's stages run one after the other on the caller's thread. A camera
            always has its capture thread: without it its frames would grow old in the driver.
        caption: lines for the picture's corner, given the pipeline; None writes none.
        stop: ends the run when set.
        times: takes what every frame cost.
    """

    def __init__(
        self,
        source: Source,
        predictor: Infers,
        sinks: Sequence[Sink],
        *,
        score_threshold: Any = None,
        iou_threshold: Any = None,
        max_frames: int | None = None,
        is_sequential: bool = False,
        caption: Callable[[Pipeline], Sequence[str]] | None = None,
        stop: StopSignal | None = None,
        times: StageTimes | None = None,
    ) -> None:
        self.source = source
        self.predictor = predictor
        self.sinks = tuple(sinks)
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_frames = max_frames
        self.is_sequential = is_sequential
        self.stop = stop if stop is not None else StopSignal()
        self.times = times if times is not None else StageTimes()
        self.rate = RateMeter()
        self._caption = caption
        self._draws = any(sink.wants_picture for sink in sinks)
        capacity = 1 if source.is_live else FILE_RING
        self._frames: Ring[Frame] = Ring(capacity, keeps_newest=source.is_live)
        self._results: Ring[FrameResult] = Ring(RESULT_RING)
        self._workers: list[_Worker] = []
        self._num_written = 0

    @property
    def num_written(self) -> int:
        """Frames that every sink has, so far."""
        return self._num_written

    @property
    def num_dropped(self) -> int:
        """Frames of a camera that a newer one replaced, so far."""
        return self._frames.num_dropped

    def run(self) -> RunSummary:
        """Run to the end of the source, to `max_frames`, or until `stop` is set.

        Raises:
            Whatever a stage raised, once what was under way is written and all is closed.
        """
        started = perf_counter()
        is_threaded = not self.is_sequential
        try:
            frames = self._read_ahead() if is_threaded or self.source.is_live else self._read()
            if is_threaded:
                self._start("write", self._write_all)
            self._infer_all(frames, self._results.put if is_threaded else self._deliver)
        except RingClosedError:
            pass  # the writing thread failed: its error is raised below
        except BaseException:
            self._finish(is_failed=True)
            raise
        self._finish(is_failed=False)
        return RunSummary(
            num_frames=self._num_written,
            num_decoded=self.source.num_decoded,
            num_dropped=self.num_dropped,
            num_corrupt=self.source.num_corrupt,
            num_promised=self.source.num_promised,
            seconds=perf_counter() - started,
            was_stopped=self.stop.is_set,
        )

    # --- capture

    def _read(self) -> Iterator[Frame]:
        while not self.stop.is_set and (frame := self.source.read()) is not None:
            yield frame

    def _read_ahead(self) -> Iterator[Frame]:
        self._start("capture", self._capture_all)
        while True:
            try:
                yield self._frames.get(POLL_S)
            except TimeoutError:
                if self.stop.is_set:  # a camera that gives no frame is not waited for
                    return
            except RingClosedError:
                return

    def _capture_all(self) -> None:
        try:
            for frame in self._read():
                dropped = self._frames.put(frame)
                if dropped is not None:
                    self.source.recycle(dropped)
        finally:
            self._frames.close()

    # --- inference

    def _infer_all(self, frames: Iterator[Frame], deliver: Callable[[FrameResult], Any]) -> None:
        # A camera's next frame is taken only when the engine is free, so that it is the newest.
        depth = 1 if self.is_sequential or self.source.is_live else IN_FLIGHT
        pending: deque[tuple[Frame, Ticket]] = deque()
        expected = 0
        for num_taken, frame in enumerate(frames, start=1):
            ticket = self.predictor.submit(
                frame.image_bgr,
                self.score_threshold,
                self.iou_threshold,
                time_s=frame.time_s,
                num_dropped=frame.index - expected,
            )
            expected = frame.index + 1
            pending.append((frame, ticket))
            if len(pending) >= depth:
                deliver(_result_of(*pending.popleft()))
            if num_taken == self.max_frames:
                break
        while pending:
            deliver(_result_of(*pending.popleft()))

    # --- writing

    def _write_all(self) -> None:
        try:
            while True:
                self._deliver(self._results.get())
        finally:
            self._results.close()

    def _deliver(self, result: FrameResult) -> None:
        begun = perf_counter()
        self.rate.tick(begun)
        if self._draws:
            image = result.frame.image_bgr
            self.predictor.draw(image, result.results)
            if self._caption is not None:
                from runtime.draw import draw_caption

                draw_caption(image, self._caption(self))
            result.times_ms["draw"] = (perf_counter() - begun) * 1e3
        drawn = perf_counter()
        for sink in self.sinks:
            sink.write(result)
        done = perf_counter()
        result.times_ms["sink"] = (done - drawn) * 1e3
        result.times_ms["total"] = (done - result.frame.captured_at) * 1e3
        self.times.add(result.times_ms)
        self.source.recycle(result.frame)
        self._num_written += 1

    # --- the end

    def _start(self, name: str, work: Callable[[], None]) -> None:
        worker = _Worker(name, work)
        self._workers.append(worker)
        worker.start()

    def _finish(self, *, is_failed: bool) -> None:
        """Let threads end, close everything, and raise the first error unless one is under way."""
        self._frames.close()
        self._results.close()
        errors: list[BaseException] = []
        is_reading = False
        for worker in self._workers:
            worker.join(LONGEST_JOIN_S if worker.name == "capture" else None)
            if worker.is_alive():
                is_reading = True
                _log.warning("%s does not answer; ending without it", self.source.name)
            if worker.error is not None:
                errors.append(worker.error)
        closers = [sink.close for sink in self.sinks]
        if not is_reading:  # closing a capture that is being read would crash
            closers.append(self.source.close)
        for close in closers:
            try:
                close()
            except Exception as error:
                errors.append(error)
        for later in errors[0 if is_failed else 1 :]:
            _log.warning("%s", one_line(later))
        if errors and not is_failed:
            raise errors[0]


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


def _result_of(frame: Frame, ticket: Ticket) -> FrameResult:
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
