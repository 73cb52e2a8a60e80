"""The other end of a live source: gives what it is told to, goes away, hangs and comes back."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from pipeline_fakes import picture

from runtime.pipeline.sources.base import Frame, NoFrameYet, Source
from runtime.pipeline.sources.connection import ConnectionLost, Picture, StreamEnded

LONG_S = 30.0  # for an event that is sure to come, on a machine that is busy


class FakeCamera:
    """Its `connect` is what a `ReconnectingSource` calls.

    Attributes:
        is_there: connections can be opened.
        num_open, num_opened: connections, now and ever.
        let_go: set, calls that hang return.
    """

    def __init__(self, *, has_end: bool = False) -> None:
        self.is_there = True
        self.has_end = has_end
        self.opening_hangs = False
        self.num_open = self.num_opened = self.num_calls = 0
        self.let_go = threading.Event()
        self.wishes: queue.Queue = queue.Queue()

    def show(self, *wishes: object) -> None:
        """What comes next: a picture's number, (number, size_wh), or a word of `FakeConnection`."""
        for wish in wishes:
            self.wishes.put(wish)

    def connect(self) -> FakeConnection:
        self.num_calls += 1
        if self.opening_hangs:
            self.let_go.wait(LONG_S)
        if not self.is_there:
            raise ConnectionLost("nobody is there")
        return FakeConnection(self)


class FakeConnection:
    fps = 25.0

    def __init__(self, camera: FakeCamera) -> None:
        self.camera = camera
        self.has_end = camera.has_end
        self.num_corrupt = 0
        camera.num_open += 1
        camera.num_opened += 1

    def read(self, take_buffer):
        try:
            wish = self.camera.wishes.get(timeout=0.02)
        except queue.Empty:
            return None
        if wish == "lost":
            raise ConnectionLost("the cable was pulled")
        if wish == "bug":
            raise RuntimeError("a bug of ours")
        if wish == "end":
            raise StreamEnded
        if wish == "hang":
            self.camera.let_go.wait(LONG_S)
            return Picture(picture(999), time.perf_counter(), 0.1)
        if wish == "broken":
            self.num_corrupt += 1
            return None
        if isinstance(wish, str):  # "cut 7": 7 is what may have been cut off
            number = int(wish.removeprefix("cut "))
            return Picture(picture(number), time.perf_counter(), 0.1, may_be_cut=True)
        number, size_wh = wish if isinstance(wish, tuple) else (wish, (64, 48))
        time_s = number / self.fps if self.has_end else None
        return Picture(picture(number, size_wh), time.perf_counter(), 0.1, time_s)

    def close(self):
        self.camera.num_open -= 1


def wait_for(condition: Callable[[], object]) -> None:
    """Until it is true; fails where that takes too long even for a busy machine."""
    until = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.005)


def read_frame(source: Source) -> Frame | None:
    """The next frame of a live source, however long it takes."""
    until = time.monotonic() + LONG_S
    while True:
        try:
            return source.read()
        except NoFrameYet:
            assert time.monotonic() < until, "no frame came"
