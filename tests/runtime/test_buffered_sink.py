from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest
from gated_sink import PATIENCE_S, GatedSink, counts, wait_for
from pipeline_fakes import CollectingSink, results_of

from runtime.contract.errors import SinkError
from runtime.pipeline.sinks import BufferedSink, buffered

# --- what it hands over


@pytest.mark.parametrize("wants_picture", [True, False], ids=["picture", "no-picture"])
def test_all_results_come_in_order_on_a_thread_of_its_own(wants_picture):
    inner = GatedSink(wants_picture=wants_picture)
    inner.open_gate()
    sink = BufferedSink(inner, keeps_all=True, capacity=3)
    for result in results_of(50):
        sink.write(result)
    sink.close()
    pictures = range(50) if wants_picture else [0] * 50
    assert inner.seen == list(zip(range(50), pictures, strict=True))
    assert counts(sink) == (50, 0, 0)
    assert len(inner.closed_on) == 1
    assert inner.closed_on[0] != threading.get_ident()


def test_queued_picture_is_not_the_callers_who_may_draw_on_it():
    inner = GatedSink(wants_picture=True)
    sink = BufferedSink(inner, keeps_all=True, capacity=3)
    for result in results_of(3):
        sink.write(result)
        result.frame.image_bgr[:] = 255
        result.times_ms["total"] = 1.0
    inner.open_gate()
    sink.close()
    assert inner.seen == [(0, 0), (1, 1), (2, 2)]


def test_pictures_take_no_more_memory_than_the_queue_is_long():
    inner = GatedSink(wants_picture=True)
    inner.open_gate()
    sink = BufferedSink(inner, keeps_all=True, capacity=2)
    for result in results_of(200):
        sink.write(result)
    sink.close()
    assert len(inner.seen) == 200
    assert len(inner.buffers) <= 2 + 1 + 1  # queued, held, and one freed while another was copied


def test_pictures_may_change_their_size():
    inner = GatedSink(wants_picture=True)
    inner.open_gate()
    sink = BufferedSink(inner, keeps_all=True, capacity=2)
    for size_wh in [(64, 48), (32, 24), (64, 48)]:
        for result in results_of(5, size_wh):
            sink.write(result)
    sink.close()
    assert inner.seen == [(index, index) for index in range(5)] * 3


def test_sink_without_pictures_still_sees_their_shape():
    shapes = []

    class ShapeSink(CollectingSink):
        def write(self, result):
            shapes.append(result.frame.image_bgr.shape)

    sink = BufferedSink(ShapeSink(), keeps_all=True)
    sink.write(next(results_of(1, (640, 360))))
    sink.close()
    assert shapes == [(360, 640, 3)]


def test_sink_hears_that_nothing_comes():
    inner = GatedSink()
    sink = BufferedSink(inner, keeps_all=True)
    assert inner.was_idle.wait(PATIENCE_S)
    sink.close()


# --- a sink that is slow


def test_live_sink_that_is_full_drops_what_comes_and_counts_it():
    inner = GatedSink()
    sink = BufferedSink(inner, keeps_all=False, capacity=4)
    results = list(results_of(20))
    sink.write(results[0])
    inner.wait_until_it_holds_one()
    for result in results[1:]:
        sink.write(result)
    assert sink.num_dropped == 20 - 1 - 4
    inner.open_gate()
    sink.close()
    assert [index for index, _ in inner.seen] == [0, 1, 2, 3, 4]
    assert counts(sink) == (5, 15, 0)


def test_live_pictures_do_not_wait_long_behind_a_slow_encoder(monkeypatch):
    monkeypatch.setattr(buffered, "LONGEST_QUEUED_S", 0.0)
    inner = GatedSink(wants_picture=True)
    sink = BufferedSink(inner, keeps_all=False, capacity=4)
    results = list(results_of(10))
    sink.write(results[0])
    inner.wait_until_it_holds_one()
    for result in results[1:]:
        sink.write(result)
    inner.open_gate()
    sink.close()
    assert [index for index, _ in inner.seen] == [0, 1]
    assert counts(sink) == (2, 8, 0)


def test_files_sink_that_is_full_is_waited_for():
    inner = GatedSink()
    sink = BufferedSink(inner, keeps_all=True, capacity=1)
    results = list(results_of(3))
    sink.write(results[0])
    inner.wait_until_it_holds_one()
    sink.write(results[1])
    waiting = threading.Thread(target=sink.write, args=(results[2],))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    inner.open_gate()
    waiting.join(PATIENCE_S)
    sink.close()
    assert counts(sink) == (3, 0, 0)


# --- a sink that hangs


def test_live_sink_that_hangs_costs_the_run_nothing_and_close_does_not_wait_for_it(caplog):
    inner = GatedSink()
    sink = BufferedSink(inner, keeps_all=False, capacity=4, drain_s=0.05)
    results = list(results_of(20))
    sink.write(results[0])
    inner.wait_until_it_holds_one()
    for result in results[1:]:
        sink.write(result)
    sink.close()
    assert counts(sink) == (0, 15, 5)
    assert "gated did not finish within 0.05 s" in str(sink.error)
    assert len(caplog.records) == 1
    inner.open_gate()  # at last it answers: nothing is counted twice, and it is closed
    wait_for(lambda: inner.closed_on)
    assert counts(sink) == (0, 15, 5)


