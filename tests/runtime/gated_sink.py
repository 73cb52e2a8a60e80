"""A sink that the test lets through, and what tests of buffered sinks ask."""

from __future__ import annotations

import threading
import time

from pipeline_fakes import number_of

from runtime.pipeline.sinks import BufferedSink, Sink

PATIENCE_S = 60.0  # this machine may be busy; nothing waits that long when all is well


class GatedSink(Sink):
    """Writes a result only when it is let through; `entered` counts those that came."""

    target = "gated"

    def __init__(self, *, wants_picture: bool = False):
        self.wants_picture = wants_picture
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.seen: list[tuple[int, int]] = []  # index, number in the picture
        self.buffers: set[int] = set()
        self.closed_on: list[int] = []
        self.was_idle = threading.Event()

    def write(self, result):
        self.entered.release()
        assert self.gate.acquire(timeout=PATIENCE_S)
        image = result.frame.image_bgr
        self.buffers.add(image.__array_interface__["data"][0])
        self.seen.append((result.frame.index, number_of(image)))

    def idle(self):
        self.was_idle.set()

    def close(self):
        self.closed_on.append(threading.get_ident())

    def open_gate(self):
        self.gate.release(10_000)

    def wait_until_it_holds_one(self):
        assert self.entered.acquire(timeout=PATIENCE_S)


def counts(sink: BufferedSink) -> tuple[int, int, int]:
    return sink.num_written, sink.num_dropped, sink.num_failed


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
