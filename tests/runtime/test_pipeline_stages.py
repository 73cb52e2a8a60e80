from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from pipeline_fakes import CollectingSink, NumberedSource, NumberPredictor

from runtime.pipeline.sources.base import POOL_SIZE
from runtime.pipeline.stages import Pipeline
from runtime.pipeline.stopping import StopSignal

BOTH_WAYS = pytest.mark.parametrize("is_sequential", [True, False], ids=["sequential", "overlap"])
NO_HANG_S = 5.0  # a broken run is to be over long before
NO_FRAME_DRAWN_ON = (255, 255, 255)


def run(source, predictor, sink, **options):
    return Pipeline(source, predictor, [sink], **options).run()


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + NO_HANG_S
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


@BOTH_WAYS
def test_every_frame_of_a_file_arrives_once_and_in_order(is_sequential):
    sink = CollectingSink()
    summary = run(NumberedSource(300), NumberPredictor(), sink, is_sequential=is_sequential)
    assert sink.rows == [(number, number, number) for number in range(300)]
    assert (summary.num_frames, summary.num_decoded, summary.num_dropped) == (300, 300, 0)
    assert not summary.was_stopped


@BOTH_WAYS
def test_end_closes_source_and_sinks(is_sequential):
    source, sink = NumberedSource(3), CollectingSink()
    run(source, NumberPredictor(), sink, is_sequential=is_sequential)
    assert source.is_closed
    assert sink.is_closed


@BOTH_WAYS
def test_empty_source_gives_no_result(is_sequential):
    sink = CollectingSink()
    summary = run(NumberedSource(0), NumberPredictor(), sink, is_sequential=is_sequential)
    assert summary.num_frames == 0
    assert sink.rows == []


@BOTH_WAYS
def test_run_ends_after_max_frames(is_sequential):
    sink = CollectingSink()
    options = {"max_frames": 7, "is_sequential": is_sequential}
    assert run(NumberedSource(1000), NumberPredictor(), sink, **options).num_frames == 7
    assert len(sink.rows) == 7


def test_predictor_is_told_the_time_of_every_frame():
    predictor = NumberPredictor()
    run(NumberedSource(5), predictor, CollectingSink())
    assert predictor.told == [(index / 25.0, 0) for index in range(5)]


def test_predictor_is_told_how_many_frames_of_a_camera_were_lost():
    predictor, sink = NumberPredictor(delay_s=0.02), CollectingSink()
    summary = run(NumberedSource(60, is_live=True, interval_s=0.002), predictor, sink)
    indices = [row[0] for row in sink.rows]
    lost = np.diff([-1, *indices]) - 1
    assert [num_dropped for _, num_dropped in predictor.told] == lost.tolist()
    assert 0 < lost.sum() <= summary.num_dropped


def test_predictor_is_used_by_one_thread_only():
    predictor = NumberPredictor()
    run(NumberedSource(50), predictor, CollectingSink())
    assert predictor.threads == {threading.get_ident()}


def test_slow_sink_loses_no_frame_of_a_file():
    sink = CollectingSink(delay_s=0.005)
    summary = run(NumberedSource(60), NumberPredictor(), sink)
    assert [row[0] for row in sink.rows] == list(range(60))
    assert summary.num_dropped == 0


@BOTH_WAYS
def test_slow_engine_drops_old_frames_of_a_camera_and_counts_them(is_sequential):
    source = NumberedSource(100, is_live=True, interval_s=0.002)
    sink = CollectingSink()
    summary = run(source, NumberPredictor(delay_s=0.02), sink, is_sequential=is_sequential)
    indices = [row[0] for row in sink.rows]
    assert indices == sorted(set(indices))
    assert summary.num_dropped > 0
    assert summary.num_frames + summary.num_dropped == summary.num_decoded == 100


