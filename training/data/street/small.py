"""Traffic cones and balls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from training.data.street.camera import Camera
from training.data.street.chance import pick, shares
from training.data.street.sprite import Canvas, Colour, Sprite, place_picture, shade

BALL_KINDS = ("football", "basketball", "beach", "plain", "striped")
BALL_SHARES = shares(0.3, 0.2, 0.2, 0.12, 0.18)
BALL_COLOURS: tuple[Colour, ...] = (
    (40, 40, 210), (200, 90, 30), (60, 170, 70), (40, 210, 240), (180, 70, 170), (40, 140, 245),
    (215, 200, 60),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Cone:
    """Looks of one cone; height in metres."""

    height: float
    colour: Colour
    stripes: int
    base: Colour
    dirt: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ball:
    """Looks of one ball; radius in metres, spin (3, 3) nested tuples turn its pattern."""

    radius: float
    kind: str
    colour: Colour
    second: Colour
    spin: tuple[tuple[float, ...], ...]


def draw_cone(rng: np.random.Generator) -> Cone:
    """Draw the looks of a cone."""
    return Cone(
        height=float(rng.uniform(0.5, 0.95)),
        colour=(
            float(rng.uniform(15, 50)),
            float(rng.uniform(80, 120)),
            float(rng.uniform(225, 250)),
        ),  # fmt: skip
        stripes=int(rng.integers(1, 3)),
        base=(40, 42, 48) if rng.random() < 0.5 else (30, 80, 205),
        dirt=float(rng.uniform(0.82, 1.05)),
    )


def draw_ball(rng: np.random.Generator) -> Ball:
    """Draw the looks of a ball."""
    kind = BALL_KINDS[pick(rng, BALL_SHARES)]
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    colours = rng.permutation(len(BALL_COLOURS))[:2]
    return Ball(
        radius=float({"football": 0.16, "basketball": 0.18}.get(kind, rng.uniform(0.15, 0.32))),
        kind=kind,
        colour=BALL_COLOURS[int(colours[0])],
        second=BALL_COLOURS[int(colours[1])],
        spin=tuple(tuple(row) for row in matrix.tolist()),
    )


@lru_cache(maxsize=2)
def _cone_bands(
    stripes: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[float], list[bool]]:
    """The rings of a cone in shaded strips: (N, 8) across, bulge and height; gain; white?"""
    edges = [(0.0, 0.30, False), (0.30, 0.55, True), (0.55, 1.0, False)]
    if stripes == 2:
        edges = [(0, 0.2, False), (0.2, 0.4, True), (0.4, 0.56, False), (0.56, 0.76, True),
                 (0.76, 1.0, False)]  # fmt: skip
    across, bulge, up, gains, is_stripe = [], [], [], [], []
    for low, high, stripe in edges:
        for left, right, gain in ((-1, -0.45, 0.74), (-0.45, 0.3, 1.0), (0.3, 1, 0.86)):
            edge = np.linspace(left, right, 4)
            there = np.concatenate([edge, edge[::-1]])
            share = np.repeat([low, high], 4)
            radius = 0.72 * (1 - share) + 0.1 * share
            across.append(there * radius)
            bulge.append(np.sqrt(1 - there**2) * radius)
            up.append(share)
            gains.append(gain)
            is_stripe.append(stripe)
    return np.array(across), np.array(bulge), np.array(up), gains, is_stripe


def paint_cone(
    cone: Cone, x: float, z: float, camera: Camera, size_hw: tuple[int, int], light_side: float
) -> Sprite | None:
    """The sprite of a cone that stands at world (x, z) metres."""
    foot, depth = camera.project(np.array([x, 0.0, z]))
    px = camera.focal / float(depth)
    height, half = cone.height * px, 0.27 * cone.height * px
    tilt = float(np.clip(camera.position[1] / float(depth), 0.05, 0.7))  # flattening of circles
    canvas = Canvas((foot[0] - half * 1.25 - 2, foot[1] - height - 2, foot[0] + half * 1.25 + 2,
                     foot[1] + half * tilt * 1.3 + 2), size_hw)  # fmt: skip
    if canvas.is_empty:
        return None
    slab = np.array([[-1.15, 0.5], [-0.95, -0.9], [0.95, -0.9], [1.15, 0.5]]) * half
    slab[:, 1] *= tilt * 1.2
    canvas.poly(foot + slab + (0, 0.05 * height), shade(cone.base, 0.7))
    canvas.poly(foot + slab, cone.base)

    across, bulge, up, gains, is_stripe = _cone_bands(cone.stripes)
    sign = -1.0 if light_side < 0 else 1.0
    rings = np.stack([across * (half * sign), bulge * (half * tilt) - up * height], axis=-1) + foot
    for ring, gain, stripe in zip(canvas.fixed(rings), gains, is_stripe, strict=True):
        colour = (238, 240, 240) if stripe else cone.colour
        canvas.fill(ring, shade(colour, gain * cone.dirt))
    return canvas.finish()


@lru_cache(maxsize=4)
def _sphere(side: int) -> tuple[np.ndarray, np.ndarray]:
    """(side, side, 3) normals (right, up, to the eye) and (side, side) coverage 0..1."""
    grid = (np.arange(side) + 0.5) / side * 2.04 - 1.02
    x, y = np.meshgrid(grid, -grid)
    square = x * x + y * y
    normals = np.stack([x, y, np.sqrt(np.clip(1 - square, 0, 1))], axis=-1).astype(np.float32)
    coverage = np.clip((1 - np.sqrt(square)) * side / 2 + 0.5, 0, 1).astype(np.float32)
    return normals, coverage


@lru_cache(maxsize=1)
def _patches() -> np.ndarray:
    """(12, 3) unit corners of an icosahedron: the dark patches of a football."""
    golden = (1 + 5**0.5) / 2
    corners = []
    for a in (-1, 1):
        for b in (-golden, golden):
            corners += [(0, a, b), (a, b, 0), (b, 0, a)]
    array = np.array(corners)
    return (array / np.linalg.norm(array[0])).astype(np.float32)


def _pattern(ball: Ball, body: np.ndarray) -> np.ndarray:
    """(..., 3) BGR of the ball's skin at unit vectors of its own frame."""
    first, second = np.asarray(ball.colour, np.float32), np.asarray(ball.second, np.float32)
    if ball.kind == "football":
        near = (body @ _patches().T).max(axis=-1)[..., None]
        return np.where(near > 0.93, np.float32(35), np.float32(238)) * np.ones(3, np.float32)
    if ball.kind == "basketball":
        seam = np.minimum(np.abs(body[..., 0]), np.abs(body[..., 1]))
        seam = np.minimum(seam, np.abs(np.abs(body[..., 2]) - 0.55))[..., None]
        return np.where(seam < 0.05, np.float32(25), np.array((35, 95, 215), np.float32))
    if ball.kind == "beach":
        angle = (np.arctan2(body[..., 1], body[..., 0]) / (np.pi / 3)).astype(np.int32) % 2
        is_white = (np.floor(np.arctan2(body[..., 1], body[..., 0]) / (np.pi / 3)) % 2)[..., None]
        tint = np.where((angle == 0)[..., None], first, second)
        return np.where(is_white > 0, np.float32(240), tint)
    if ball.kind == "striped":
        return np.where(np.abs(body[..., 2:]) < 0.33, np.float32(235), first)
    return np.broadcast_to(first, body.shape)


