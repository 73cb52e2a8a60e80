"""Shadows on the ground, as a mask: of houses first, then of everything that stands there."""

from __future__ import annotations

import cv2
import numpy as np

from training.data.street.camera import NEAR_M, Camera
from training.data.street.car import Car
from training.data.street.layout import CAST, Layout, Weather
from training.data.street.person import Figure
from training.data.street.scene import Placed
from training.data.street.small import Ball
from training.data.street.vocabulary import BICYCLE

# Bones of the shadow: joints joined by strokes, and the stroke's width in metres.
BONES = ((5, 6, 0.2), (5, 11, 0.22), (6, 12, 0.22), (11, 13, 0.14), (13, 15, 0.1),
         (12, 14, 0.14), (14, 16, 0.1), (5, 7, 0.09), (7, 9, 0.08), (6, 8, 0.09), (8, 10, 0.08),
         (0, 5, 0.16))  # fmt: skip
CIRCLE = np.stack([np.cos(np.linspace(0, 6.283, 15)[:-1]), np.zeros(14),
                   np.sin(np.linspace(0, 6.283, 15)[:-1])], axis=1)  # fmt: skip
SQUARE = np.sign(CIRCLE)


def _fill(mask: np.ndarray, uv: np.ndarray, value: int) -> None:
    fixed = (np.clip(uv, -30000, 30000) * 16).astype(np.int32)
    cv2.fillConvexPoly(mask, fixed, value, cv2.LINE_8, 4)


def shade_by_houses(mask: np.ndarray, camera: Camera, layout: Layout, weather: Weather) -> None:
    """Paint the shadows of the houses into the mask (H, W) uint8, in place."""
    if weather.house_shadow == 0.0:
        return
    shift_x, shift_z = weather.sun
    for house in layout.buildings:
        if shift_x * house.x >= 0 or not -25 < house.z1 - camera.position[2] < 70:
            continue
        far = house.height * weather.house_shadow
        dx, dz = shift_x * far, shift_z * far
        x = house.x
        ring = np.array([[x, 0, house.z1], [x, 0, house.z2], [x + dx, 0, house.z2 + dz],
                         [x + dx, 0, house.z1 + dz]])  # fmt: skip
        uv = camera.clip_polygon(ring)
        if len(uv):
            _fill(mask, uv, CAST)


def _flatten(points: np.ndarray, weather: Weather) -> np.ndarray:
    """World points (N, 3) to where their shadow falls on the ground (N, 3)."""
    sun = np.array([weather.sun[0], 0.0, weather.sun[1]])
    return points * (1, 0, 1) + points[:, 1:2] * sun


def shade_by_figure(mask: np.ndarray, figure: Figure, camera: Camera, weather: Weather) -> None:
    """Paint a person's shadow: strokes along the bones."""
    uv, depth = camera.project(_flatten(figure.joints, weather))
    if depth.min() < NEAR_M:
        return
    fixed = np.rint(np.clip(uv, -2000, 4000) * 16).astype(int)
    px = camera.focal / float(depth.mean())
    for a, b, width in BONES:
        thickness = max(1, round(width * px * 0.8))
        cv2.line(mask, fixed[a].tolist(), fixed[b].tolist(), CAST, thickness, cv2.LINE_8, 4)
    head, _ = camera.project(_flatten(figure.head[None], weather))
    cv2.circle(mask, np.rint(head[0]).astype(int).tolist(), max(1, round(0.11 * px)), CAST, -1)


