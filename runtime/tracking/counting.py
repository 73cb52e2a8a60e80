"""Counts tracks over lines and in zones; what trembles on a line is counted once.

A track is on a side only when its point is farther from the line than a margin. Nearer, it stays
where it was last: it has crossed when it is surely on the other side.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.results import Detections
from runtime.tracking.counts import (
    ENTERED,
    LEFT,
    TO_LEFT,
    TO_RIGHT,
    Counts,
    Event,
    Line,
    LineCount,
    Zone,
    ZoneCount,
    name_apart,
)

# Where in a box (x, y) the point lies that counts, in shares of its sides.
POINTS = {
    "bottom_centre": (0.5, 1.0),  # where things touch the ground
    "centre": (0.5, 0.5),
    "top_centre": (0.5, 0.0),
}
LEAST_MARGIN_PX = 2.0

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CountingOptions:
    """How tracks are counted.

    Attributes:
        point: of POINTS, the point of a box that counts.
        margin_share: how far beyond a line a point is sure to be, in shares of its box's longer
            side; at least LEAST_MARGIN_PX.
    """

    point: str = "bottom_centre"
    margin_share: float = 0.05

    def __post_init__(self) -> None:
        if self.point not in POINTS:
            raise ValueError(f"point is {self.point!r}; expected one of {', '.join(POINTS)}.")
        if not 0 <= self.margin_share < math.inf:
            raise ValueError(f"margin_share is {self.margin_share}; expected 0 or more.")


class Counting:
    """Counts the tracks of one camera; for one thread.

    Args:
        lines, zones: in pixels of the source frame; names are to differ.
        options: see `CountingOptions`.

    Raises:
        ValueError: two lines or two zones of one name.
    """

    def __init__(
        self,
        lines: Sequence[Line] = (),
        zones: Sequence[Zone] = (),
        options: CountingOptions | None = None,
    ) -> None:
        name_apart([line.name for line in lines], "line")
        name_apart([zone.name for zone in zones], "zone")
        self.options = options or CountingOptions()
        self.lines = tuple(_LineCounter(line) for line in lines)
        self.zones = tuple(_ZoneCounter(zone) for zone in zones)

    def anew(self) -> Counting:
        """The same lines and zones, with nothing counted."""
        counts = self.counts
        lines, zones = [each.line for each in counts.lines], [each.zone for each in counts.zones]
        return Counting(lines, zones, self.options)

    @property
    def counts(self) -> Counts:
        """As of the last frame."""
        return Counts(
            tuple(each.count for each in self.lines), tuple(each.count for each in self.zones)
        )

    def update(self, detections: Detections, alive_ids: Collection[int]) -> Counts:
        """Take the next frame's tracks.

        Args:
            detections: with `track_ids`; those of no track do not count.
            alive_ids: tracks that may be seen again; all others are forgotten, and no longer inside
                any zone.
        """
        assert detections.track_ids is not None, "tracked first"
        seen = _Seen.of(detections, self.options)
        for line in self.lines:
            line.update(seen, alive_ids)
        for zone in self.zones:
            zone.update(seen, alive_ids)
        return self.counts


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """N tracks in a frame.

    Attributes:
        ids, names: of each and its class. points: (N, 2) pixels. margins: (N,) pixels.
    """

    ids: list[int]
    names: list[str]
    points: Points
    margins: NDArray[np.float64]

    @classmethod
    def of(cls, detections: Detections, options: CountingOptions) -> _Seen:
        assert detections.track_ids is not None
        rows = np.flatnonzero(detections.track_ids >= 0)
        boxes = detections.boxes_xyxy[rows].astype(np.float64)
        sides = boxes[:, 2:] - boxes[:, :2]
        margins = np.maximum(options.margin_share * sides.max(axis=1, initial=0), LEAST_MARGIN_PX)
        names = [detections.names[index] for index in detections.classes[rows]]
        points = boxes[:, :2] + sides * POINTS[options.point]
        return cls(detections.track_ids[rows].tolist(), names, points, margins)


class _LineCounter:
    def __init__(self, line: Line) -> None:
        self.count = LineCount(line, {}, {})
        self._start = np.array(line.start_xy)
        self._along = np.array(line.end_xy) - self._start
        self._length = float(np.hypot(*self._along))
        self._last: dict[int, tuple[float, Points]] = {}  # distance and point, both sure

    def update(self, seen: _Seen, alive_ids: Collection[int]) -> None:
        away = seen.points - self._start
        # Rightward of the line is positive: in a picture y points down.
        distances = (self._along[0] * away[:, 1] - self._along[1] * away[:, 0]) / self._length
        events = []
        rows = zip(seen.ids, seen.names, seen.points, distances, seen.margins, strict=True)
        for track_id, name, point, distance, margin in rows:
            if abs(distance) <= margin:
                continue
            before = self._last.get(track_id)
            self._last[track_id] = (float(distance), point)
            if before is not None and (before[0] > 0) != (distance > 0):
                share = before[0] / (before[0] - distance)
                place = before[1] + share * (point - before[1])
                along = float((place - self._start) @ self._along) / self._length**2
                if 0 <= along <= 1:  # and not past the line's end
                    events.append(Event(track_id, name, TO_RIGHT if distance > 0 else TO_LEFT))
        self._last = {key: value for key, value in self._last.items() if key in alive_ids}
        self.count = dataclasses.replace(
            self.count,
            to_right=_add(self.count.to_right, events, TO_RIGHT),
            to_left=_add(self.count.to_left, events, TO_LEFT),
            events=tuple(events),
        )


class _ZoneCounter:
    def __init__(self, zone: Zone) -> None:
        self.count = ZoneCount(zone, {}, {}, {})
        self._corners = np.array(zone.corners_xy, np.float64)
        # Whether it is inside, its class, and whether it was ever beyond the margin.
        self._last: dict[int, tuple[bool, str, bool]] = {}

    def update(self, seen: _Seen, alive_ids: Collection[int]) -> None:
        events = []
        is_inside = points_inside(seen.points, self._corners)
        depths = distances_to_rim(seen.points, self._corners)
        rows = zip(seen.ids, seen.names, is_inside, depths, seen.margins, strict=True)
        for track_id, name, now, depth, margin in rows:
            before = self._last.get(track_id)
            is_sure = bool(depth > margin)
            if before is None:
                self._last[track_id] = (bool(now), name, is_sure)
            elif is_sure and (before[0] != now or not before[2]):
                self._last[track_id] = (bool(now), name, True)
                if before[2]:  # else it was first seen on the rim, and may have come from here
                    events.append(Event(track_id, name, ENTERED if now else LEFT))
        self._last = {key: value for key, value in self._last.items() if key in alive_ids}
        inside = Counter(name for now, name, _ in self._last.values() if now)
        self.count = dataclasses.replace(
            self.count,
            inside=dict(sorted(inside.items())),
            entered=_add(self.count.entered, events, ENTERED),
            left=_add(self.count.left, events, LEFT),
            events=tuple(events),
        )


def points_inside(points: Points, corners: Points) -> NDArray[np.bool_]:
    """Which points (N, 2) lie in a polygon (n, 2), by even-odd."""
    a, b = corners, np.roll(corners, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]  # (N, 1)
    spans = (a[:, 1] > y) != (b[:, 1] > y)  # (N, n) sides that the point's row crosses
    drop = np.where(a[:, 1] == b[:, 1], 1.0, b[:, 1] - a[:, 1])
    crossing = a[:, 0] + (y - a[:, 1]) / drop * (b[:, 0] - a[:, 0])
    odd: NDArray[np.bool_] = (spans & (x < crossing)).sum(axis=1) % 2 == 1
    return odd


def distances_to_rim(points: Points, corners: Points) -> NDArray[np.float64]:
    """How far points (N, 2) are from the sides of a polygon (n, 2), pixels."""
    sides = np.roll(corners, -1, axis=0) - corners
    away = points[:, None] - corners  # (N, n, 2)
    squares = np.maximum((sides**2).sum(axis=-1), np.finfo(float).tiny)
    share = np.clip((away * sides).sum(axis=-1) / squares, 0, 1)
    nearest: NDArray[np.float64] = np.linalg.norm(away - share[..., None] * sides, axis=-1)
    closest: NDArray[np.float64] = nearest.min(axis=1)
    return closest


def _add(figures: Mapping[str, int], events: Sequence[Event], kind: str) -> dict[str, int]:
    added = Counter(figures) + Counter(e.class_name for e in events if e.kind == kind)
    return dict(sorted(added.items()))
