"""What crossed lines and is in zones: figures as of one frame, for JSON, pictures and people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TO_RIGHT, TO_LEFT = "to_right", "to_left"
ENTERED, LEFT = "entered", "left"


@dataclass(frozen=True, slots=True)
class Line:
    """A line from one point to another. Its right is the right hand of who walks along it.

    Attributes:
        name: for people. start_xy, end_xy: pixels of the source frame.
    """

    name: str
    start_xy: tuple[float, float]
    end_xy: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Zone:
    """A polygon; where its sides cross, even-odd says what is inside.

    Attributes:
        name: for people. corners_xy: three or more, pixels of the source frame.
    """

    name: str
    corners_xy: tuple[tuple[float, float], ...]


class Event(NamedTuple):
    """A track crossed a line or the rim of a zone in this frame.

    Attributes:
        track_id: of the track. class_name: of its class.
        kind: TO_RIGHT or TO_LEFT of a line, ENTERED or LEFT of a zone.
    """

    track_id: int
    class_name: str
    kind: str


@dataclass(frozen=True, slots=True)
class LineCount:
    """A line's figures, by class name.

    Attributes:
        to_right, to_left: tracks that crossed so far. events: of this frame.
    """

    line: Line
    to_right: Mapping[str, int]
    to_left: Mapping[str, int]
    events: tuple[Event, ...] = ()

    def to_json(self) -> dict[str, Any]:
        figures = {TO_RIGHT: dict(self.to_right), TO_LEFT: dict(self.to_left)}
        return {"name": self.line.name, **figures, "events": _events_to_json(self.events)}

    def __str__(self) -> str:
        words = f"{_by_class(self.to_right)} to the right, {_by_class(self.to_left)} to the left"
        return f"line {self.line.name}: {words}"


@dataclass(frozen=True, slots=True)
class ZoneCount:
    """A zone's figures, by class name.

    Attributes:
        inside: tracks that are inside now, those that are out of sight for a moment as well.
        entered, left: tracks that went over its rim so far; who appears or is lost inside did not.
        events: of this frame.
    """

    zone: Zone
    inside: Mapping[str, int]
    entered: Mapping[str, int]
    left: Mapping[str, int]
    events: tuple[Event, ...] = ()

    def to_json(self) -> dict[str, Any]:
        figures = {"inside": dict(self.inside), ENTERED: dict(self.entered), LEFT: dict(self.left)}
        return {"name": self.zone.name, **figures, "events": _events_to_json(self.events)}

    def __str__(self) -> str:
        words = f"{_by_class(self.inside)} inside, {_by_class(self.entered)} entered"
        return f"zone {self.zone.name}: {words}, {_by_class(self.left)} left"


@dataclass(frozen=True, slots=True)
class Counts:
    """All lines and zones of one source, as of one frame."""

    lines: tuple[LineCount, ...] = ()
    zones: tuple[ZoneCount, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """{"lines": [...], "zones": [...]}, each with its name, figures by class name and events.

        A line has "to_right" and "to_left", a zone "inside", "entered" and "left"; an event is
        {"track_id", "name", "kind"}.
        """
        return {
            "lines": [each.to_json() for each in self.lines],
            "zones": [each.to_json() for each in self.zones],
        }

    def __str__(self) -> str:
        return "; ".join(str(each) for each in (*self.lines, *self.zones))


def parse_lines(texts: Sequence[str]) -> tuple[Line, ...]:
    """Lines as the command line has them: x1,y1,x2,y2[:name]; one without a name is its number.

    Raises:
        ValueError: other than that, or a line of no length.
    """
    return tuple(_parse_line(text, str(number)) for number, text in enumerate(texts, start=1))


def parse_zones(texts: Sequence[str]) -> tuple[Zone, ...]:
    """Zones as the command line has them: x1,y1,x2,y2,x3,y3,...[:name]; as `parse_lines`.

    Raises:
        ValueError: other than that, or a polygon without an area.
    """
    return tuple(_parse_zone(text, str(number)) for number, text in enumerate(texts, start=1))


def _parse_line(text: str, number: str) -> Line:
    form = "x1,y1,x2,y2[:name]"
    numbers, name = _parse(text, "line", form)
    if len(numbers) != 4:
        raise ValueError(f"line {text!r} has {len(numbers)} numbers; expected 4, as {form}.")
    start, end = (numbers[0], numbers[1]), (numbers[2], numbers[3])
    if start == end:
        raise ValueError(f"line {text!r} begins where it ends; expected two points, as {form}.")
    return Line(name or number, start, end)


def _parse_zone(text: str, number: str) -> Zone:
    form = "x1,y1,x2,y2,x3,y3,...[:name]"
    numbers, name = _parse(text, "zone", form)
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(
            f"zone {text!r} has {len(numbers)} numbers; expected two for each of 3 or more "
            f"corners, as {form}."
        )
    corners = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    away = np.subtract(corners, corners[0])
    if np.linalg.matrix_rank(away) < 2:
        raise ValueError(f"zone {text!r} is flat; expected corners around an area, as {form}.")
    return Zone(name or number, corners)


def _parse(text: str, what: str, form: str) -> tuple[list[float], str]:
    places, _, name = text.partition(":")
    try:
        numbers = [float(each) for each in places.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not np.isfinite(numbers).all():
        raise ValueError(f"{what} {text!r} is not numbers; expected {form} in pixels of the frame.")
    return numbers, name.strip()


def name_apart(names: list[str], what: str) -> None:
    """Refuse a name that stands twice.

    Raises:
        ValueError: it does.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{what} {name!r} is there {names.count(name)} times; expected names that differ. "
                "Give each its own after a colon."
            )


def bounds_of(shape: Line | Zone) -> NDArray[np.float64]:
    """(4,) as (x1, y1, x2, y2) around a line or zone."""
    corners = (shape.start_xy, shape.end_xy) if isinstance(shape, Line) else shape.corners_xy
    points = np.array(corners, np.float64)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _events_to_json(events: tuple[Event, ...]) -> list[dict[str, Any]]:
    return [{"track_id": e.track_id, "name": e.class_name, "kind": e.kind} for e in events]


def _by_class(figures: Mapping[str, int]) -> str:
    """Such as 3 car, 1 person; or 0."""
    return ", ".join(f"{count} {name}" for name, count in figures.items() if count) or "0"
