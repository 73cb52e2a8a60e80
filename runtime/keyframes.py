"""Which frames of a video are key frames: pure logic, told the times of all that it judges.

A temporal model computes key frames in full and leans on the last one in the frames between, which
cost less and age with every step. A `KeyframeScheduler` chooses for one camera, before each frame,
from what earlier frames told: how far the picture has moved, and what both graphs took. Results
come late (two frames are under way at a time), so what is learned names the choice it belongs to.
"""

from __future__ import annotations

import difflib
import math
import statistics
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.contract.outputs import KEY, NONKEY

SCHEDULES = ("adaptive", "fixed", "key")
LONGEST = 4  # "adaptive" goes this many times `key_interval` without a key frame

THUMBNAIL_HW = (18, 32)
_SAMPLES_A_CELL = 4  # along each side; a cell's mean hides small movements and noise
# A cut: the thumbnail differs from the one before by this share of its contrast, and by so many
# times what frames differed by of late (a camera that pans changes much in every frame).
CUT_SHARE = 0.7
CUT_RATIO = 2.0
_LEAST_CONTRAST = 8.0  # grey levels; below it noise would look like a cut
_NUM_RECENT = 8

_NUM_TIMES = 31  # the times of a graph that its median is over
_LEAST_TIMES = 11  # before it is believed: a busy machine slows single frames down
_FIRST_REST, _LONGEST_REST = 100, 3200  # key frames before frames between are tried again


