from __future__ import annotations

import numpy as np
import pytest

from runtime.pipeline.timing import StageTimes
from runtime.web import history
from runtime.web.history import ROWS_A_SECOND, SECONDS, RecentTimes

STAGES = ("engine", "draw")


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(history, "monotonic", lambda: now[0])
    return now


def add_second(times, clock, values):
    for value in values:
        times.add({"engine": value})
    clock[0] += 1


def test_history_has_the_mean_of_each_second_and_nothing_for_one_without_a_frame(clock):
    times = RecentTimes(100, STAGES)
    add_second(times, clock, [1.0, 3.0])
    add_second(times, clock, [])
    add_second(times, clock, [7.0])
    engine, draw = times.recent()
    assert engine["history_ms"][-3:] == [2.0, None, 7.0]
    assert engine["history_ms"][:-3] == [None] * (SECONDS - 4)
    assert (engine["mean_ms"], engine["p50_ms"]) == (pytest.approx(11 / 3, abs=1e-3), 3.0)
    assert (draw["mean_ms"], draw["p50_ms"], draw["p99_ms"]) == (None, None, None)


def test_second_under_way_is_left_out(clock):
    times = RecentTimes(100, STAGES)
    times.add({"engine": 5.0})
    assert times.recent()[0]["mean_ms"] is None
    clock[0] += 1
    assert times.recent()[0]["mean_ms"] == 5.0


def test_what_is_older_than_the_window_is_forgotten(clock):
    times = RecentTimes(1000, STAGES)
    for number in range(3 * SECONDS):
        add_second(times, clock, [float(number)])
    (engine, _) = times.recent()
    assert engine["history_ms"] == [float(2 * SECONDS + 1 + n) for n in range(SECONDS - 1)]
    clock[0] += 10 * SECONDS
    assert times.recent()[0]["mean_ms"] is None
    add_second(times, clock, [4.0])
    assert times.recent()[0]["history_ms"][-1] == 4.0


def test_percentiles_are_numpys_over_the_window(clock):
    times = RecentTimes(10, STAGES)
    random = np.random.default_rng(0)
    values = random.gamma(2.0, 5.0, (20, ROWS_A_SECOND))
    for row in values:
        add_second(times, clock, row.tolist())
    (engine, _) = times.recent()
    assert engine["p50_ms"] == pytest.approx(np.percentile(values, 50), abs=2e-3)
    assert engine["p99_ms"] == pytest.approx(np.percentile(values, 99), abs=2e-3)
    assert engine["mean_ms"] == pytest.approx(values.mean(), abs=2e-3)


def test_times_of_the_whole_run_are_as_without_a_history(clock):
    recent, plain = RecentTimes(50, STAGES), StageTimes(50, STAGES)
    for number in range(200):
        for times in (recent, plain):
            times.add({"engine": float(number), "draw": 1.0})
        clock[0] += 0.1
    assert recent.spreads() == plain.spreads()


def test_memory_is_fixed(clock):
    times = RecentTimes(10, STAGES)
    size = times._recent_rows.nbytes
    for _ in range(1000):
        times.add({"engine": 1.0})
    clock[0] += 1
    assert times._recent_rows.nbytes == size == SECONDS * ROWS_A_SECOND * len(STAGES) * 4
    assert times.recent()[0]["mean_ms"] == 1.0