def test_age_of_a_cameras_frames_does_not_grow():
    source = NumberedSource(150, is_live=True, interval_s=0.002)
    sink = CollectingSink()
    run(source, NumberPredictor(delay_s=0.01), sink)
    waiting_ms = 2 * (10 + 2)  # one frame under way, one waiting; each an engine run and a picture
    late = sorted(sink.ages_ms[-10:])[5]
    assert late < waiting_ms + 20  # and what a shared machine adds


@BOTH_WAYS
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"source": 5}, "the source broke"),
        ({"engine": 5}, "the engine broke"),
        ({"sink": 5}, "the sink broke"),
    ],
    ids=["capture", "engine", "sink"],
)
def test_error_in_a_stage_ends_the_run_with_its_message(is_sequential, broken, message):
    source = NumberedSource(10_000, fails_at=broken.get("source"))
    predictor = NumberPredictor(fails_at=broken.get("engine"))
    sink = CollectingSink(fails_at=broken.get("sink"))
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        run(source, predictor, sink, is_sequential=is_sequential)
    assert time.monotonic() - started < NO_HANG_S
    assert source.is_closed
    assert sink.is_closed


def test_results_before_a_broken_engine_are_written():
    sink = CollectingSink()
    with pytest.raises(RuntimeError):
        run(NumberedSource(100), NumberPredictor(fails_at=20), sink, is_sequential=True)
    assert [row[0] for row in sink.rows] == list(range(20))


@BOTH_WAYS
def test_stop_drains_what_was_taken_and_ends_well(is_sequential):
    stop = StopSignal()
    sink = CollectingSink(delay_s=0.001)
    threading.Timer(0.1, lambda: setattr(stop, "is_set", True)).start()
    source = NumberedSource(100_000)
    summary = run(source, NumberPredictor(), sink, is_sequential=is_sequential, stop=stop)
    assert summary.was_stopped
    assert 0 < summary.num_frames == len(sink.rows) == summary.num_decoded
    assert sink.is_closed


def test_stop_does_not_wait_for_a_camera_that_hangs(monkeypatch):
    monkeypatch.setattr("runtime.pipeline.stages.LONGEST_JOIN_S", 0.1)
    stop = StopSignal()
    source = NumberedSource(1000, is_live=True, hangs_at=3)
    threading.Timer(0.1, lambda: setattr(stop, "is_set", True)).start()
    started = time.monotonic()
    summary = run(source, NumberPredictor(), CollectingSink(), stop=stop)
    assert time.monotonic() - started < NO_HANG_S
    assert summary.was_stopped
    assert not source.is_closed  # a capture that is being read must not be released
    source.let_go.set()


def test_frames_memory_is_used_again():
    source = NumberedSource(300)
    images = set()

    class Sink(CollectingSink):
        def write(self, result):
            super().write(result)
            images.add(result.frame.image_bgr.ctypes.data)

    run(source, NumberPredictor(), Sink())
    assert len(images) <= POOL_SIZE


def test_picture_is_drawn_on_only_where_a_sink_wants_it():
    drawn = []

    class Sink(CollectingSink):
        def write(self, result):
            drawn.append(tuple(result.frame.image_bgr[0, 0]) == NO_FRAME_DRAWN_ON)

    run(NumberedSource(3), NumberPredictor(), Sink())
    run(NumberedSource(3), NumberPredictor(), Sink(wants_picture=True))
    assert drawn == [False] * 3 + [True] * 3


def test_every_stage_of_every_frame_is_timed():
    pipeline = Pipeline(NumberedSource(20), NumberPredictor(), [CollectingSink(wants_picture=True)])
    pipeline.run()
    assert {
        name: spread.count for name, spread in pipeline.times.spreads().items()
    } == dict.fromkeys(
        ("capture", "preprocess", "engine", "finish", "draw", "sink", "total", "age"), 20
    )


def test_total_is_no_less_than_the_sink_took():
    pipeline = Pipeline(
        NumberedSource(5), NumberPredictor(), [CollectingSink(delay_s=0.01)], is_sequential=True
    )
    pipeline.run()
    assert pipeline.times.samples("total").min() >= pipeline.times.samples("sink").min() >= 10.0
