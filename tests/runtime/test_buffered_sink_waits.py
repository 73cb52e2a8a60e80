"""How long a buffered sink is waited for: without limit, anew with each result, until the stop."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

from gated_sink import PATIENCE_S, GatedSink, counts, wait_for
from pipeline_fakes import CollectingSink, results_of

from runtime.pipeline.sinks import BufferedSink, buffered
from runtime.pipeline.sinks.by_source import BySource
from runtime.pipeline.stopping import StopSignal


def on_a_thread(work, *arguments) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    return thread


def test_reader_that_sleeps_is_waited_for_without_limit_and_said_so_once(monkeypatch, caplog):
    monkeypatch.setattr(buffered, "LONGEST_WRITE_S", 0.05)
    inner = GatedSink()
    sink = BufferedSink(inner, keeps_all=True, capacity=1, drain_s=0.01, longest_write_s=None)
    writing = on_a_thread(lambda: [sink.write(result) for result in results_of(5)])
    wait_for(lambda: "gated has taken nothing for 0.05 s" in caplog.text)
    inner.gate.release(3)  # it holds one and one waits when no more come
    writing.join(PATIENCE_S)
    closing = on_a_thread(sink.close)
    closing.join(0.3)
    assert closing.is_alive()
    inner.open_gate()
    closing.join(PATIENCE_S)
    assert counts(sink) == (5, 0, 0)
    assert sink.error is None or "finish" in str(sink.error)  # its own end took over 0.01 s
    assert len(caplog.text.splitlines()) == 1 + (sink.error is not None)


def test_time_to_drain_starts_anew_with_each_result(monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(buffered, "time", SimpleNamespace(monotonic=lambda: now_s[0]))

    class Slow(CollectingSink):
        def write(self, result):
            now_s[0] += 8.0
            time.sleep(2 * buffered.POLL_S)  # `close` looks at the clock meanwhile
            super().write(result)

    sink = BufferedSink(Slow(), keeps_all=True, drain_s=10.0)
    for result in results_of(4):
        sink.write(result)
    sink.close()
    assert counts(sink) == (4, 0, 0)
    assert sink.error is None


def test_stop_bounds_the_wait_for_a_reader_that_sleeps_and_counts_what_is_lost():
    inner, stop = GatedSink(), StopSignal()
    sink = BufferedSink(
        inner, keeps_all=True, capacity=2, drain_s=0.2, longest_write_s=None, stop=stop
    )
    writing = on_a_thread(lambda: [sink.write(result) for result in results_of(10)])
    inner.wait_until_it_holds_one()
    writing.join(0.3)
    assert writing.is_alive()
    stop.set()
    writing.join(PATIENCE_S)
    assert not writing.is_alive()
    sink.close()
    assert counts(sink) == (0, 7, 3)
    assert "did not finish" in str(sink.error)
    inner.open_gate()


def test_stop_bounds_a_close_that_waits():
    inner, stop = GatedSink(), StopSignal()
    sink = BufferedSink(inner, keeps_all=True, drain_s=0.2, longest_write_s=None, stop=stop)
    for result in results_of(3):
        sink.write(result)
    inner.wait_until_it_holds_one()
    closing = on_a_thread(sink.close)
    closing.join(0.5)
    assert closing.is_alive()
    stop.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert counts(sink) == (0, 0, 3)
    inner.open_gate()


def test_sinks_told_of_the_end_finish_before_they_are_closed():
    inner = CollectingSink()
    sink = BufferedSink(inner, keeps_all=True)
    BySource({"numbered": sink}).expect_no_more()
    wait_for(lambda: inner.is_closed)
    sink.close()
    assert sink.error is None