def test_files_sink_that_hangs_is_given_up_after_its_time(caplog):
    inner = GatedSink()
    sink = BufferedSink(inner, keeps_all=True, capacity=2, drain_s=0.05, longest_write_s=0.1)
    for result in results_of(10):
        sink.write(result)
    sink.close()
    assert counts(sink) == (0, 0, 10)
    assert isinstance(sink.error, SinkError)
    assert not sink.is_open
    assert caplog.text.count("did not take a result within 0.1 s") == 1
    assert "Going on without gated" in caplog.text
    inner.open_gate()


def test_sink_that_hangs_in_close_is_not_waited_for():
    let_go = threading.Event()

    class HangsAtTheEnd(CollectingSink):
        def close(self):
            let_go.wait(PATIENCE_S)

    sink = BufferedSink(HangsAtTheEnd(), keeps_all=True, drain_s=0.05)
    for result in results_of(3):
        sink.write(result)
    wait_for(lambda: sink.num_written == 3)
    sink.close()
    let_go.set()
    assert counts(sink) == (3, 0, 0)
    assert "did not finish" in str(sink.error)


# --- a sink that raises


@pytest.mark.parametrize("keeps_all", [True, False], ids=["file", "live"])
def test_sink_that_raises_is_closed_reported_once_and_counted(keeps_all, caplog):
    inner = CollectingSink(fails_at=2)
    sink = BufferedSink(inner, keeps_all=keeps_all, capacity=100)
    with caplog.at_level(logging.INFO):
        for result in results_of(10):
            sink.write(result)
        wait_for(lambda: inner.is_closed)
        sink.write(next(results_of(1)))
        sink.close()
    assert counts(sink) == (2, 0, 9)
    assert str(sink.error) == "the sink broke"
    assert [record.getMessage() for record in caplog.records] == [
        "RuntimeError: the sink broke. Going on without memory."
    ]


def test_sink_that_fails_to_close_is_reported_and_close_does_not_raise(caplog):
    class FailsAtTheEnd(CollectingSink):
        def close(self):
            raise SinkError("memory cannot be closed.")

    sink = BufferedSink(FailsAtTheEnd(), keeps_all=True)
    for result in results_of(3):
        sink.write(result)
    sink.close()
    sink.close()
    assert counts(sink) == (3, 0, 0)
    assert isinstance(sink.error, SinkError)
    assert [record.getMessage() for record in caplog.records] == ["memory cannot be closed."]


def test_waiting_writer_is_let_go_when_the_sink_fails():
    class FailsWhenToldTo(GatedSink):
        def write(self, result):
            super().write(result)
            raise RuntimeError("broke")

    inner = FailsWhenToldTo()
    sink = BufferedSink(inner, keeps_all=True, capacity=1)
    results = list(results_of(3))
    sink.write(results[0])
    inner.wait_until_it_holds_one()
    sink.write(results[1])
    waiting = threading.Thread(target=sink.write, args=(results[2],))
    waiting.start()
    inner.open_gate()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    sink.close()
    assert counts(sink) == (0, 0, 3)


def test_results_that_the_sink_itself_lost_count_as_failed():
    class Loses(CollectingSink):
        def write(self, result):
            self.num_lost += result.frame.index % 2

    sink = BufferedSink(Loses(), keeps_all=True)
    for result in results_of(10):
        sink.write(result)
    sink.close()
    assert counts(sink) == (5, 0, 5)


@pytest.mark.parametrize("keeps_all", [True, False], ids=["file", "live"])
def test_every_result_is_counted_once_whenever_the_sink_breaks(keeps_all):
    for fails_at in range(0, 40, 7):
        sink = BufferedSink(
            CollectingSink(delay_s=1e-4, fails_at=fails_at), keeps_all=keeps_all, capacity=3
        )
        for result in results_of(40):
            sink.write(result)
        sink.close()
        assert sum(counts(sink)) == 40
        if keeps_all:
            assert sink.num_written == fails_at


def test_many_sinks_leave_no_threads_behind():
    before = threading.active_count()
    for _ in range(20):
        sink = BufferedSink(CollectingSink(), keeps_all=True)
        sink.write(next(results_of(1)))
        sink.close()
    assert threading.active_count() == before


def test_pool_gives_no_picture_that_is_still_queued():
    """Random timing on both sides; each picture's number must match its index."""
    rng = np.random.default_rng(0)
    inner = CollectingSink(wants_picture=True, delay_s=1e-4)
    sink = BufferedSink(inner, keeps_all=False, capacity=2)
    for result in results_of(400):
        sink.write(result)
        if rng.random() < 0.5:
            time.sleep(2e-4)
    sink.close()
    assert len(inner.rows) == sink.num_written
    assert all(index == in_picture for index, _, in_picture in inner.rows)