def paint_ball(
    ball: Ball, x: float, z: float, camera: Camera, size_hw: tuple[int, int], light_side: float,
    roll: float,
) -> Sprite | None:  # fmt: skip
    """The sprite of a ball that lies at world (x, z) metres; roll is its turn in radians."""
    centre, depth = camera.project(np.array([x, ball.radius, z]))
    radius = ball.radius * camera.focal / float(depth) * 1.02
    side = 24 if radius < 9 else 48 if radius < 26 else 96
    normals, coverage = _sphere(side)
    cos, sin = np.cos(roll), np.sin(roll)
    turn = np.array(ball.spin) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    skin = _pattern(ball, normals @ turn.astype(np.float32).T)
    light = np.array([0.45 * light_side, 0.72, 0.5], np.float32)
    lit = normals @ (light / np.linalg.norm(light))
    gain = 0.5 + 0.58 * np.clip(lit, 0, 1)
    shine = 70 * np.clip(lit, 0, 1) ** 24
    colour = np.clip(skin * gain[..., None] + shine[..., None], 0, 255) * coverage[..., None]
    picture = np.concatenate([colour, 255 * coverage[..., None]], axis=-1).astype(np.uint8)
    extent = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    return place_picture([cv2.GaussianBlur(picture, (3, 3), 0.5)], extent, size_hw)
