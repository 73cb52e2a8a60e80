"""Paired bootstrap over images: how sure a difference of AP between two artifacts is.

Both artifacts saw the same images, so each resample (Efron, 1979) draws images with replacement and
scores both on the same draw: what is common to both cancels out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.measure.average_precision import Matches


@dataclass(frozen=True, slots=True)
class Drop:
    """How far the AP of one artifact lies below another's, in AP (0..1).

    Attributes:
        drop: on the images themselves; negative where the artifact is better.
        upper_95: one-sided bound: 95 % of the resamples lie at or below it.
        interval_95: 2.5 % and 97.5 % of the resamples.
        standard_error: of the resamples.
        resamples: how many.
    """

    drop: float
    upper_95: float
    interval_95: tuple[float, float]
    standard_error: float
    resamples: int


def bootstrap_drop(
    reference: Matches,
    candidate: Matches,
    *,
    resamples: int = 1000,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> Drop:
    """Estimate the drop and its bounds.

    Args:
        reference, candidate: of the same images, in the same order.
        resamples: how many draws.
        seed: of the draws.
        report: told after each draw how many are done.

    Raises:
        ValueError: the two are of different numbers of images, or have no object.
    """
    count = reference.num_images
    if count != candidate.num_images or not count:
        raise ValueError(
            f"results of {count} and {candidate.num_images} images; expected the same ones. "
            "Run both on one set."
        )
    drop = reference.average_precision() - candidate.average_precision()
    if not np.isfinite(drop):
        raise ValueError(f"no object on {count} images, so there is no AP. Take labelled images.")
    draw = np.random.default_rng(seed)
    drops = np.empty(resamples)
    for number in range(resamples):
        weights = np.bincount(draw.integers(count, size=count), minlength=count)
        drops[number] = reference.average_precision(weights) - candidate.average_precision(weights)
        report(number + 1)
    drops = drops[np.isfinite(drops)]  # a draw may hold no object
    low, high, upper = np.percentile(drops, (2.5, 97.5, 95)).tolist()
    return Drop(drop, upper, (low, high), float(drops.std(ddof=1)), len(drops))
