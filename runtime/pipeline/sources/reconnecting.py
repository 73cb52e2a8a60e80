"""A live source that is watched, and opened anew whenever it is lost."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from contextvars import ContextVar
from time import perf_counter

from runtime.contract.errors import SourceError, one_line
from runtime.pipeline.sources.base import Frame, NoFrameYet, Source, SourceState
from runtime.pipeline.sources.connection import Connect, Picture
from runtime.pipeline.sources.link import Link, Lost, Mailbox, Opened, Over
from runtime.pipeline.sources.live_options import LiveOptions

LONGEST_WAIT_S = 0.9  # of one `read`, so that its caller can look at the stop signal
STALLED_AFTER_S = 1.0  # without a picture, or after this many intervals where that is longer:
STALLED_INTERVALS = 5.0
GRACE_S = 1.0  # a library's own timeout may end a call so much later before the call counts as hung
CLOSE_WAIT_S = 1.5
LOOK_AGAIN_S = 0.1  # at the clocks, while nothing comes
HOLDS_UP_S = 3.0  # others at the most, at the start

_log = logging.getLogger(__name__)
_joins_later: ContextVar[bool] = ContextVar("_joins_later", default=False)


@contextlib.contextmanager
def joining_later() -> Iterator[None]:
    """A source that is opened meanwhile, on this thread, has company that it does not hold up.

    If it has a time to be waited for (`LiveOptions.wait_s`) and is not there, it is opened
    nevertheless, as reconnecting: with neither a size nor a rate before its first frame.
    """
    token = _joins_later.set(True)
    try:
        yield
    finally:
        _joins_later.reset(token)


class ReconnectingSource(Source):
    """Frames of a camera or a stream, over all the times that it is lost and comes back.

    A thread (`Link`) holds the connection and keeps the newest picture; `read` takes it, and
    watches the thread. What is lost is opened again after pauses of up to half a second, for ever
    unless the options say otherwise. A call into a driver that does not return is left behind with
    its thread, and what it gives later is not used: so each picture is handed out once, in the
    order of capture, and none is made up. Pictures may have another size after a loss.

    A video with an end (a file on a web server) is no camera: every frame is given, then None.

    Args:
        name: for people and for results; without passwords.
        connect: opens a connection; called on the link's thread.
        options: timeouts, and what to do at a loss.
        advice: what to do where it cannot be opened, a sentence.
        advice_when_lost: what to do where it is lost on the way; default the same.
        most_hung: threads that may be left behind in calls that do not return. 0 for a device
            that only one can hold: it is not opened again before the call has returned.

    Attributes:
        num_overtaken: frames that a newer one replaced before `read` came for them. They have their
            place in `Frame.index`, and are not in `num_decoded`.

    Raises:
        SourceError: it cannot be opened, or gives no picture in the time that it is waited for; of
            one that joins later (`joining_later`) `read` raises that.
    """

    def __init__(
        self,
        name: str,
        connect: Connect,
        options: LiveOptions,
        *,
        advice: str = "Check its address.",
        advice_when_lost: str | None = None,
        most_hung: int = 4,
    ) -> None:
        super().__init__(name, fps=options.fps or 30.0, is_live=True)
        self.options = options
        self.num_overtaken = 0
        self._connect = connect
        self._advice = advice
        self._advice_when_lost = advice if advice_when_lost is None else advice_when_lost
        self._most_hung = most_hung
        self._hung: list[Link] = []
        self._link: Link | None = None
        self._was_overtaken = 0  # beside what the link counts
        self._was_corrupt = 0
        self._started_at: float | None = None
        self._time_s = -1.0
        self._lost_at: float | None = None
        self._why_lost = ""
        self._last_size = (0, 0)
        self._is_closed = False
        self._joins_later = _joins_later.get() and options.wait_s > 0.0
        self._awaited_since = perf_counter()
        self._first: Frame | None = None
        try:
            self._first = self._await_first()
        except BaseException:
            self.close()
            raise

    def read(self) -> Frame | None:
        frame, self._first = self._first, None
        if frame is not None:
            if not (self.is_live and self._has_newer()):
                return frame
            self.recycle(frame)
            self.num_decoded -= 1
            self._was_overtaken += 1
        if self._is_closed or self.state in (SourceState.ENDED, SourceState.FAILED):
            return None
        try:
            return self._next()
        except NoFrameYet:
            raise
        except Exception as error:
            self.set_state(SourceState.FAILED, one_line(error))
            raise

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        links = [*self._hung, *([self._link] if self._link is not None else [])]
        for link in links:
            link.stop()
        until = perf_counter() + CLOSE_WAIT_S
        for link in links:
            link.join(max(until - perf_counter(), 0.0))
        if any(link.is_alive() for link in links):
            _log.info("%s: its driver does not answer; closed without it", self.name)

    # --- the first picture

    def _await_first(self) -> Frame | None:
        """Wait for it as long as the options say; None where it joins later."""
        while True:
            try:
                frame = self._next()
            except NoFrameYet:
                frame = None
            else:
                if frame is None:
                    raise SourceError(f"source {self.name} holds no frame; expected a video.")
            if frame is not None:
                return frame
            if self._joins_later and perf_counter() - self._awaited_since > HOLDS_UP_S:
                self._join_later("no picture yet")
            if self.state is SourceState.RECONNECTING:
                return None

    def _join_later(self, why: str) -> None:
        wait = f"it joins the others when it comes, in {self.options.wait_s:g} s"
        self.set_state(SourceState.RECONNECTING, f"{why}; {wait}")

    def _check_wait(self) -> None:
        """Raise SourceError where what has never come was waited for long enough."""
        if self._started_at is not None or self._lost_at is None:
            return
        if perf_counter() - self._awaited_since > self.options.wait_s:
            raise SourceError(
                f"source {self.name} did not come in {self.options.wait_s:g} s: "
                f"{self._why_lost}. {self._advice}"
            )

    def _has_newer(self) -> bool:
        """Whether pictures have come since; loading an engine may take a while."""
        return self._link is not None and self._link.mail.has_picture

    # --- on the reader's thread

    def _next(self) -> Frame | None:
        """The next frame, or None at the end of a video.

        Raises:
            NoFrameYet: nothing came in LONGEST_WAIT_S.
            SourceError: lost for good, or never there.
        """
        until = perf_counter() + LONGEST_WAIT_S
        while (left_s := until - perf_counter()) > 0:
            link = self._linked(left_s)
            if link is None:
                continue
            news = link.mail.take(min(left_s, LOOK_AGAIN_S))
            self._count(link.mail)
            if isinstance(news, Picture):
                return self._frame(news)
            if isinstance(news, Opened):
                self._note_opened(news)
            elif isinstance(news, Lost):
                self._note_loss(news.reason)
            elif isinstance(news, Over):
                if news.error is not None:
                    raise news.error
                self.set_state(SourceState.ENDED)
                return None
            else:
                self._watch(link)
        self._check_wait()
        raise NoFrameYet(f"{self.name}: no picture for {LONGEST_WAIT_S} s")

    def _linked(self, wait_s: float) -> Link | None:
        """The link; a new one where the last was left behind and there may be another."""
        if self._link is None:
            self._hung = [link for link in self._hung if link.is_alive()]
            if len(self._hung) > self._most_hung:
                self._hung[0].join(min(wait_s, LOOK_AGAIN_S))
                return None
            self._link = Link(
                self.name, self._connect, self.options, self.take_buffer, self._pool.append
            )
            self._link.start()
        return self._link

    def _watch(self, link: Link) -> None:
        """Look at the clock while nothing comes."""
        if link.is_pausing:
            return
        quiet_s = perf_counter() - link.heard_at
        stalled_s = max(STALLED_AFTER_S, STALLED_INTERVALS / self.fps)
        stalled_s = min(stalled_s, self.options.stall_timeout_s)
        if self.state is SourceState.RUNNING and quiet_s > stalled_s:
            self.set_state(SourceState.STALLED, f"no picture for {quiet_s:.1f} s")
        if quiet_s > link.allowed_s + GRACE_S:
            link.stop()
            self._hung.append(link)
            self._link = None
            self._was_overtaken += link.mail.num_overtaken
            self._was_corrupt += link.mail.num_corrupt
            self._note_loss(f"no answer for {quiet_s:.1f} s")

    def _count(self, mail: Mailbox) -> None:
        self.num_overtaken = self._was_overtaken + mail.num_overtaken
        self.num_corrupt = self._was_corrupt + mail.num_corrupt

    def _note_opened(self, opened: Opened) -> None:
        self.fps = opened.fps
        if self._started_at is None:
            self.is_live = not opened.has_end

    def _note_loss(self, reason: str) -> None:
        self._why_lost = reason
        is_first = self._lost_at is None
        if self._lost_at is None:
            self._lost_at = perf_counter()
        if self._started_at is None:
            if self.options.wait_s <= 0.0:
                raise SourceError(f"source {self.name} cannot be opened: {reason}. {self._advice}")
            if self._joins_later:
                self._join_later(reason)
                if is_first:
                    raise NoFrameYet(f"{self.name} is not there yet")  # holds up nobody
            elif is_first:
                _log.info("%s: waiting for it (%s)", self.name, reason)
        elif not self.is_live or not self.options.reconnects:
            raise SourceError(
                f"source {self.name} was lost after {self.num_decoded} frames: {reason}. "
                f"{self._advice_when_lost}"
            )
        else:
            self.set_state(SourceState.RECONNECTING, reason)

    def _frame(self, picture: Picture) -> Frame:
        self._note_running()
        if self._started_at is None:
            self._started_at = picture.captured_at
        time_s = picture.captured_at - self._started_at
        if picture.time_s is not None:
            time_s = picture.time_s
        self._time_s = max(time_s, self._time_s + 1e-6)
        height, width = picture.image_bgr.shape[:2]
        if self.size_wh == (0, 0):
            self.size_wh = (width, height)
        if self._last_size not in ((0, 0), (width, height)):
            _log.info("%s: pictures are %dx%d now", self.name, width, height)
        self._last_size = (width, height)
        index = self.num_decoded + self.num_overtaken
        self.num_decoded += 1
        return Frame(
            picture.image_bgr,
            index,
            self._time_s,
            picture.captured_at,
            picture.capture_ms,
            self.name,
            time.time() - (perf_counter() - picture.captured_at),
        )

    def _note_running(self) -> None:
        reason = ""
        if self._lost_at is not None:
            reason = f"after {perf_counter() - self._lost_at:.1f} s"
            self._lost_at = None
        if self.state is SourceState.RECONNECTING:
            self.num_reconnects += 1
        self.set_state(SourceState.RUNNING, reason)
