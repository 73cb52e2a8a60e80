"""Where boxes will be: a Kalman filter of constant velocity for many boxes at once.

The filter of SORT (arXiv:1602.00763) and ByteTrack (arXiv:2110.06864) with BoT-SORT's state of
centre, width and height (arXiv:2206.14651, section 3.1). All its matrices are diagonal over these
four, so it is four filters of two numbers each, position and velocity, and nothing is inverted.

Those count time in frames of a video of about 30 a second. Here it passes in seconds: noise grows
with the time between two frames, so that lost frames and slow cameras need no settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TICK_S = 1 / 30  # the frame that the published noise is told for
POSITION_NOISE = 1 / 20  # of the box's width (x, width) or height (y, height), per tick
VELOCITY_NOISE = 1 / 160  # likewise, of the speed in sides a tick
_FIRST_POSITION, _FIRST_VELOCITY = 2.0, 10.0  # times the noise: what is known of a new box
_LEAST_SIDE = 1.0  # pixels; a box that shrinks to nothing keeps a side


@dataclass(slots=True, eq=False)
class BoxMotion:
    """N boxes on their way; in each row (centre x, centre y, width, height), pixels.

    Attributes:
        place: (N, 4). speed: (N, 4), pixels a tick.
        var_place, covar, var_speed: (N, 4), the covariance of each pair of place and speed.
    """

    place: Floats
    speed: Floats
    var_place: Floats
    covar: Floats
    var_speed: Floats

    @classmethod
    def begin(cls, boxes_xyxy: NDArray[Any]) -> BoxMotion:
        """Boxes (N, 4) seen for the first time: they stand still, as far as is known."""
        place = xyxy_to_cxcywh(boxes_xyxy)
        sides = _sides(place)
        return cls(
            place,
            np.zeros_like(place),
            (_FIRST_POSITION * POSITION_NOISE * sides) ** 2,
            np.zeros_like(place),
            (_FIRST_VELOCITY * VELOCITY_NOISE * sides) ** 2,
        )

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, index: NDArray[Any]) -> BoxMotion:
        """Some of them, as a copy."""
        return BoxMotion(*(part[index] for part in self._parts()))

    def joined(self, others: BoxMotion) -> BoxMotion:
        """These, then others."""
        pairs = zip(self._parts(), others._parts(), strict=True)
        return BoxMotion(*(np.concatenate(pair) for pair in pairs))

    @property
    def boxes_xyxy(self) -> Floats:
        """(N, 4) as (x1, y1, x2, y2)."""
        half = np.maximum(self.place[:, 2:], _LEAST_SIDE) / 2
        return np.hstack([self.place[:, :2] - half, self.place[:, :2] + half])

    def advance(self, seconds: float, *, keeps_size: NDArray[np.bool_]) -> None:
        """Let time pass, in place. A gap in one step or in several is the same.

        Args:
            seconds: 0 or more.
            keeps_size: (N,) boxes that are out of sight: their last change of size says nothing.
        """
        ticks = seconds / TICK_S
        self.speed[keeps_size, 2:] = 0.0
        noise = VELOCITY_NOISE**2 * _sides(self.place) ** 2
        shake = POSITION_NOISE**2 * _sides(self.place) ** 2
        self.place += ticks * self.speed
        self.var_place += (
            2 * ticks * self.covar
            + ticks**2 * self.var_speed
            + ticks * shake
            + ticks**3 / 3 * noise
        )
        self.covar += ticks * self.var_speed + ticks**2 / 2 * noise
        self.var_speed += ticks * noise

    def correct(self, rows: NDArray[np.intp], boxes_xyxy: NDArray[Any]) -> None:
        """Take what was seen of some of them, in place.

        Args:
            rows: (M,) which of the boxes. boxes_xyxy: (M, 4).
        """
        seen = xyxy_to_cxcywh(boxes_xyxy)
        var_place, covar = self.var_place[rows], self.covar[rows]
        total = var_place + (POSITION_NOISE * _sides(self.place[rows])) ** 2
        gain, gain_speed = var_place / total, covar / total
        miss = seen - self.place[rows]
        self.place[rows] += gain * miss
        self.speed[rows] += gain_speed * miss
        self.var_speed[rows] -= gain_speed * covar
        self.covar[rows] -= gain * covar
        self.var_place[rows] -= gain * var_place

    def _parts(self) -> tuple[Floats, ...]:
        return self.place, self.speed, self.var_place, self.covar, self.var_speed


def xyxy_to_cxcywh(boxes_xyxy: NDArray[Any]) -> Floats:
    """(N, 4) corners to (centre x, centre y, width, height)."""
    boxes = np.asarray(boxes_xyxy, np.float64)
    return np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])


def _sides(place: Floats) -> Floats:
    """The side that each of the four numbers is measured by: width, height, width, height."""
    sides = np.maximum(place[:, 2:], _LEAST_SIDE)
    return np.hstack([sides, sides])
