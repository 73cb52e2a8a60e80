"""Lanes: whose turn it is, what is dropped for what reason, and that every frame is counted."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from pipeline_fakes import picture

from runtime.contract.errors import SourceError
from runtime.pipeline.accounting import AT_END, CORRUPT, REPLACED, TOO_OLD
from runtime.pipeline.lanes import FILE_FRAMES, Lanes
from runtime.pipeline.sources import Frame, Source
from runtime.pipeline.sources.base import NoFrameYet, SourceState
from runtime.pipeline.stopping import StopSignal

LONG_S = 20.0  # a broken test is to be over then
SHORT_S = 0.05


class HandedSource(Source):
    """Gives what the test hands over, when it does; says when it has been read."""

    def __init__(self, name: str = "handed", *, is_live: bool = True):
        super().__init__(name, fps=25.0, is_live=is_live)
        self._handed: list = []
        self._changed = threading.Condition()

    def hand(self, *items):
        """Frames' ages in seconds, None for the end, or errors; wait until all were read."""
        with self._changed:
            self._handed += items
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not self._handed, LONG_S)

    def read(self):
        with self._changed:
            if not self._changed.wait_for(lambda: self._handed, SHORT_S):
                raise NoFrameYet
            item = self._handed.pop(0)
            self._changed.notify_all()
        if item is None:
            return None
        if isinstance(item, BaseException):
            raise item
        self.num_decoded += 1
        index = self.num_decoded - 1
        return Frame(picture(index), index, index / 25, time.perf_counter() - item, 0.1, self.name)

    def close(self):
        pass


@pytest.fixture
def opened():
    """Lanes on sources, ended when the test is over."""
    made = []

    def make(*sources, **options):
        stop = StopSignal()
        lanes = Lanes(sources, stop, **options)
        made.append((lanes, stop))
        lanes.start()
        return lanes

    yield make
    for lanes, stop in made:
        stop.is_set = True
        lanes.close()
        assert lanes.join(LONG_S) == []


def wait_until(is_so):
    deadline = time.monotonic() + LONG_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def taken(turns):
    return [(lane.source.name, frame.index) for lane, frame in turns]


def is_balanced(summary):
    return summary.num_delivered + sum(summary.dropped.values()) == summary.num_captured


def test_newest_frame_of_a_camera_replaces_the_one_that_waits(opened):
    source = HandedSource("a")
    lanes = opened(source)
    source.hand(0, 0, 0)
    wait_until(lambda: lanes.each[0].num_dropped == 2)
    assert taken(lanes.take(9, LONG_S)) == [("a", 2)]
    assert lanes.each[0].summary().dropped[REPLACED] == 2


def test_file_waits_and_loses_nothing(opened):
    source = HandedSource("a", is_live=False)
    lanes = opened(source)
    source.hand(*[0] * (FILE_FRAMES + 1))  # the last one is held by the reader
    got = [taken(lanes.take(9, LONG_S)) for _ in range(FILE_FRAMES + 1)]
    assert got == [[("a", index)] for index in range(FILE_FRAMES + 1)]
    assert lanes.each[0].num_dropped == 0


def test_frame_that_is_too_old_at_its_turn_is_dropped_and_counted(opened):
    source, other = HandedSource("old"), HandedSource("new")
    lanes = opened(source, other, max_age_s=10.0)
    source.hand(11.0)
    other.hand(0.0)
    wait_until(lambda: all(lane._waiting for lane in lanes.each))
    assert taken(lanes.take(9, LONG_S)) == [("new", 0)]
    assert lanes.each[0].summary().dropped[TOO_OLD] == 1
    assert lanes.each[1].num_dropped == 0


def test_frame_that_a_camera_gave_while_the_bundle_was_loaded_is_too_old(opened):
    """Its source was opened, and read once, long before the run began."""
    source = HandedSource("a")
    lanes = opened(source)
    source.hand(30.0)
    wait_until(lambda: lanes.each[0]._waiting)
    with pytest.raises(TimeoutError):
        lanes.take(1, SHORT_S)
    assert lanes.each[0].summary().dropped[TOO_OLD] == 1
    source.hand(0.0)
    assert taken(lanes.take(1, LONG_S)) == [("a", 1)]


def test_frames_of_a_file_are_never_too_old(opened):
    source = HandedSource("a", is_live=False)
    lanes = opened(source, max_age_s=0.001)
    source.hand(100.0)
    assert taken(lanes.take(9, LONG_S)) == [("a", 0)]


def test_lane_that_has_waited_longest_comes_next(opened):
    sources = [HandedSource(name) for name in "abc"]
    lanes = opened(*sources)
    for number in (2, 0, 1):
        sources[number].hand(0)
        wait_until(lambda number=number: lanes.each[number]._waiting)
    sources[2].hand(0)  # a newer frame does not lose it its place
    wait_until(lambda: lanes.each[2].num_dropped == 1)
    assert [taken(lanes.take(1, LONG_S))[0][0] for _ in range(3)] == ["c", "a", "b"]


