"""From the values that a tensor took to the largest magnitude that int8 keeps.

A histogram of magnitudes is filled frame by frame, so memory does not grow with the frames. Its
range is a power of two and doubles when a larger value comes, two bins becoming one: what it holds
does not depend on the order of the frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 4096
LEVELS = 127
PERCENTILE = 99.99
NUM_CANDIDATES = 128
SMALLEST = 1 / 64  # of the largest magnitude: no method cuts more off
NOTHING = 1e-30  # magnitudes below it are taken for 0: float32 has no scale for them
_CHUNK = 1 << 15  # values that stay in the cache while they are counted


class Histogram:
    """Magnitudes of one tensor.

    Attributes:
        counts: (NUM_BINS,) int64, bins of equal width over [0, top).
        top: a power of two; 0 until a value other than 0 came.
        largest: the largest magnitude, exactly.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(NUM_BINS, np.int64)
        self.top = 0.0
        self.largest = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values of any shape.

        Raises:
            ValueError: one is not finite.
        """
        flat = values.reshape(-1)
        if not flat.size:
            return
        largest = max(float(flat.max()), -float(flat.min()))
        if not math.isfinite(largest):
            raise ValueError(
                f"{np.count_nonzero(~np.isfinite(flat))} of {flat.size} values are no finite "
                "numbers. Train again, or mend the checkpoint."
            )
        self._widen(largest if largest > NOTHING else 0.0)
        scale = np.float32(NUM_BINS / self.top) if self.top else np.float32(0)
        bins, places = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.intp)
        counts = np.zeros(NUM_BINS + 1, np.int64)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            scaled, place = bins[: part.size], places[: part.size]
            np.multiply(part, scale, out=scaled)
            np.abs(scaled, out=scaled)
            np.copyto(place, scaled, casting="unsafe")
            counts += np.bincount(place, minlength=NUM_BINS + 1)
        counts[-2] += counts[-1]  # a value of `top` itself
        self.counts += counts[:-1]

    def _widen(self, largest: float) -> None:
        self.largest = max(self.largest, largest)
        if not largest:
            return
        top = 2.0 ** math.ceil(math.log2(largest))
        if not self.top:
            self.top = top  # what was counted so far was 0
        while self.top < top:
            halved = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([halved, np.zeros(NUM_BINS // 2, np.int64)])
            self.top *= 2


def choose_amax(histogram: Histogram, method: str) -> float:
    """Give the largest magnitude that is kept; larger values are cut to it.

    Args:
        histogram: of the tensor.
        method: a key of METHODS.

    Returns:
        From 0, where the tensor was 0 throughout, up to `histogram.largest`.

    Raises:
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; expected one of {', '.join(METHODS)}.")
    if not histogram.largest:
        return 0.0
    return min(METHODS[method](histogram), histogram.largest)


def _take_largest(histogram: Histogram) -> float:
    return histogram.largest


def _take_percentile(histogram: Histogram) -> float:
    """The magnitude that PERCENTILE percent of the values do not exceed."""
    sums = np.cumsum(histogram.counts)
    wanted = sums[-1] * PERCENTILE / 100
    place = int(np.searchsorted(sums, wanted))
    before = float(sums[place - 1]) if place else 0.0
    share = (wanted - before) / max(1.0, float(histogram.counts[place]))
    return (place + share) * histogram.top / NUM_BINS


def _take_least_error(histogram: Histogram) -> float:
    """The candidate of the least squared error of rounding and cutting.

    Within a bin values are taken as spread evenly, so the error is an integral, and bins wider than
    a step of the quantiser are judged rightly.
    """
    counts = np.trim_zeros(histogram.counts, "b")
    edges = np.arange(len(counts) + 1) * (histogram.top / NUM_BINS)
    amaxes = _candidates(histogram)
    errors = [float(np.diff(_integrate_error(edges, amax)) @ counts) for amax in amaxes]
    return float(amaxes[int(np.argmin(errors))])


def _integrate_error(edges: NDArray[np.float64], amax: float) -> NDArray[np.float64]:
    """Integral of the squared error of magnitudes from 0 to each edge."""
    step = amax / LEVELS
    kept = np.minimum(edges, amax) / step
    whole = np.floor(kept)
    rest = kept - whole  # 0..1 of a step; rounded down below a half, up above
    part = np.where(rest <= 0.5, rest**3, 0.25 - (1 - rest) ** 3) / 3
    return step**3 * (whole / 12 + part) + np.maximum(edges - amax, 0) ** 3 / 3


def _take_least_divergence(histogram: Histogram) -> float:
    """The candidate whose distribution diverges least from the true one (Kullback and Leibler).

    As TensorRT's entropy calibration: values beyond the candidate are counted at its end, a level
    spreads its values evenly over those of its bins that hold any, and the bin of zeros is left
    out, since a ReLU's zeros are exact at any scale.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = 0.0
    width = histogram.top / NUM_BINS
    best, best_amax = math.inf, histogram.largest
    for amax in _candidates(histogram)[::-1]:
        num_kept = max(1, min(NUM_BINS, round(amax / width)))
        divergence = _diverge(counts, num_kept)
        if divergence < best:
            best, best_amax = divergence, num_kept * width
    return best_amax


def _diverge(counts: NDArray[np.float64], num_kept: int) -> float:
    """Divergence of the first bins, quantised, from all; infinite where they hold too little."""
    kept = counts[:num_kept]
    reference = kept.copy()
    reference[-1] += counts[num_kept:].sum()
    is_held = kept > 0
    if not kept.sum() or (reference[-1] and not is_held[-1]):
        return math.inf
    levels = np.rint((np.arange(num_kept) + 0.5) * (LEVELS / num_kept)).astype(np.intp)
    totals = np.bincount(levels, kept)
    num_held = np.bincount(levels, is_held)
    spread = (totals / np.maximum(num_held, 1))[levels]
    p = reference[is_held] / reference.sum()
    q = spread[is_held] / kept.sum()
    return float((p * np.log(p / q)).sum())


def _candidates(histogram: Histogram) -> NDArray[np.float64]:
    largest = histogram.largest
    return np.geomspace(largest * SMALLEST, largest, NUM_CANDIDATES)


METHODS: dict[str, Callable[[Histogram], float]] = {
    "mse": _take_least_error,
    "percentile": _take_percentile,
    "entropy": _take_least_divergence,
    "max": _take_largest,
}