@dataclass(frozen=True, slots=True)
class KeyframeOptions:
    """How key frames are chosen.

    Attributes:
        schedule: "fixed": one every `key_interval` frames; "adaptive": when the picture has moved,
            at the latest after LONGEST times as many; "key": every frame.
        key_interval: frames from one key frame to the next, 1 or more.
        max_key_age_ms: a key frame older than this, by the times of the frames, is renewed;
            infinity sets no limit.
        max_change_px: "adaptive" renews a key frame from which the picture has moved farther, or
            will have by the next frame; mean pixels of the network input, over what the model says
            of a picture that stands still (which is not 0 where there is no texture).
        max_dropped: frames lost in a row, after which a key frame comes.
        worst_share: frames between pay while their median time is at most this share of a key
            frame's; where they do not, key frames alone are run, and the others tried again now
            and then. Infinity never asks.
    """

    schedule: str = "adaptive"
    key_interval: int = 5
    max_key_age_ms: float = 1000.0
    max_change_px: float = 0.4
    max_dropped: int = 5
    worst_share: float = 0.9

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            near = difflib.get_close_matches(str(self.schedule), SCHEDULES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"schedule is {self.schedule!r}; expected {', '.join(SCHEDULES)}{hint}"
            )
        if self.key_interval < 1:
            raise ValueError(f"key_interval is {self.key_interval}; expected 1 frame or more.")
        for name in ("max_key_age_ms", "max_change_px", "worst_share"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} is {value}; expected a number above 0.")
        if self.max_dropped < 0:
            raise ValueError(f"max_dropped is {self.max_dropped}; expected 0 or more.")


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a frame before it runs.

    Attributes:
        time_s: when it was taken, by any clock that runs forward.
        size_hw: of the source frame.
        thumbnail: as of `thumbnail_of`; None leaves the test for cuts out.
        num_dropped: frames lost since the one before.
    """

    time_s: float
    size_hw: tuple[int, int]
    thumbnail: NDArray[np.float32] | None = None
    num_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """Which graph a frame runs on.

    Attributes:
        graph: KEY or NONKEY.
        reason: why it is a key frame; empty where it is none.
        key_number: of the key frame that it is or leans on.
        distance: frames since that one; 0 of a key frame.
    """

    graph: str
    reason: str
    key_number: int
    distance: int

    @property
    def is_key(self) -> bool:
        return self.graph == KEY


@dataclass(frozen=True, slots=True)
class KeyframeSummary:
    """What a schedule came to.

    Attributes:
        num_key, num_nonkey: frames that ran on each graph.
        reasons: of the key frames, with their number, the most frequent first.
        key_ms, nonkey_ms: medians of the latest; None where none was timed.
    """

    num_key: int
    num_nonkey: int
    reasons: dict[str, int]
    key_ms: float | None
    nonkey_ms: float | None

    def __str__(self) -> str:
        total = max(1, self.num_key + self.num_nonkey)
        why = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items())
        text = f"{self.num_key} key frames ({100 * self.num_key / total:.0f} %: {why or 'none'})"
        if self.key_ms is not None:
            text += f", {self.key_ms:.2f} ms"
        text += f"; {self.num_nonkey} between"
        if self.nonkey_ms is not None:
            text += f", {self.nonkey_ms:.2f} ms"
        return text


class KeyframeScheduler:
    """Chooses for one camera, frame by frame, in the order of the frames. For one thread."""

    def __init__(self, options: KeyframeOptions | None = None) -> None:
        self.options = options or KeyframeOptions()
        self._asked: str | None = "first"  # why the next frame is a key frame, whatever it shows
        self._key: Choice | None = None
        self._key_time_s = 0.0
        self._distance = 0
        # (distance, pixels) of the frames after the last key frame, and after the one before it
        self._changes: list[tuple[int, float]] = []
        self._older: list[tuple[int, float]] = []
        self._is_told = False  # by a model that says how far frames have moved
        self._stills: deque[float] = deque(maxlen=_NUM_RECENT)  # what it said of no motion
        self._last: Sight | None = None
        self._differences: deque[float] = deque(maxlen=_NUM_RECENT)
        self._times: dict[str, deque[float]] = {
            graph: deque(maxlen=_NUM_TIMES) for graph in (KEY, NONKEY)
        }
        self._rest = 0  # key frames still to come for lack of gain
        self._next_rest = _FIRST_REST
        self._counts = Counter[str]()
        self._reasons = Counter[str]()

    def choose(self, sight: Sight) -> Choice:
        """The graph for the next frame."""
        reason = self._why_key(sight)
        self._last = sight
        if reason:
            number = 0 if self._key is None else self._key.key_number + 1
            choice = self._key = Choice(KEY, reason, number, 0)
            self._key_time_s = sight.time_s
            self._distance = 0
            self._older, self._changes = self._changes, []
            self._asked = None
            self._rest = max(0, self._rest - 1)
            self._reasons[reason] += 1
        else:
            assert self._key is not None
            self._distance += 1
            choice = Choice(NONKEY, "", self._key.key_number, self._distance)
        self._counts[choice.graph] += 1
        return choice

    def learn(
        self, choice: Choice, *, change_px: float | None = None, compute_ms: float | None = None
    ) -> None:
        """Take in what a frame told, when its result is there.

        Args:
            choice: of that frame.
            change_px: how far it had moved from its key frame, mean pixels of the network input.
            compute_ms: what the engine took, without waits.
        """
        if change_px is not None and self._key is not None:
            self._is_told = True
            age = self._key.key_number - choice.key_number
            if age <= 1:
                changes = self._older if age else self._changes
                changes.append((choice.distance, change_px))
                self._note_still(changes)
        if compute_ms is not None:
            self._times[choice.graph].append(compute_ms)
            if choice.graph == NONKEY:
                self._ask_whether_they_pay()

    def restart(self, reason: str) -> None:
        """Make the next frame a key frame: what came before it is no longer to be leant on.

        Args:
            reason: for the counters, such as "seek", "reconnect" or "error".
        """
        self._asked = reason
        self._last = None
        self._changes = []
        self._stills.clear()
        self._differences.clear()

    def summary(self) -> KeyframeSummary:
        """The counters and medians so far."""
        return KeyframeSummary(
            self._counts[KEY],
            self._counts[NONKEY],
            dict(self._reasons.most_common()),
            self._median(KEY, 1),
            self._median(NONKEY, 1),
        )

    def _why_key(self, sight: Sight) -> str:
        """Why the frame is to be a key frame; empty where it need not be."""
        is_cut = self._is_cut(sight)  # always asked: it keeps a record of what frames differ by
        if self._asked is not None or self._last is None:
            return self._asked or "first"
        options, last = self.options, self._last
        age_ms = (sight.time_s - self._key_time_s) * 1e3
        is_adaptive = options.schedule == "adaptive" and self._is_told
        interval = options.key_interval * (LONGEST if is_adaptive else 1)
        reasons = (
            (sight.size_hw != last.size_hw, "size"),
            (sight.time_s < last.time_s, "seek"),
            (sight.num_dropped > options.max_dropped, "drops"),
            (is_cut, "cut"),
            (options.schedule == "key", "schedule"),
            (self._rest > 0, "no gain"),
            (self._distance + 1 >= interval, "interval"),
            (age_ms > options.max_key_age_ms, "age"),
            (is_adaptive and self._has_moved(), "change"),
        )
        return next((reason for holds, reason in reasons if holds), "")

    def _has_moved(self) -> bool:
        """Whether the next frame is too far from its key frame: by now, or by the way it grows."""
        if not self._changes:
            return False
        distance, change = self._changes[-1]
        if not math.isfinite(change):
            return True
        still = statistics.median(self._stills) if self._stills else self._changes[0][1]
        before, less = self._changes[-2] if len(self._changes) > 1 else (0, still)
        growth = max(0.0, change - less) / max(1, distance - before)
        ahead = self._distance + 1 - distance
        return change - still + growth * ahead > self.options.max_change_px

    def _note_still(self, changes: list[tuple[int, float]]) -> None:
        """Guess from the first two frames after a key frame what is said of that frame itself."""
        if len(changes) != 2:
            return
        (one, less), (other, more) = changes
        if math.isfinite(less) and math.isfinite(more):
            slope = (more - less) / max(1, other - one)
            self._stills.append(min(max(less - slope * one, 0.0), less))

    def _is_cut(self, sight: Sight) -> bool:
        last = self._last.thumbnail if self._last is not None else None
        if sight.thumbnail is None or last is None:
            return False
        difference = picture_difference(last, sight.thumbnail)
        usual = statistics.median(self._differences) if self._differences else 0.0
        self._differences.append(difference)
        return difference > max(CUT_SHARE, CUT_RATIO * usual)

    def _median(self, graph: str, least: int) -> float | None:
        times = self._times[graph]
        return statistics.median(times) if len(times) >= least else None

    def _ask_whether_they_pay(self) -> None:
        key_ms, nonkey_ms = (self._median(graph, _LEAST_TIMES) for graph in (KEY, NONKEY))
        if key_ms is None or nonkey_ms is None or self._rest:
            return
        if nonkey_ms <= self.options.worst_share * key_ms:
            self._next_rest = _FIRST_REST
            return
        self._rest = self._next_rest
        self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
        self._times[NONKEY].clear()  # the next trial is judged by itself


def thumbnail_of(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A picture in a few grey means: its green, sampled on a grid.

    Args:
        picture: (h, w, 3) of any size.

    Returns:
        THUMBNAIL_HW, 0..255.
    """
    (height, width), (rows, columns) = picture.shape[:2], THUMBNAIL_HW
    ys = np.arange(rows * _SAMPLES_A_CELL) * height // (rows * _SAMPLES_A_CELL)
    xs = np.arange(columns * _SAMPLES_A_CELL) * width // (columns * _SAMPLES_A_CELL)
    samples = picture[ys[:, None], xs, 1]
    cells = samples.reshape(rows, _SAMPLES_A_CELL, columns, _SAMPLES_A_CELL)
    means: NDArray[np.float32] = cells.mean(axis=(1, 3), dtype=np.float32)
    return means


def picture_difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """How much two thumbnails differ, in shares of their contrast.

    0 of equal ones; 1.13 in the mean of unrelated ones whose greys are normally distributed, since
    E|X - Y| = 2 sigma / sqrt(pi).
    """
    contrast = (float(one.std()) + float(other.std())) / 2
    return float(np.abs(one - other).mean()) / max(contrast, _LEAST_CONTRAST)