def test_sources_that_always_wait_take_turns(opened):
    """Two files and a camera: none is served twice before the others were served."""
    films = [HandedSource(name, is_live=False) for name in "ab"]
    camera = HandedSource("c")
    lanes = opened(*films, camera)
    for film in films:
        film.hand(*[0] * FILE_FRAMES)
    wait_until(lambda: all(len(lane._waiting) == FILE_FRAMES for lane in lanes.each[:2]))
    order = []
    for _ in range(FILE_FRAMES):
        camera.hand(0)
        wait_until(lambda: lanes.each[2]._waiting)
        order += [taken(lanes.take(1, LONG_S))[0][0] for _ in range(3)]
    for start in range(0, len(order), 3):
        assert sorted(order[start : start + 3]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("num_waiting", "most", "sizes"),
    [(1, 9, [1]), (3, 9, [2, 1]), (5, 9, [4, 1]), (4, 3, [2, 2]), (2, 1, [1, 1])],
)
def test_frames_that_wait_go_together_as_far_as_they_fill_a_batch(opened, num_waiting, most, sizes):
    sources = [HandedSource(str(number)) for number in range(num_waiting)]
    lanes = opened(*sources, batches=(1, 2, 4))
    for source in sources:
        source.hand(0)
    wait_until(lambda: all(lane._waiting for lane in lanes.each))
    turns = [lanes.take(most, LONG_S) for _ in sizes]
    assert [len(each) for each in turns] == sizes
    assert len({name for each in turns for name, _ in taken(each)}) == num_waiting


def test_take_gives_nothing_once_all_sources_have_ended(opened):
    sources = [HandedSource("a"), HandedSource("b", is_live=False)]
    lanes = opened(*sources)
    for source in sources:
        source.hand(0)
        wait_until(lambda source=source: source.num_decoded)
        source.hand(None)
    assert sorted(taken(lanes.take(1, LONG_S)) + taken(lanes.take(1, LONG_S))) == [
        ("a", 0),
        ("b", 0),
    ]
    assert lanes.take(1, LONG_S) == []
    assert [source.state for source in sources] == [SourceState.ENDED] * 2


def test_take_gives_up_waiting_for_a_camera_that_gives_nothing(opened):
    lanes = opened(HandedSource())
    with pytest.raises(TimeoutError):
        lanes.take(1, SHORT_S)


def test_source_that_fails_is_told_and_does_not_end_the_others(opened, caplog):
    caplog.set_level("INFO")
    sources = [HandedSource("a"), HandedSource("b")]
    lanes = opened(*sources)
    sources[0].hand(SourceError("the cable is out"))
    wait_until(lambda: sources[0].state is SourceState.FAILED and "go on" in caplog.text)
    sources[1].hand(0)
    assert taken(lanes.take(1, LONG_S)) == [("b", 0)]
    assert lanes.each[0].summary().error == "the cable is out"
    assert "a is lost; 1 of 2 sources go on" in caplog.text
    assert "Traceback" not in caplog.text


def test_frames_left_at_the_end_are_counted_and_their_memory_given_back(opened):
    source = HandedSource("a", is_live=False)
    lanes = opened(source)
    source.hand(*[0] * (FILE_FRAMES + 1))
    lanes.close()
    assert lanes.join(LONG_S) == []
    summary = lanes.each[0].summary()
    assert summary.dropped[AT_END] == summary.num_captured == FILE_FRAMES + 1
    assert source.take_buffer() is not None


def test_frames_that_never_reach_the_lane_are_captured_and_dropped(opened):
    source = HandedSource("a")
    lanes = opened(source)
    source.num_corrupt, source.num_overtaken = 3, 5
    source.hand(0)
    ((lane, _),) = lanes.take(1, LONG_S)
    lane.note_delivered(5.0)
    summary = lane.summary()
    assert (summary.num_captured, summary.num_delivered) == (9, 1)
    assert (summary.dropped[CORRUPT], summary.dropped[REPLACED]) == (3, 5)
    assert summary.num_dropped == 5  # corrupt ones are told by themselves
    assert is_balanced(summary)


def test_many_frames_of_many_sources_are_all_counted(opened):
    """Readers at full speed against a consumer that takes, drops by age, and ends early."""
    random = np.random.default_rng(3)

    class Busy(HandedSource):
        def read(self):
            if self.num_decoded == 400:
                return None
            index, self.num_decoded = self.num_decoded, self.num_decoded + 1
            if index % 50 == 7:
                time.sleep(0.001)
                raise NoFrameYet
            age = random.choice((0.0, 20.0))
            return Frame(picture(index), index, 0.0, time.perf_counter() - age, 0.1, self.name)

    sources = [Busy(str(number), is_live=number % 2 == 0) for number in range(6)]
    lanes = opened(*sources, batches=(1, 2, 4), max_age_s=10.0)
    for _ in range(120):
        for lane, frame in lanes.take(4, LONG_S):
            lane.note_delivered(1.0)
            lane.source.recycle(frame)
    lanes.close()
    assert lanes.join(LONG_S) == []
    for lane in lanes.each:
        summary = lane.summary()
        assert is_balanced(summary)
        num_skipped = len([i for i in range(lane.source.num_decoded) if i % 50 == 7])
        assert summary.num_captured == lane.source.num_decoded - num_skipped
        if not lane.source.is_live:
            assert summary.dropped[REPLACED] == summary.dropped[TOO_OLD] == 0
