"""Any sink behind a bounded queue and a thread of its own, so that it cannot hold up inference."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import replace

import numpy as np

from runtime.contract.errors import KestrelError, SinkError, one_line
from runtime.pipeline.sinks.base import FrameResult, Sink
from runtime.pipeline.sources.base import Image
from runtime.pipeline.stopping import StopSignal

CAPACITY = 64  # results without pictures that wait
PICTURE_CAPACITY = 4  # with pictures: each holds a copy of the frame
LIVE_PICTURE_CAPACITY = 8  # where they are dropped when full: an encoder is late at times,
LONGEST_QUEUED_S = 0.3  # but what waits is lost if the process is killed
DRAIN_S = 10.0  # what is waited for at most once no result is to come
LONGEST_WRITE_S = 30.0  # of one result; a sink that takes longer is given up, or said to be slow
POLL_S = 0.1  # how often a wait looks for the stop signal
IDLE_S = 0.2  # how often `Sink.idle` is called while nothing comes

_log = logging.getLogger(__name__)


class BufferedSink(Sink):
    """Hands results to another sink on a thread of its own.

    A sink that raises is closed and reported in one line, and what comes after is counted; neither
    `write` nor `close` raises. After `close`, what was given to `write` is `num_written` +
    `num_dropped` + `num_failed`, exactly.

    A sink that wants pictures gets a copy of each, in memory that is used again: at most
    `capacity` + 1 copies. Others get a picture of the same shape that takes no memory, all 0.

    Once the run is stopped, all waits together take `drain_s` at most: those for room the first
    half of it (what then finds no room is dropped), `close` the rest.

    Args:
        sink: used by this object's thread alone from now on, and closed by it.
        keeps_all: True: `write` waits where the queue is full, so nothing is lost (a file's
            frames). False: the result that comes is dropped (a live source); with pictures the
            queue is full, too, when its oldest has waited for LONGEST_QUEUED_S.
        capacity: most results that wait; default CAPACITY, of pictures fewer.
        drain_s: longest that `close` waits for what is queued and for the sink's own end; where
            all is kept, anew after each result that was written.
        longest_write_s: a sink that holds one result for longer is given up where it would be
            waited for. None: where all is kept, results are waited for until they are written or
            the run is stopped, however long a reader sleeps.
        stop: of the run.

    Attributes:
        error: what ended the sink, or None.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        keeps_all: bool,
        capacity: int | None = None,
        drain_s: float = DRAIN_S,
        longest_write_s: float | None = LONGEST_WRITE_S,
        stop: StopSignal | None = None,
    ) -> None:
        self.target = sink.target
        self.wants_picture = sink.wants_picture
        self.keeps_all = keeps_all
        with_pictures = PICTURE_CAPACITY if keeps_all else LIVE_PICTURE_CAPACITY
        self.capacity = capacity or (with_pictures if sink.wants_picture else CAPACITY)
        self.error: Exception | None = None
        self.num_dropped = 0
        self._sink = sink
        self._drain_s = drain_s
        self._longest_write_s = longest_write_s
        self._stop = stop if stop is not None else StopSignal()
        self._num_handed = 0  # results whose `write` of the sink returned
        self._num_failed = 0
        self._queue: deque[tuple[float, FrameResult]] = deque()  # with the time it came
        self._pool: deque[Image] = deque(maxlen=self.capacity + 1)
        self._changed = threading.Condition()
        self._writing_since: float | None = None
        self._written_at = 0.0  # the last one; time.monotonic()
        self._closing_since: float | None = None
        self._is_told_slow = False
        self._thread = threading.Thread(target=self._run, name=f"sink {self.target}", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether results are still taken: no error, not closed."""
        return self.error is None and not self._is_closing

    @property
    def _is_closing(self) -> bool:
        return self._closing_since is not None

    @property
    def num_written(self) -> int:
        """Results that got to their place, so far."""
        return self._num_handed - self._sink.num_lost

    @property
    def num_failed(self) -> int:
        """Results that the sink lost by an error, its own or of what it writes to, so far."""
        return self._num_failed + self._sink.num_lost

    def write(self, result: FrameResult) -> None:
        """Queue one result; for one thread. The frame is the caller's again on return."""
        with self._changed:
            if not self._has_room():
                return
        frame = result.frame
        image = self._copy(frame.image_bgr) if self.wants_picture else _shape_of(frame.image_bgr)
        queued = replace(
            result, frame=replace(frame, image_bgr=image), times_ms=dict(result.times_ms)
        )
        with self._changed:
            if not self.is_open:  # it failed while the picture was copied
                self._num_failed += 1
                return
            self._queue.append((time.monotonic(), queued))
            self._changed.notify_all()

    def expect_no_more(self) -> None:
        with self._changed:
            if self._closing_since is None:
                self._closing_since = time.monotonic()
            self._changed.notify_all()

    def close(self) -> None:
        """Write what is queued and close the sink, in time; twice is harmless."""
        self.expect_no_more()
        while self._thread.is_alive():
            with self._changed:
                left_s = self._left_to_close_s()
                if left_s <= 0:
                    if self.error is None:
                        self._give_up(f"did not finish within {self._drain_s:g} s")
                    return
            self._thread.join(min(left_s, POLL_S))

    # --- the caller's side, under the lock

    def _has_room(self) -> bool:
        """Wait for room where all is kept; else count the result as dropped or failed."""
        while self.is_open and self._is_full():
            if not self.keeps_all or self._has_stopped_for(self._drain_s / 2):
                self.num_dropped += 1
                return False
            held_s = self._held_s()
            if self._longest_write_s is None:
                self._tell_if_slow()
                self._changed.wait(POLL_S)
            elif held_s >= self._longest_write_s:
                self._give_up(f"did not take a result within {self._longest_write_s:g} s")
            else:
                self._changed.wait(min(self._longest_write_s - held_s, POLL_S))
        if not self.is_open:
            self._num_failed += 1
        return self.is_open

    def _is_full(self) -> bool:
        if len(self._queue) >= self.capacity:
            return True
        if self.keeps_all or not self.wants_picture or not self._queue:
            return False
        return time.monotonic() - self._queue[0][0] >= LONGEST_QUEUED_S

    def _left_to_close_s(self) -> float:
        """How long the thread's end is still waited for; at most 0: no longer."""
        assert self._closing_since is not None
        stopped_at = self._stop.set_at
        is_patient = self.keeps_all and self._longest_write_s is None and stopped_at is None
        is_writing = self.error is None and (self._queue or self._writing_since is not None)
        if is_patient and is_writing:
            self._tell_if_slow()
            return POLL_S
        since = self._closing_since
        ends_at = (max(since, self._written_at) if self.keeps_all else since) + self._drain_s
        if stopped_at is not None:  # half of it may be over when the last result is inferred
            ends_at = min(ends_at, max(stopped_at + self._drain_s, since + self._drain_s / 2))
        return ends_at - time.monotonic()

    def _has_stopped_for(self, seconds: float) -> bool:
        stopped_at = self._stop.set_at
        return stopped_at is not None and time.monotonic() - stopped_at >= seconds

    def _held_s(self) -> float:
        """How long the sink has been at its result."""
        return 0.0 if self._writing_since is None else time.monotonic() - self._writing_since

    def _tell_if_slow(self) -> None:
        if self._is_told_slow or self._held_s() < LONGEST_WRITE_S:
            return
        self._is_told_slow = True
        _log.warning(
            "output %s has taken nothing for %g s; waiting for it. Ctrl-C ends the run.",
            self.target,
            LONGEST_WRITE_S,
            extra={"event": "output", "output": self.target},
        )

    def _give_up(self, what: str) -> None:
        """Count what is queued or held as lost; the thread ends when the sink lets go of it."""
        self._fail(SinkError(f"output {self.target} {what}. Is the disk or network in order?"))

    # --- either side, under the lock

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._num_failed += len(self._queue) + (self._writing_since is not None)
        self._queue.clear()
        kind = "" if isinstance(error, (KestrelError, OSError)) else f"{type(error).__name__}: "
        text = one_line(error)
        end = "" if text.endswith((".", "?")) else "."
        then = "" if self._is_closing else f" Going on without {self.target}."
        about = {"event": "output", "output": self.target}
        _log.error("%s%s%s%s", kind, text, end, then, extra=about)
        self._changed.notify_all()

    # --- the sink's thread

    def _run(self) -> None:
        try:
            while (result := self._next()) is not None:
                self._sink.write(result)
                with self._changed:
                    if self.error is not None:  # it was given up meanwhile
                        break
                    self._num_handed += 1
                    self._writing_since = None
                    self._written_at = time.monotonic()
                if self.wants_picture:
                    self._pool.append(result.frame.image_bgr)
        except Exception as error:  # whatever a sink raises must not end the run
            self._note(error)
        try:
            self._sink.close()
        except Exception as error:
            self._note(error)

    def _next(self) -> FrameResult | None:
        """The next result, noted as being written; None when there will be none."""
        while True:
            with self._changed:
                if not self._queue and not self._is_closing and self.error is None:
                    self._changed.wait(IDLE_S)
                if self.error is not None:
                    return None
                if self._queue:
                    _, result = self._queue.popleft()
                    self._writing_since = time.monotonic()
                    self._changed.notify_all()
                    return result
                if self._is_closing:
                    return None
            self._sink.idle()

    def _note(self, error: Exception) -> None:
        with self._changed:
            if self.error is None:
                self._fail(error)
                self._writing_since = None

    def _copy(self, image_bgr: Image) -> Image:
        try:
            buffer = self._pool.pop()
        except IndexError:
            buffer = np.empty_like(image_bgr)
        if buffer.shape != image_bgr.shape:
            buffer = np.empty_like(image_bgr)
        np.copyto(buffer, image_bgr)
        return buffer


def _shape_of(image_bgr: Image) -> Image:
    """A black picture of the same shape in no memory, not to be written to."""
    return np.broadcast_to(np.zeros((), np.uint8), image_bgr.shape)
