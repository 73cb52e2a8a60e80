"""The plan of a street: its road, its houses, its weather and light, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data.street.textures import (
    NUM_FACADES,
    NUM_SKIES,
    NUM_SKYLINES,
    SKY_KINDS,
)

STREET_FROM_M, STREET_TO_M = -25.0, 90.0
CAST = 160  # value of a cast shadow in the shadow mask; above it is the dark under a thing


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """A house: its front lies at x from z1 to z2, metres; facade is an index into the bank."""

    x: float
    z1: float
    z2: float
    height: float
    deep: float
    facade: int
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The ground plan, metres; the road is centred on X = 0 and runs along Z.

    reach is half the width that the ground texture spans; left and right are the X of the fronts.
    """

    road_half: float
    left: float
    right: float
    reach: float
    style: int
    road_colour: tuple[float, float, float]
    pavement_colour: tuple[float, float, float]
    lawns: tuple[tuple[float, float], ...]
    has_edge_lines: bool
    has_solid_line: bool
    has_crossing: bool
    buildings: tuple[Building, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """Sky, light and camera faults of one scene.

    sun is the ground shift (X, Z) of a shadow for each metre of height; shadow_depth (0..1) the
    light that a shadow takes; sight_m the depth at which 63 % is lost in haze; exposure a gain.
    """

    sky: int
    sky_turn: int
    skyline: int
    skyline_gain: float
    is_dusk: bool
    sun: tuple[float, float]
    shadow_depth: float
    house_shadow: float  # share of the house heights that throws shade; 0: none
    haze: tuple[float, float, float]
    sight_m: float
    exposure: float
    warmth: float
    contrast: float
    noise: float
    defocus: float  # Gaussian sigma, in pixels of a 768-wide frame
    shake: int  # motion blur along the rows, in pixels of a 768-wide frame
    falling: int  # -1: dry; else an index into the rain bank

    def shadow_curve(self) -> np.ndarray:
        """(256,) uint8: shadow mask value to ground gain; CAST is full shade, 255 contact."""
        lit = 1.0 - self.shadow_depth
        gain = np.interp(np.arange(256), [0, CAST, 255], [1.0, lit, min(lit - 0.08, 0.5)])
        return np.clip(255 * gain, 0, 255).astype(np.uint8)

    def wall_gain(self, normal: np.ndarray) -> float:
        """Brightness of a wall by how far its normal (3,) turns to the sun."""
        towards = -np.array([self.sun[0], 0, self.sun[1]])
        facing = float(normal @ towards) / (1e-6 + float(np.hypot(*self.sun)))
        return 0.86 + 0.34 * self.shadow_depth * facing * 1.6


def plan_street(rng: np.random.Generator) -> Layout:
    """Draw a street."""
    road_half = float(rng.uniform(3.0, 5.2))
    sides = road_half + rng.uniform(2.6, 5.0, 2) + rng.choice([0, 0, 0, 5, 11], 2)
    left, right = -float(sides[0]), float(sides[1])
    grey = rng.uniform(72, 118)
    slab = rng.uniform(120, 165)
    lawns = []
    if rng.random() < 0.45:
        side = float(rng.choice([-1, 1]))
        edges = sorted((side * (road_half + 0.4), side * (road_half + rng.uniform(1.2, 2.2))))
        lawns.append((edges[0], edges[1]))
    return Layout(
        road_half=road_half,
        left=left,
        right=right,
        reach=float(sides.max()) + 4.0,
        style=int(rng.integers(4)),
        road_colour=(grey * 1.03, grey, grey * float(rng.uniform(0.95, 1.0))),
        pavement_colour=(slab * float(rng.uniform(0.85, 1.0)), slab, slab * 1.02),
        lawns=tuple(lawns),
        has_edge_lines=bool(rng.random() < 0.4),
        has_solid_line=bool(rng.random() < 0.3),
        has_crossing=bool(rng.random() < 0.35),
        buildings=_plan_houses(rng, left) + _plan_houses(rng, right),
    )


def _plan_houses(rng: np.random.Generator, front: float) -> tuple[Building, ...]:
    houses = []
    z = STREET_FROM_M + float(rng.uniform(-8, 0))
    height = float(rng.uniform(7, 17))
    while z < STREET_TO_M:
        length = float(rng.uniform(8, 17))
        height = float(np.clip(height + rng.normal(0, 4), 5.5, 24))
        setback = float(0.8 if rng.random() < 0.25 else 0.0)
        houses.append(
            Building(
                x=front + np.sign(front) * setback,
                z1=z,
                z2=z + length,
                height=height,
                deep=12.0,
                facade=int(rng.integers(NUM_FACADES)),
                gain=float(rng.uniform(0.85, 1.1)),
            )
        )
        z += length + (float(rng.uniform(2, 9)) if rng.random() < 0.25 else 0.0)
    return tuple(houses)


def draw_weather(rng: np.random.Generator) -> Weather:
    """Draw the light and the camera's faults; about a third of scenes are blurred or in shade."""
    sky = int(rng.integers(NUM_SKIES))
    kind = SKY_KINDS[sky % len(SKY_KINDS)]
    is_dusk = kind == "dusk"
    deep = {"clear": 0.55, "broken": 0.48, "overcast": 0.16, "sunset": 0.42, "dusk": 0.12}[kind]
    low_sun = kind == "sunset"
    angle, long = rng.uniform(0, 2 * np.pi), rng.uniform(1.2, 2.2) if low_sun else rng.uniform(
        0.35, 1.2)  # fmt: skip
    haze = {"sunset": (165, 190, 225), "dusk": (120, 105, 100)}.get(kind, (222, 214, 206))
    fault = rng.random()
    sunny = deep > 0.4
    return Weather(
        sky=sky,
        sky_turn=int(rng.integers(256)),
        skyline=int(rng.integers(NUM_SKYLINES)),
        skyline_gain=float(rng.uniform(0.4, 1.0)),
        is_dusk=is_dusk,
        sun=(float(long * np.cos(angle)), float(long * np.sin(angle))),
        shadow_depth=deep,
        house_shadow=float(rng.uniform(0.5, 1.0)) if sunny and rng.random() < 0.6 else 0.0,
        haze=haze,
        sight_m=float(rng.uniform(55, 110) if rng.random() < 0.15 else rng.uniform(140, 400)),
        exposure=float(rng.uniform(0.50, 0.72) if is_dusk else rng.uniform(0.82, 1.15)),
        warmth=float(rng.uniform(-0.06, 0.06) + (0.08 if low_sun else 0)),
        contrast=float(rng.uniform(0.9, 1.15)),
        noise=float(rng.uniform(0.25, 0.6) if is_dusk else rng.uniform(0.06, 0.32)),
        defocus=float(rng.uniform(0.9, 1.6)) if fault < 0.09 else 0.0,
        shake=int(rng.integers(4, 9)) if 0.09 <= fault < 0.18 else 0,
        falling=int(rng.integers(4)) if not sunny and rng.random() < 0.3 else -1,
    )
