"""Interleaved rounds: every peer has a turn in each, so that a slow minute hits all of them.

The figure of a peer is the median over its frames; the ratio of two peers is that of their medians
over the rounds, with an interval from resampling whole rounds (paired bootstrap): frames of one
turn are not independent, rounds are nearly so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.peers import Peer, Turn

NUM_RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percentiles
LEAST_FRAMES, MOST_FRAMES = 2, 50  # of a turn


@dataclass
class Series:
    """What one peer did in all rounds.

    Attributes:
        num_frames: of each turn.
        results_a_frame: detections, over one pass of all frames before the first round.
        turns: one a round.
    """

    num_frames: int
    results_a_frame: float
    turns: list[Turn] = field(default_factory=list)

    @property
    def ms(self) -> NDArray[np.float64]:
        """(N,) milliseconds of every frame, in order."""
        return np.array([ms for turn in self.turns for ms in turn.ms])

    @property
    def parts_ms(self) -> dict[str, NDArray[np.float64]]:
        """(N,) milliseconds of every frame for each part that the peer knows of."""
        names = self.turns[0].parts_ms if self.turns else ()
        return {
            name: np.array([ms for turn in self.turns for ms in turn.parts_ms[name]])
            for name in names
        }

    @property
    def round_ms(self) -> NDArray[np.float64]:
        """(R,) the median frame of each round."""
        return np.array([np.median(turn.ms) for turn in self.turns])


def run_rounds(
    peers: Mapping[str, Peer],
    *,
    num_frames: int,
    num_rounds: int,
    turn_s: float,
    rest_s: float,
    report: Callable[[str], None],
    seed: int = 0,
) -> dict[str, Series]:
    """Measure all peers.

    Args:
        peers: by name; the order is drawn anew for every round.
        num_frames: that the peers have; each runs all of them once, which also warms it up.
        num_rounds: R.
        turn_s: about how long a turn lasts; the frames of a turn are the same in all rounds.
        rest_s: before each turn: the threads of the peer before it go to sleep.
        report: told of every round.
        seed: of the order.
    """
    all_series = {}
    for name, peer in peers.items():
        once = peer.run(num_frames)
        wanted = math.ceil(turn_s * 1e3 / float(np.median(once.ms)))
        length = min(max(wanted, LEAST_FRAMES), MOST_FRAMES)
        all_series[name] = Series(length, once.num_results / num_frames)
    random = np.random.default_rng(seed)
    for number in range(num_rounds):
        begun = time.perf_counter()
        for name in random.permutation(list(peers)).tolist():
            time.sleep(rest_s)
            peers[name].run(1)  # brings its weights back into the caches; not counted
            all_series[name].turns.append(peers[name].run(all_series[name].num_frames))
        report(f"round {number + 1} of {num_rounds}: {time.perf_counter() - begun:.1f} s")
    return all_series


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the reference: the ratio of medians, and its 95 % interval."""

    times_faster: float
    low: float
    high: float


def compare(series: Series, reference: Series, *, seed: int = 0) -> Ratio:
    """A peer against the reference, over the rounds that both were in."""
    own, other = series.round_ms, reference.round_ms  # (R,) each, paired
    picks = np.random.default_rng(seed).integers(0, len(own), (NUM_RESAMPLES, len(own)))
    resampled = np.median(other[picks], axis=1) / np.median(own[picks], axis=1)
    low, high = np.percentile(resampled, INTERVAL).tolist()
    return Ratio(float(np.median(other) / np.median(own)), low, high)
