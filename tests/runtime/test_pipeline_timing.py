from __future__ import annotations

import numpy as np
import pytest

from runtime.pipeline.timing import STAGES, RateMeter, StageTimes

FLOAT32_STEP = 1e-5  # samples are kept as float32
SAMPLING_ERROR = 0.05  # of a median from 2,000 of 20,000 frames: four standard errors


def durations(count: int) -> np.ndarray:
    return np.random.default_rng(0).lognormal(1.0, 0.6, count)


@pytest.mark.parametrize("count", [1, 2, 10, 5000], ids=str)
def test_percentiles_are_numpys(count):
    times, values = StageTimes(), durations(count)
    for value in values:
        times.add({"engine": value})
    spread = times.spread("engine")
    expected = np.percentile(values, (50, 90, 99))
    assert np.allclose((spread.p50, spread.p90, spread.p99), expected, rtol=FLOAT32_STEP)
    assert np.isclose(spread.max, values.max())
    assert np.isclose(spread.mean, values.mean())
    assert spread.count == count


def test_slowest_frame_is_never_lost_when_the_sample_is_full():
    times = StageTimes(capacity=10)
    times.add({"total": 5000.0})
    for _ in range(1000):
        times.add({"total": 1.0})
    assert times.spread("total").max == 5000.0
    assert times.spread("total").count == 1001
    assert not times.is_exact


def test_sample_of_a_long_run_stands_for_all_of_it():
    times, values = StageTimes(capacity=2000), durations(20_000)
    for value in values:
        times.add({"total": value})
    assert abs(times.spread("total").p50 / np.median(values) - 1) < SAMPLING_ERROR


def test_memory_stays_within_the_capacity():
    times = StageTimes(capacity=100)
    for number in range(5000):
        times.add({"total": float(number)})
    assert len(times.samples("total")) == 100


def test_samples_come_in_the_order_of_frames():
    times = StageTimes()
    for number in range(5000):
        times.add({"total": float(number)})
    assert np.array_equal(times.samples("total"), np.arange(5000, dtype=np.float32))


def test_stage_that_did_not_happen_has_no_spread():
    times = StageTimes()
    times.add({"engine": 1.0})
    assert times.spread("draw") is None
    assert list(times.spreads()) == ["engine"]


def test_no_frame_gives_no_spread():
    assert StageTimes().spreads() == {}
    assert "total" in STAGES


def test_rate_forgets_what_is_long_ago():
    meter = RateMeter(seconds=1.0)
    for tick in (0.0, 100.0, 100.1, 100.2):
        meter.tick(tick)
    assert np.isclose(meter.fps, 10.0)


def test_rate_of_a_single_frame_is_zero():
    meter = RateMeter()
    meter.tick(1.0)
    assert meter.fps == 0.0