def shade_by_thing(mask: np.ndarray, placed: Placed, camera: Camera, weather: Weather) -> None:
    """Paint the shadow of a car, bicycle, cone, ball or prop, and the dark below it."""
    actor = placed.actor
    foot = np.array([placed.x, 0.0, placed.z])
    along = np.array([np.sin(placed.heading), 0, np.cos(placed.heading)])
    across = np.array([along[2], 0, -along[0]])
    up = np.array([0, 1.0, 0])
    if isinstance(actor.look, Car):
        length, width, height = actor.look.dimensions
        floor = [foot + a * along * length * 0.49 + b * across * width * 0.49
                 for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]  # fmt: skip
        roof = [p * 0.75 + foot * 0.25 + up * height for p in floor]
        points = np.array(floor + [p + up * height * 0.6 for p in floor] + roof)
        _paint_hull(mask, _flatten(points, weather), camera, CAST)
    elif actor.kind == BICYCLE:
        for hub in (-0.52, 0.52):
            rim = foot + along * hub + up * 0.34
            ring = rim + CIRCLE[:, :1] * along * 0.34 + CIRCLE[:, 2:] * up * 0.34
            uv, depth = camera.project(_flatten(ring, weather))
            if depth.min() > NEAR_M:
                thick = max(1, round(0.07 * camera.focal / float(depth.mean())))
                cv2.polylines(mask, [np.rint(uv).astype(np.int32)], True, CAST, thick)
    elif isinstance(actor.look, Ball):
        middle = _flatten(foot[None] + up * actor.look.radius, weather)
        _paint_hull(mask, middle + CIRCLE * actor.look.radius, camera, CAST)
    else:
        _shade_by_standing(mask, placed, foot, camera, weather)


def shade_contacts(mask: np.ndarray, placed: list[Placed], camera: Camera) -> None:
    """Paint the dark right under things, which even an overcast sky leaves."""
    if not placed:
        return
    rings = np.zeros((len(placed), 14, 3))
    for row, thing in enumerate(placed):
        look, width = thing.actor.look, thing.actor.width
        circle_x, circle_z = CIRCLE[:, 0], CIRCLE[:, 2]
        half_long = half_wide = width * (0.42 if thing.actor.kind < 0 else 0.34)
        if isinstance(look, Car):
            half_long, half_wide = look.dimensions[0] * 0.5, look.dimensions[1] * 0.53
            circle_x, circle_z = SQUARE[:, 0], SQUARE[:, 2]
        elif thing.actor.kind == BICYCLE:
            half_long, half_wide = 0.75, 0.05
        sin, cos = np.sin(thing.heading), np.cos(thing.heading)
        along, across = circle_z * half_long, circle_x * half_wide
        rings[row, :, 0] = thing.x + along * sin + across * cos
        rings[row, :, 2] = thing.z + along * cos - across * sin
    uv, depth = camera.project(rings)
    flat = np.clip(uv, -2000, 4000).astype(np.float32)
    for row in np.flatnonzero(depth.min(axis=1) > NEAR_M):
        _fill(mask, cv2.convexHull(flat[row])[:, 0], 255)


def _shade_by_standing(
    mask: np.ndarray, placed: Placed, foot: np.ndarray, camera: Camera, weather: Weather
) -> None:
    actor = placed.actor
    half = actor.width * 0.5
    up = np.array([0, 1.0, 0])
    name = actor.look if isinstance(actor.look, str) else "cone"
    if name in ("tree", "conifer"):
        crown = _flatten(foot[None] + up * actor.height * 0.66, weather)
        _paint_hull(mask, crown + CIRCLE * actor.height * 0.3, camera, CAST)
        half = 0.14
    elif name in ("lamp", "sign", "signal", "globe_lamp"):
        half = 0.06
    base = foot + CIRCLE * half
    tip = half * (0.15 if name == "cone" else 1.0)
    top = _flatten(foot[None] + up * actor.height * (0.62 if name == "tree" else 1.0), weather)
    _paint_hull(mask, np.concatenate([base, top + CIRCLE * tip]), camera, CAST)


def _paint_hull(mask: np.ndarray, points: np.ndarray, camera: Camera, value: int) -> None:
    uv, depth = camera.project(points)
    if depth.min() < NEAR_M:
        return
    hull = cv2.convexHull(np.clip(uv, -2000, 4000).astype(np.float32))[:, 0]
    _fill(mask, hull, value)
