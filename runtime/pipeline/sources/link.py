"""The thread that holds a live source's connection, and what it hands to the reader.

A driver or a network library may hang for ever in a call. So they are called on a thread of their
own, which the reader can leave behind: what it gives later goes into a mailbox that nobody opens.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

from runtime.pipeline.sources.base import Image
from runtime.pipeline.sources.connection import (
    Connect,
    Connection,
    ConnectionLost,
    Picture,
    StreamEnded,
    TakeBuffer,
)
from runtime.pipeline.sources.live_options import LiveOptions

# An attempt at what is away is cheap, and its return is not to be missed for long.
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 0.5
STEADY_AFTER_S = 1.0  # a connection that lived so long makes the next pause a short one again
MOST_NEWS = 64  # of a reader that does not come for them
DOUBT_S, LONGEST_DOUBT_S = 0.002, 0.1  # FFmpeg tells the end of a stream within microseconds
PICTURES_AHEAD = 3  # of a video that drops none


def pauses_s(generator: random.Random) -> Iterator[float]:
    """Seconds between attempts: doubling up to half a second, with jitter.

    Half of each pause is random, so that many cameras behind a switch that comes back do not all
    call at once ("equal jitter": AWS Architecture Blog, Exponential Backoff and Jitter, 2015).
    """
    longest = SHORTEST_PAUSE_S
    while True:
        yield longest * generator.uniform(0.5, 1.0)
        longest = min(longest * 2.0, LONGEST_PAUSE_S)


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection stands."""

    fps: float
    has_end: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """It is gone, or could not be opened; told once until a connection stands again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing more will come: the end of a video (None), or what no further attempt can mend."""

    error: BaseException | None


News = Picture | Opened | Lost | Over


class Mailbox:
    """News from the link in their order. Of pictures that wait the newest takes the older's place.

    A picture that `may_be_cut` is given out when the link has read on and was not told at once that
    the connection is lost; that takes a moment.

    Attributes:
        num_overtaken: pictures that were replaced so, so far.
        num_corrupt: pictures that did not decode, so far.
        keeps_all: pictures wait for the reader instead of being replaced.
    """

    def __init__(self) -> None:
        self.num_overtaken = 0
        self.num_corrupt = 0
        self.keeps_all = False
        self._news: deque[News] = deque(maxlen=MOST_NEWS)
        self._changed = threading.Condition()
        self._is_closed = False
        self._has_read_on = False

    def put(self, news: News) -> Picture | None:
        """Add; gives back the picture that was replaced, if one was."""
        with self._changed:
            replaced: Picture | None = None
            if isinstance(news, Picture):
                if self.keeps_all:
                    self._changed.wait_for(
                        lambda: self._is_closed or len(self._news) < PICTURES_AHEAD
                    )
                elif self._news and isinstance(self._news[-1], Picture):
                    older = self._news.pop()
                    assert isinstance(older, Picture)
                    replaced = older
                    self.num_overtaken += 1
            self._news.append(news)
            self._has_read_on = False
            self._changed.notify_all()
            return replaced

    def read_on(self) -> None:
        """The link is about to ask for what comes next."""
        with self._changed:
            self._has_read_on = True
            self._changed.notify_all()

    def withdraw(self) -> None:
        """The connection is lost: the last picture, if it waits and may be cut, is dropped."""
        with self._changed:
            if self._may_be_withdrawn():
                self._news.clear()
                self.num_corrupt += 1
                self._changed.notify_all()

    def _may_be_withdrawn(self) -> bool:
        if len(self._news) != 1:
            return False
        news = self._news[0]
        return isinstance(news, Picture) and news.may_be_cut

    def take(self, timeout_s: float) -> News | None:
        """The oldest news, or None where nothing came in time."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._news), max(timeout_s, 0.0))
            if self._may_be_withdrawn():
                self._changed.wait_for(
                    lambda: self._has_read_on or not self._may_be_withdrawn(), LONGEST_DOUBT_S
                )
                self._changed.wait_for(lambda: not self._may_be_withdrawn(), DOUBT_S)
            news = self._news.popleft() if self._news else None
            self._changed.notify_all()
            return news

    @property
    def has_picture(self) -> bool:
        """Whether the oldest news is one."""
        with self._changed:
            return bool(self._news) and isinstance(self._news[0], Picture)

    def close(self) -> None:
        """Let go of what waits: nobody reads any more."""
        with self._changed:
            self._is_closed = True
            self._news.clear()
            self._changed.notify_all()


class Link(threading.Thread):
    """Opens, reads, closes and opens again, until it is told to stop.

    Attributes:
        mail: for the reader.
        heard_at: `perf_counter` of the last picture, or of the beginning of what it waits for.
        allowed_s: how long nothing may come from then on.
        is_pausing: it waits between two attempts.
        num_attempts: to open, since a connection stood.
    """

    def __init__(
        self,
        name: str,
        connect: Connect,
        options: LiveOptions,
        take_buffer: TakeBuffer,
        give_back: Callable[[Image], None],
    ) -> None:
        super().__init__(name=f"link {name}", daemon=True)
        self.mail = Mailbox()
        self.heard_at = perf_counter()
        self.allowed_s = options.open_timeout_s
        self.is_pausing = False
        self.num_attempts = 0
        self._connect = connect
        self._options = options
        self._take_buffer = take_buffer
        self._give_back = give_back
        self._stopping = threading.Event()
        self._is_loss_told = False

    def stop(self) -> None:
        """Ask it to end; it does when the call that it is in returns."""
        self._stopping.set()
        self.mail.close()

    def run(self) -> None:
        generator = random.Random()
        pauses = pauses_s(generator)
        try:
            while not self._stopping.is_set():
                begun = perf_counter()
                try:
                    self._attempt()
                except ConnectionLost as error:
                    self._tell_loss(str(error))
                if perf_counter() - begun > STEADY_AFTER_S and self.num_attempts == 0:
                    pauses = pauses_s(generator)
                self.is_pausing = True
                self._stopping.wait(next(pauses))
                self.is_pausing = False
        except StreamEnded:
            self.mail.put(Over(None))
        except BaseException as error:  # carried to the reader
            self.mail.put(Over(error))

    def _attempt(self) -> None:
        self.num_attempts += 1
        self.heard_at = perf_counter()
        self.allowed_s = self._options.open_timeout_s
        connection = self._connect()
        try:
            self.heard_at = perf_counter()  # the first picture may wait for a key frame
            self.mail.keeps_all = connection.has_end
            self.mail.put(Opened(connection.fps, connection.has_end))
            self._is_loss_told = False
            self._pass_on(connection)
        finally:
            connection.close()

    def _pass_on(self, connection: Connection) -> None:
        corrupt_before = self.mail.num_corrupt
        while not self._stopping.is_set():
            self.mail.read_on()
            try:
                picture = connection.read(self._take_buffer)
            except ConnectionLost:
                self.mail.withdraw()
                raise
            self.mail.num_corrupt = corrupt_before + connection.num_corrupt
            if picture is None:
                quiet_s = perf_counter() - self.heard_at
                if quiet_s > self.allowed_s:
                    raise ConnectionLost(
                        f"nothing that came in {quiet_s:.1f} s was a whole picture"
                    )
                continue
            self.allowed_s = self._options.stall_timeout_s
            self.num_attempts = 0
            replaced = self.mail.put(picture)
            self.heard_at = perf_counter()  # the reader of a video may have let it wait
            if replaced is not None:
                self._give_back(replaced.image_bgr)

    def _tell_loss(self, reason: str) -> None:
        if not self._is_loss_told:
            self._is_loss_told = True
            self.mail.put(Lost(reason))
