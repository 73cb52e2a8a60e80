"""Files at their own rate, on a clock that only waiting moves."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.pipeline.sources.base import Frame, NoFrameYet, Source
from runtime.pipeline.sources.paced import LONGEST_WAIT_S, MOST_LATE_S, PacedSource

FPS = 10.0
EXACT_S = 1e-9


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s

    def wait(self, seconds):
        assert 0 < seconds <= LONGEST_WAIT_S
        self.now_s += seconds


class Film(Source):
    """Frames at given times; each takes `reading_s` to read."""

    def __init__(self, clock, times_s, reading_s=0.01):
        super().__init__("film", fps=FPS, is_live=False)
        self.clock, self.times_s, self.reading_s = clock, times_s, reading_s
        self.num_promised = len(times_s) + 1
        self.recycled = []
        self.is_closed = False

    def read(self):
        index = self.num_decoded
        if index == len(self.times_s):
            self.num_corrupt = 1
            return None
        self.num_decoded += 1
        begun_at = self.clock()
        self.clock.now_s += self.reading_s
        image = np.zeros((2, 2, 3), np.uint8)
        return Frame(image, index, self.times_s[index], begun_at, 10.0, self.name, begun_at + 1e9)

    def recycle(self, frame):
        self.recycled.append(frame)

    def close(self):
        self.is_closed = True


def paced(times_s, **film):
    clock = Clock()
    inner = Film(clock, times_s, **film)
    return PacedSource(inner, clock=clock, wait=clock.wait), inner, clock


def given_at(source, clock):
    found = []
    for frame in source:
        found.append((frame, clock()))
    return found


def test_frames_come_when_their_times_say_and_all_of_them():
    times_s = [0.0, 0.1, 0.2, 0.45, 0.5]  # a variable rate, too
    source, _, clock = paced(times_s)
    found = given_at(source, clock)
    began = found[0][1]
    assert np.allclose([at - began for _, at in found], times_s, atol=EXACT_S)
    assert [frame.index for frame, _ in found] == list(range(5))


def test_age_counts_from_the_moment_that_a_frame_was_due():
    source, inner, clock = paced([0.0, 0.1, 0.2])
    for frame, at in given_at(source, clock):
        assert at - frame.captured_at == pytest.approx(inner.reading_s, abs=EXACT_S)
        assert frame.wall_time_s - 1e9 == pytest.approx(frame.captured_at, abs=1e-6)
        assert frame.capture_ms == 10.0


def test_long_pause_in_a_film_is_waited_for_in_pieces_that_a_stop_can_interrupt():
    source, _, clock = paced([0.0, 3.0])
    assert source.read() is not None
    begun = clock()
    for _ in range(5):
        with pytest.raises(NoFrameYet):
            source.read()
    assert source.read().time_s == 3.0
    assert clock() - begun == pytest.approx(3.0, abs=EXACT_S)


def test_film_that_was_held_up_goes_on_at_its_rate_and_does_not_hurry():
    source, _, clock = paced([index / FPS for index in range(6)])
    source.read()
    source.read()
    clock.now_s += 5.0  # the engine was busy
    times = [at for _, at in given_at(source, clock)]
    assert np.allclose(np.diff(times), 1 / FPS, atol=EXACT_S)


def test_little_lateness_is_made_up():
    source, _, clock = paced([index / FPS for index in range(6)])
    began = None
    for index in range(6):
        source.read()
        began = clock() if began is None else began
        if index == 2:
            clock.now_s += MOST_LATE_S / 2
    assert clock() - began == pytest.approx(5 / FPS, abs=EXACT_S)


def test_what_the_file_tells_is_passed_on():
    source, inner, _ = paced([0.0, 0.1])
    assert (source.name, source.fps, source.is_live) == ("film", FPS, False)
    frame = source.read()
    source.recycle(frame)
    assert inner.recycled == [frame]
    assert source.read() is not None
    assert source.read() is None
    assert (source.num_decoded, source.num_corrupt, source.num_promised) == (2, 1, 3)
    source.close()
    assert inner.is_closed
