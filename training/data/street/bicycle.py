"""Bicycles: wheels with spokes, a frame, handlebar, saddle and cranks; all in one upright plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from training.data.street.camera import NEAR_M, Camera
from training.data.street.sprite import Canvas, Colour, Sprite, shade

FRAMES: tuple[Colour, ...] = (
    (40, 40, 200), (190, 90, 30), (60, 160, 60), (40, 200, 235), (225, 225, 228), (45, 45, 48),
    (160, 70, 160), (200, 190, 60), (40, 130, 240),
)  # fmt: skip
WHEEL_M, BASE_M = 0.345, 1.04
ANGLES = np.linspace(0, 2 * np.pi, 25)[:-1]
RING = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bicycle:
    """Looks of one bicycle; has_basket adds a box before the handlebar."""

    frame: Colour
    tyre: Colour
    has_guard: bool
    has_basket: bool
    is_low_step: bool
    phase: float


def draw_bicycle(rng: np.random.Generator) -> Bicycle:
    """Draw the looks of a bicycle."""
    return Bicycle(
        frame=shade(FRAMES[int(rng.integers(len(FRAMES)))], float(rng.uniform(0.8, 1.1))),
        tyre=shade((32, 32, 34), float(rng.uniform(0.7, 1.8))),
        has_guard=bool(rng.random() < 0.5),
        has_basket=bool(rng.random() < 0.35),
        is_low_step=bool(rng.random() < 0.4),
        phase=float(rng.uniform(0, 6.28)),
    )


def paint_bicycle(
    bicycle: Bicycle, place: tuple[float, float, float], camera: Camera,
    size_hw: tuple[int, int], pedal: float,
) -> Sprite | None:  # fmt: skip
    """The sprite of a bicycle at world (x, z) metres and heading; pedal is the crank's angle."""
    x, z, heading = place
    right = np.array([np.cos(heading), 0, -np.sin(heading)])
    forward = np.array([np.sin(heading), 0, np.cos(heading)])
    foot = np.array([x, 0, z])

    to_image = camera.plane_to_image(foot, forward, np.array([0, 1.0, 0])).T
    sideways = camera.plane_to_image(foot + right, forward, np.zeros(3)).T[2] - to_image[2]

    def at(along: Sequence[float], up: Sequence[float], across: float = 0.0) -> np.ndarray:
        """(N, 2) pixels of points of the bicycle's plane; across moves them out of it."""
        points = np.empty((len(along), 3))
        points[:, 0], points[:, 1], points[:, 2] = along, up, 1.0
        there = points @ to_image
        if across:
            there += across * sideways
        return there[:, :2] / np.maximum(there[:, 2:], NEAR_M)

    corners = np.concatenate([at([-0.92, 0.92], [-0.06, 1.15], side) for side in (-0.32, 0.32)])
    low, high = corners.min(axis=0) - 2, corners.max(axis=0) + 2
    canvas = Canvas((*low, *high), size_hw)
    if canvas.is_empty:
        return None
    px = camera.focal / max(0.8, float(camera.to_camera(foot)[2]))
    half, radius = BASE_M / 2, WHEEL_M
    for hub in (-half, half):
        ring = at(hub + RING[:, 0] * radius, radius + RING[:, 1] * radius)
        canvas.cover(ring)
        centre = at([hub], [radius])[0]
        spokes = at(hub + RING[:, 0] * radius * 0.92, radius + RING[:, 1] * radius * 0.92)
        step = 2 if px > 60 else 4
        turn = int(pedal * 2) % step
        star = np.repeat(spokes[turn::step], 2, axis=0)
        star[1::2] = centre
        canvas.line(star, 0.006 * px, (150, 150, 152))
        rim = at(hub + RING[:, 0] * radius * 0.88, radius + RING[:, 1] * radius * 0.88)
        canvas.line(rim, 0.02 * px, (175, 175, 178), closed=True)
        canvas.line(ring, 0.055 * px, bicycle.tyre, closed=True)
        if bicycle.has_guard:
            canvas.line(ring[2:14] + (0, -0.03 * px), 0.035 * px, shade(bicycle.frame, 0.8))
        canvas.disc(centre, 0.035 * px, (90, 90, 92))
    _paint_frame(canvas, bicycle, at, px, pedal)
    return canvas.finish()


def _paint_frame(
    canvas: Canvas, bicycle: Bicycle, at: Callable[..., np.ndarray], px: float, pedal: float
) -> None:
    half, radius = BASE_M / 2, WHEEL_M
    crank, seat, head = (-0.06, 0.3), (-0.24, 0.82), (0.36, 0.80)
    low_head = (0.39, 0.66)
    tube = 0.045 * px

    def stroke(points: list[tuple[float, float]], width: float, colour: Colour) -> None:
        along, up = zip(*points, strict=True)
        canvas.line(at(along, up), width, colour)

    stroke([(-half, radius), seat, crank, (-half, radius)], tube * 0.62, shade(bicycle.frame, 0.8))
    if bicycle.is_low_step:
        stroke([low_head, (0.1, 0.42), (-0.18, 0.66)], tube, bicycle.frame)
    else:
        stroke([seat, head], tube, bicycle.frame)
    stroke([crank, low_head], tube, bicycle.frame)
    stroke([seat, crank], tube, bicycle.frame)
    stroke([head, low_head, (half, radius)], tube * 0.9, shade(bicycle.frame, 0.9))
    canvas.cover(at([-half, seat[0], head[0], low_head[0], crank[0]],
                    [radius, seat[1], head[1], low_head[1], crank[1]]))  # fmt: skip
    stroke([seat, (-0.27, 0.95)], tube * 0.7, (120, 120, 122))
    stroke([(-0.42, 0.97), (-0.14, 0.97)], 0.07 * px, (35, 35, 40))
    stroke([head, (0.34, 1.02)], tube * 0.7, (110, 110, 112))
    bar = np.concatenate([at([0.40], [1.04], side) for side in (-0.28, 0.28)])
    canvas.line(bar, 0.04 * px, (50, 50, 54))
    for side, across in ((0.0, -0.1), (np.pi, 0.1)):
        end = (crank[0] + 0.17 * np.cos(pedal + side), crank[1] - 0.17 * np.sin(pedal + side))
        canvas.line(at([crank[0], end[0]], [crank[1], end[1]], across), 0.03 * px, (70, 70, 72))
    canvas.disc(at([crank[0]], [crank[1]])[0], 0.08 * px, (60, 60, 62))
    if bicycle.has_basket:
        box = at([0.45, 0.78, 0.74, 0.49], [0.98, 0.98, 0.74, 0.74])
        canvas.poly(box, (70, 105, 140))
