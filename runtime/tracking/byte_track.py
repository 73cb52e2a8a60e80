"""Ids over the frames of one camera: ByteTrack (Zhang et al., arXiv:2110.06864), for any results.

Boxes are matched to where tracks are expected: sure ones first, to all tracks; then those of low
score to tracks that were seen a frame ago, since what is half hidden scores low. Matches are within
a class. A track begins with a sure box that no track claims, and gets its id with its second.

Written here, on NumPy and SciPy's assignment. Of the kept libraries, supervision took its ByteTrack
out in 0.30, and trackers, where it went, requires opencv-python, which would take the place of the
headless or the system's OpenCV; norfair has another method, and boxmot is AGPL and needs torch.

What differs from the published code: time is in seconds, not frames (`runtime/tracking/motion.py`);
what is sure is told by the bundle's threshold, not by a constant, since scores of two networks are
not comparable; overlaps are not multiplied by scores (as in the paper's runs on MOT20), which would
ask more overlap of boxes from a network whose scores are low; boxes are enlarged before they are
compared, since small objects and lost frames are common on the edge. The limits are those that did
best on validation clips of the street; `benchmarks/tracking.py` scores them on others.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.contract.matching import pairwise_iou
from runtime.results import Detections
from runtime.tracking.motion import BoxMotion

NO_TRACK = -1  # the id of a result that belongs to no track
_SAME_TRACK_IOU = 0.85  # of a track that is seen and a lost one: both are of one object

SomeDetections = TypeVar("SomeDetections", bound=Detections)
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class TrackerOptions:
    """How results become tracks.

    Attributes:
        high_score: a result of this score or more is sure, where `Tracker.update` is not told.
        low_score: less sure ones from here on continue a track, and begin none.
        new_margin: by how much a score is over `high_score` where a track begins.
        enlarge: boxes grow by so much of their sides on each before they are compared, so that
            what is small and fast overlaps with itself (C-BIoU, arXiv:2211.14317).
        match_iou: least overlap of a sure box with where its track is expected.
        low_match_iou: likewise of a box that is not sure.
        new_match_iou: likewise of a track that was seen once.
        max_lost_s: a track that is not seen for longer is ended, seconds. More than the time from
            frame to frame, or nothing is ever tracked.
    """

    high_score: float = 0.5
    low_score: float = 0.1
    new_margin: float = 0.1
    enlarge: float = 0.5
    match_iou: float = 0.15
    low_match_iou: float = 0.7
    new_match_iou: float = 0.5
    max_lost_s: float = 1.0

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(self) if field.name != "max_lost_s"]
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1.")
        if not 0 < self.max_lost_s < math.inf:
            raise ValueError(
                f"max_lost_s is {self.max_lost_s}; expected a number of seconds above 0."
            )


@dataclass(slots=True, eq=False)
class _Tracks:
    """T tracks.

    Attributes:
        motion: of their boxes.
        ids: (T,) int64, NO_TRACK while it was seen only once. classes: (T,) int32.
        seen_s, begun_s: (T,) when it was seen last and first.
    """

    motion: BoxMotion
    ids: NDArray[np.int64]
    classes: NDArray[np.int32]
    seen_s: NDArray[np.float64]
    begun_s: NDArray[np.float64]

    @classmethod
    def begin(cls, detections: Detections, time_s: float) -> _Tracks:
        times = np.full(len(detections), time_s)
        return cls(
            BoxMotion.begin(detections.boxes_xyxy),
            np.full(len(detections), NO_TRACK, np.int64),
            detections.classes.astype(np.int32),
            times,
            times.copy(),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: NDArray[Any]) -> _Tracks:
        return _Tracks(
            self.motion[index],
            self.ids[index],
            self.classes[index],
            self.seen_s[index],
            self.begun_s[index],
        )

    def joined(self, others: _Tracks) -> _Tracks:
        return _Tracks(
            self.motion.joined(others.motion),
            np.concatenate([self.ids, others.ids]),
            np.concatenate([self.classes, others.classes]),
            np.concatenate([self.seen_s, others.seen_s]),
            np.concatenate([self.begun_s, others.begun_s]),
        )


class Tracker:
    """Gives the results of one camera's frames ids that stay; for one thread.

    Args:
        options: see `TrackerOptions`.
        ids: where new ids come from, 1, 2, 3 ... when None. Trackers that share one never give the
            same id.

    Raises:
        ImportError: SciPy is missing.
    """

    def __init__(
        self, options: TrackerOptions | None = None, ids: Iterator[int] | None = None
    ) -> None:
        if importlib.util.find_spec("scipy") is None:
            raise ImportError(
                "tracking needs it: pip install 'kestrel-vision[track]'", name="scipy"
            )
        self.options = options or TrackerOptions()
        self._ids = itertools.count(1) if ids is None else ids
        self.restart()

    def restart(self) -> None:
        """End all tracks, as after a reconnect or a change of size. No id is given again."""
        self._tracks: _Tracks | None = None
        self._time_s = -math.inf

    @property
    def alive_ids(self) -> frozenset[int]:
        """Of the tracks that are seen, or were seen not long ago."""
        tracks = self._tracks
        return frozenset() if tracks is None else frozenset(tracks.ids[tracks.ids > 0].tolist())

    def update(
        self,
        detections: SomeDetections,
        time_s: float,
        high_score: float | NDArray[Any] | None = None,
    ) -> SomeDetections:
        """Take the next frame's results.

        Args:
            detections: or poses, instances, faces; low scores among them, for the second matching.
            time_s: when the frame was taken. A time before the last one begins anew.
            high_score: what is sure: one number, or (K,), one a class; None for the options'.

        Returns:
            The same with `track_ids` (N,) int64, NO_TRACK where there is none.
        """
        if time_s < self._time_s:
            self.restart()
        options = self.options
        scores, classes = detections.scores, detections.classes
        high = np.asarray(options.high_score if high_score is None else high_score, np.float64)
        high = high if high.ndim == 0 else high[classes]
        is_sure = scores >= high
        is_low = ~is_sure & (scores >= options.low_score)
        may_begin = is_sure & (scores >= high + options.new_margin)
        track_ids = np.full(len(detections), NO_TRACK, np.int64)
        tracks = self._tracks
        if tracks is None:  # the first frame: all begin at once
            new = np.flatnonzero(may_begin)
            tracks = _Tracks.begin(detections[new], time_s)
            tracks.ids[:] = self._new_ids(len(new))
            track_ids[new] = tracks.ids
        else:
            step_s = time_s - self._time_s
            is_fresh = tracks.seen_s == self._time_s
            tracks, is_fresh = self._without_old(tracks, is_fresh, time_s)
            tracks.motion.advance(step_s, keeps_size=~is_fresh)
            owners = self._match(detections, tracks, is_fresh, is_sure, is_low)
            is_owned = owners >= 0
            rows = np.flatnonzero(is_owned)
            self._take(tracks, owners[rows], detections.boxes_xyxy[rows], time_s)
            track_ids[rows] = tracks.ids[owners[rows]]
            new = np.flatnonzero(may_begin & ~is_owned)
            tracks = tracks[(tracks.ids != NO_TRACK) | (tracks.seen_s == time_s)]
            tracks = _without_doubles(tracks, time_s)
            tracks = tracks.joined(_Tracks.begin(detections[new], time_s))
        self._tracks, self._time_s = tracks, time_s
        return dataclasses.replace(detections, track_ids=track_ids)

    def _without_old(
        self, tracks: _Tracks, is_fresh: NDArray[np.bool_], time_s: float
    ) -> tuple[_Tracks, NDArray[np.bool_]]:
        stays = time_s - tracks.seen_s <= self.options.max_lost_s
        return tracks[stays], is_fresh[stays]

    def _match(
        self,
        detections: Detections,
        tracks: _Tracks,
        is_fresh: NDArray[np.bool_],
        is_sure: NDArray[np.bool_],
        is_low: NDArray[np.bool_],
    ) -> Places:
        """Which track each result continues: (N,), -1 where none."""
        options = self.options
        expected = _enlarge(tracks.motion.boxes_xyxy, options.enlarge)
        overlap = pairwise_iou(expected, _enlarge(detections.boxes_xyxy, options.enlarge))
        overlap[tracks.classes[:, None] != detections.classes[None]] = 0.0
        owners = np.full(len(detections), -1, np.intp)
        is_known = tracks.ids != NO_TRACK
        rounds = (
            (is_known, is_sure, options.match_iou),
            (is_known & is_fresh, is_low, options.low_match_iou),
            (~is_known, is_sure, options.new_match_iou),
        )
        for whose, what, least in rounds:
            free = np.ones(len(tracks), np.bool_)
            free[owners[owners >= 0]] = False
            ours, theirs = np.flatnonzero(whose & free), np.flatnonzero(what & (owners < 0))
            a, b = assign(overlap[np.ix_(ours, theirs)], least)
            owners[theirs[b]] = ours[a]
        return owners

    def _take(self, tracks: _Tracks, rows: Places, boxes_xyxy: NDArray[Any], time_s: float) -> None:
        """Continue tracks by what was seen of them; those seen twice now get their ids."""
        tracks.motion.correct(rows, boxes_xyxy)
        tracks.seen_s[rows] = time_s
        nameless = rows[tracks.ids[rows] == NO_TRACK]
        tracks.ids[nameless] = self._new_ids(len(nameless))

    def _new_ids(self, count: int) -> list[int]:
        return list(itertools.islice(self._ids, count))


def assign(overlap: NDArray[np.float64], least: float) -> tuple[Places, Places]:
    """Pair rows with columns so that the sum of overlaps beyond the least is highest.

    Args:
        overlap: (A, B). least: pairs of this and less are none.

    Returns:
        Rows and columns of the pairs, as many of each.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(np.maximum(overlap - least, 0.0), maximize=True)
    is_pair = overlap[rows, columns] > least
    return rows[is_pair], columns[is_pair]


def _enlarge(boxes_xyxy: NDArray[Any], share: float) -> NDArray[np.float64]:
    boxes = np.asarray(boxes_xyxy, np.float64)
    sides = share * (boxes[:, 2:] - boxes[:, :2])
    return np.hstack([boxes[:, :2] - sides, boxes[:, 2:] + sides])


def _without_doubles(tracks: _Tracks, time_s: float) -> _Tracks:
    """Of a seen and a lost track in the same place, the one that lasted longer stays."""
    is_seen = tracks.seen_s == time_s
    seen, lost = np.flatnonzero(is_seen), np.flatnonzero(~is_seen)
    if not len(seen) or not len(lost):
        return tracks
    boxes = tracks.motion.boxes_xyxy
    overlap = pairwise_iou(boxes[seen], boxes[lost])
    overlap[tracks.classes[seen][:, None] != tracks.classes[lost][None]] = 0.0
    lasted = tracks.seen_s - tracks.begun_s
    stays = np.ones(len(tracks), np.bool_)
    for a, b in zip(*np.nonzero(overlap > _SAME_TRACK_IOU), strict=True):
        one, other = seen[a], lost[b]
        stays[other if lasted[one] > lasted[other] else one] = False
    return tracks[stays]
