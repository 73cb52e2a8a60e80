"""Histograms and the ranges chosen from them, held against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest

from export.precision.int8.ranges import (
    METHODS,
    NUM_BINS,
    NUM_CANDIDATES,
    SMALLEST,
    Histogram,
    choose_amax,
)

RNG = np.random.default_rng(0)
SAMPLES = {
    "normal": RNG.normal(size=50_000),
    "relu": np.maximum(RNG.normal(size=50_000), 0),
    "heavy_tail": RNG.standard_t(3, size=50_000),
    "one_outlier": np.append(RNG.normal(size=50_000), 60.0),
    "uniform": RNG.uniform(-3, 3, size=50_000),
    "tiny": 1e-6 * RNG.normal(size=50_000),
}
each_sample = pytest.mark.parametrize("values", SAMPLES.values(), ids=SAMPLES)


def filled(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part.astype(np.float32))
    return histogram


@each_sample
def test_histogram_counts_magnitudes_as_numpy_does(values):
    histogram = filled(values)
    magnitudes = np.abs(values.astype(np.float32)).astype(np.float64)
    expected, _ = np.histogram(magnitudes, NUM_BINS, (0, histogram.top))
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.largest == magnitudes.max()


@each_sample
def test_histogram_does_not_depend_on_the_order_of_frames(values):
    parts = np.array_split(values, 7)
    forward, backward = filled(*parts), filled(*parts[::-1])
    np.testing.assert_array_equal(forward.counts, backward.counts)
    assert (forward.top, forward.largest) == (backward.top, backward.largest)


def test_range_doubles_when_a_larger_value_comes():
    histogram = filled(np.full(3, 0.7), np.full(2, 90.0))
    assert histogram.top == 128
    assert histogram.counts.sum() == 5
    assert histogram.counts[int(0.7 / 128 * NUM_BINS)] == 3


def test_power_of_two_itself_is_counted():
    assert filled(np.array([1.0, -1.0])).counts[-1] == 2


def test_zeros_before_anything_else_are_counted():
    histogram = filled(np.zeros(5), np.array([2.5]))
    assert histogram.counts[0] == 5
    assert histogram.counts.sum() == 6


@pytest.mark.parametrize("method", METHODS)
def test_tensor_of_zeros_has_range_0(method):
    assert choose_amax(filled(np.zeros(9)), method) == 0


def test_values_that_float32_has_no_scale_for_are_zeros():
    histogram = Histogram()
    for values in ([1e-38, -2e-36], [3.0, 1e-35]):
        histogram.add(np.array(values, np.float32))
    assert (histogram.top, histogram.largest) == (4.0, 3.0)
    assert histogram.counts[0] == 3
    assert histogram.counts.sum() == 4


def test_empty_tensor_changes_nothing():
    histogram = filled(np.zeros((1, 0, 4)))
    assert histogram.counts.sum() == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_value_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="1 of 3 values are no finite"):
        filled(np.array([1.0, bad, 2.0]))


def test_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'median' is unknown; expected one of mse"):
        choose_amax(filled(np.ones(3)), "median")


def squared_error(values: np.ndarray, amax: float) -> float:
    """Brute force: every value rounded and cut, in float64."""
    step = amax / 127
    rounded = np.clip(np.rint(np.abs(values) / step), 0, 127) * step
    return float(((np.abs(values) - rounded) ** 2).sum())


@each_sample
def test_mse_is_the_best_of_all_candidates_by_brute_force(values):
    values = values.astype(np.float32).astype(np.float64)
    largest = np.abs(values).max()
    candidates = np.geomspace(largest * SMALLEST, largest, NUM_CANDIDATES)
    least = min(squared_error(values, amax) for amax in candidates)
    found = squared_error(values, choose_amax(filled(values), "mse"))
    assert least <= found <= 1.01 * least  # a histogram of 4096 bins in place of the values


def divergence(values: np.ndarray, amax: float, width: float) -> float:
    """Brute force: distributions over bins of `width`, value by value, bin 0 left out."""
    bins = np.floor(np.abs(values) / width).astype(int)
    bins = bins[bins > 0]
    num_kept = round(amax / width)
    cut = np.minimum(bins, num_kept - 1)
    kept = bins[bins < num_kept]
    if not len(kept) or len({*cut.tolist()} - {*kept.tolist()}):
        return np.inf
    levels = {place: round((place + 0.5) * 127 / num_kept) for place in {*kept.tolist()}}
    held: dict[int, int] = {}
    for level in levels.values():
        held[level] = held.get(level, 0) + 1
    mass: dict[int, int] = {}
    for place in kept.tolist():
        mass[levels[place]] = mass.get(levels[place], 0) + 1
    total = 0.0
    for place in {*cut.tolist()}:
        p = np.count_nonzero(cut == place) / len(cut)
        q = mass[levels[place]] / held[levels[place]] / len(kept)
        total += p * np.log(p / q)
    return total


@pytest.mark.parametrize("name", ["normal", "relu", "heavy_tail"])
def test_entropy_is_the_best_of_all_candidates_by_brute_force(name):
    values = SAMPLES[name][:2000].astype(np.float32).astype(np.float64)
    histogram = filled(values)
    width = histogram.top / NUM_BINS
    found = choose_amax(histogram, "entropy")
    candidates = np.geomspace(histogram.largest * SMALLEST, histogram.largest, NUM_CANDIDATES)
    least = min(divergence(values, amax, width) for amax in candidates[::8])
    assert divergence(values, found, width) <= least + 1e-9


@each_sample
def test_percentile_is_numpy_s_to_a_bin(values):
    histogram = filled(values)
    expected = np.percentile(np.abs(values), 99.99)
    gap = np.sort(np.abs(values))[-8:]
    tolerance = histogram.top / NUM_BINS + np.diff(gap).max()  # few values lie that far out
    assert abs(choose_amax(histogram, "percentile") - expected) <= tolerance


@each_sample
@pytest.mark.parametrize("method", METHODS)
def test_no_method_keeps_more_than_the_largest(method, values):
    histogram = filled(values)
    assert 0 < choose_amax(histogram, method) <= histogram.largest
    assert choose_amax(histogram, "max") == histogram.largest


def test_mse_cuts_an_outlier_that_the_maximum_keeps():
    histogram = filled(SAMPLES["one_outlier"])
    assert choose_amax(histogram, "max") == 60
    assert choose_amax(histogram, "percentile") < 5
    assert choose_amax(histogram, "mse") < 50
