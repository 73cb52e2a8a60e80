"""Cars: two convex prisms (body and cabin) with glass, wheels and lamps, shaded face by face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data.street.camera import NEAR_M, Camera
from training.data.street.chance import pick, shares
from training.data.street.sprite import Canvas, Colour, Sprite, mix, shade

PAINTS: tuple[Colour, ...] = (
    (40, 35, 170), (150, 70, 30), (225, 226, 226), (38, 38, 42), (160, 160, 163), (95, 95, 100),
    (70, 110, 60), (40, 160, 215), (110, 60, 25), (170, 190, 205), (60, 45, 95), (190, 150, 90),
    (35, 95, 220), (90, 130, 110),
)  # fmt: skip
# name -> length, width, belt height, roof height, cabin at the belt (rear, front) and at the roof,
# as shares of the length from the middle (front positive), bonnet height share of the belt
SHAPES: dict[str, tuple[float, ...]] = {
    "saloon": (4.5, 1.8, 0.92, 1.44, -0.36, 0.22, -0.20, 0.06, 0.88),
    "hatch": (3.9, 1.72, 0.94, 1.5, -0.47, 0.26, -0.38, 0.08, 0.92),
    "estate": (4.6, 1.8, 0.92, 1.48, -0.48, 0.22, -0.42, 0.06, 0.88),
    "suv": (4.5, 1.9, 1.08, 1.76, -0.48, 0.24, -0.40, 0.10, 0.95),
    "van": (4.9, 1.95, 1.12, 2.1, -0.49, 0.40, -0.49, 0.22, 0.98),
    "sports": (4.3, 1.85, 0.8, 1.24, -0.38, 0.18, -0.2, 0.02, 0.84),
}
SHAPE_SHARES = shares(0.26, 0.24, 0.14, 0.18, 0.1, 0.08)
FLIP = np.array([1.0, -1.0])  # rows grow downwards
GLASS: Colour = (78, 66, 54)
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 18)[:-1]),
                   np.sin(np.linspace(0, 2 * np.pi, 18)[:-1])], axis=1)  # fmt: skip
WHEEL = np.column_stack([np.zeros(17), CIRCLE[:, 1], CIRCLE[:, 0]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Car:
    """Looks of one car; shape is a key of SHAPES, size scales it."""

    shape: str
    size: float
    paint: Colour
    rim: Colour
    lamps_on: bool
    has_stripe: bool

    @property
    def dimensions(self) -> tuple[float, float, float]:
        """Length, width, height in metres."""
        length, width, _, roof = SHAPES[self.shape][:4]
        return length * self.size, width * self.size, roof * self.size


def draw_car(rng: np.random.Generator, *, lamps_on: bool) -> Car:
    """Draw the looks of a car."""
    names = tuple(SHAPES)
    return Car(
        shape=names[pick(rng, SHAPE_SHARES)],
        size=float(rng.uniform(0.94, 1.06)),
        paint=shade(PAINTS[int(rng.integers(len(PAINTS)))], float(rng.uniform(0.8, 1.15))),
        rim=shade((190, 190, 192), float(rng.uniform(0.4, 1.05))),
        lamps_on=lamps_on,
        has_stripe=bool(rng.random() < 0.12),
    )


class CarPainter:
    """Draws one car at a world position as a sprite."""

    def __init__(self, car: Car, place: tuple[float, float, float], camera: Camera,
                 size_hw: tuple[int, int], sun: tuple[float, float]) -> None:  # fmt: skip
        x, z, heading = place
        self.car, self.camera, self.size_hw, self.sun = car, camera, size_hw, sun
        right = np.array([np.cos(heading), 0, -np.sin(heading)])
        forward = np.array([np.sin(heading), 0, np.cos(heading)])
        self.axes = np.stack([right, (0, 1.0, 0), forward])
        self.place = np.array([x, 0, z])
        length, width, belt, roof, *self.cabin, self.bonnet = SHAPES[car.shape]
        self.length, self.half = length * car.size, width * car.size / 2
        self.belt, self.roof = belt * car.size, roof * car.size
        eye = (np.asarray(camera.position) - self.place) @ self.axes.T
        self.turn = self.axes @ camera.rotation().T
        self.shift = camera.to_camera(self.place)
        self.px = camera.focal / max(1.0, float(self.shift[2]))  # pixels of a metre
        self.is_small = self.px < 17  # too small for handles, mirrors and reflections
        self.eye = eye  # the camera in the car's frame: right, up, forward

    def _project(self, local: np.ndarray) -> np.ndarray:
        there = np.asarray(local, float) @ self.turn + self.shift
        scale = self.camera.focal / np.maximum(there[:, 2:], NEAR_M)
        return there[:, :2] * FLIP * scale + (self.camera.centre_u, self.camera.horizon_v)

    def paint(self) -> Sprite | None:
        """The sprite, or None where nothing of it can fall into the frame."""
        half, back, front = self.half, -self.length / 2, self.length / 2
        box = np.array([[x, y, z] for x in (-half, half) for y in (0, self.roof)
                        for z in (back, front)])  # fmt: skip
        uv = self._project(box)
        low, high = uv.min(axis=0) - 2, uv.max(axis=0) + 2
        self.canvas = canvas = Canvas((*low, *high), self.size_hw)
        if canvas.is_empty:
            return None
        self.faces: list[tuple[np.ndarray, Colour, float]] = []
        self.side = 1.0 if self.eye[0] > 0 else -1.0
        self._far_wheels()
        self._body()
        if abs(self.eye[0]) > half * 0.8:
            self._wheels()
        self._cabin()
        self._ends()
        self._draw()
        return canvas.finish()

    def _face(self, local: np.ndarray, colour: Colour, stroke: float = 0.0) -> None:
        """Queue a polygon (N, 3) in the car's frame; or, with a width in pixels, a line."""
        self.faces.append((local, colour, stroke))

    def _draw(self) -> None:
        """Project the queue at once, which is several times faster, and paint it in order."""
        uv = self._project(np.concatenate([points for points, _, _ in self.faces]))
        fixed = self.canvas.fixed(uv)
        start = 0
        for points, colour, stroke in self.faces:
            stop = start + len(points)
            if stroke:
                self.canvas.line(uv[start:stop], stroke, colour)
            else:
                self.canvas.fill(fixed[start:stop], colour)
            start = stop

    def _lit(self, normal: np.ndarray, colour: Colour) -> Colour:
        """Shade a face by its normal in the car's frame."""
        world = normal @ self.axes
        reach = float(np.hypot(*self.sun)) + 1e-6
        facing = -(world[0] * self.sun[0] + world[2] * self.sun[1]) / reach
        return shade(colour, 0.78 + 0.16 * facing + 0.3 * max(0.0, float(world[1])))

    def _prism(self, ring: np.ndarray, inset: np.ndarray, colour: Colour) -> None:
        """Paint the faces turned to the camera of a convex prism.

        ring is the profile (N, 2) as (forward, up), counter-clockwise seen from the right;
        inset (N,) narrows each point's half width.
        """
        right = np.column_stack([self.half - inset, ring[:, 1], ring[:, 0]])
        left = right * (-1, 1, 1)
        ahead = np.roll(np.arange(len(ring)), -1)
        quads = np.stack([right, right[ahead], left[ahead], left], axis=1)
        edges = ring[ahead] - ring
        normals = np.column_stack([np.zeros(len(ring)), edges[:, 0], -edges[:, 1]])
        normals /= np.hypot(edges[:, 0], edges[:, 1])[:, None] + 1e-9
        shown = ((self.eye - right) * normals).sum(axis=1) > 0
        for here in np.flatnonzero(shown):
            self._face(quads[here], self._lit(normals[here], colour))
        flank = right if self.side > 0 else left
        if abs(self.eye[0]) > self.half * 0.8:
            normal = np.array([self.side, 0, 0])
            self._face(flank, self._lit(normal, colour))

    def _body(self) -> None:
        back, front = -self.length / 2, self.length / 2
        low, belt = 0.2 * self.car.size, self.belt
        nose = belt * self.bonnet
        # seen from the right, forward is to the left: order so that normals point outward
        ring = np.array(
            [[back + 0.12, low], [back, belt * 0.55], [back + 0.06, belt * 0.97],
             [self.cabin[0] * self.length, belt], [self.cabin[1] * self.length, belt],
             [front - 0.12, nose * 0.88], [front, nose * 0.6], [front - 0.1, low]]
        )  # fmt: skip
        self._prism(ring, np.zeros(8), self.car.paint)
        if abs(self.eye[0]) <= self.half * 0.8:
            return
        flank = self.side * self.half

        def side(z1: float, z2: float, y1: float, y2: float, colour: Colour) -> None:
            quad = [[flank, y1, z1], [flank, y1, z2], [flank, y2, z2], [flank, y2, z1]]
            self._face(np.array(quad), colour)

        lit = self._lit(np.array([self.side, 0, 0]), self.car.paint)
        side(back + 0.06, front - 0.1, low, low + 0.14, mix(lit, (25, 25, 28), 0.75))
        side(back + 0.05, front - 0.12, belt * 0.68, belt * 0.76, shade(lit, 1.22))
        side(back + 0.05, front - 0.1, belt * 0.36, belt * 0.5, shade(lit, 0.84))
        if self.is_small:
            return
        for z in (self.cabin[1] * 0.72, (self.cabin[0] + self.cabin[1]) / 2 - 0.02):
            side(z * self.length - 0.02, z * self.length + 0.02, low + 0.1, belt, shade(lit, 0.6))
            handle = z * self.length - 0.3
            side(handle, handle + 0.16, belt * 0.82, belt * 0.86, shade(lit, 0.5))

    def _cabin(self) -> None:
        rear, fore, roof_rear, roof_fore = (share * self.length for share in self.cabin)
        belt, roof = self.belt - 0.01, self.roof
        ring = np.array([[rear, belt], [roof_rear, roof], [roof_fore, roof], [fore, belt]])
        inset = np.array([0.04, 0.2, 0.2, 0.04]) * self.car.size
        self._prism(ring, inset, self.car.paint)
        right = np.column_stack([self.half - inset, ring[:, 1], ring[:, 0]])
        left = right * (-1, 1, 1)
        for here, shown in ((0, self._sees(ring, 0)), (2, self._sees(ring, 2))):
            if shown:
                quad = np.stack([right[here], right[here + 1], left[here + 1], left[here]])
                self._glass(quad, 0.84)
        if abs(self.eye[0]) > self.half * 0.8:
            flank = right if self.side > 0 else left
            middle = (flank[0] + flank[3]) / 2, (flank[1] + flank[2]) / 2
            self._glass(np.stack([flank[0], flank[1], middle[1], middle[0]]), 0.82)
            if self.car.shape != "van" or self.car.has_stripe:
                self._glass(np.stack([middle[0], middle[1], flank[2], flank[3]]), 0.82)
            else:
                self._glass(np.stack([middle[0] * 0.4 + flank[3] * 0.6, middle[1] * 0.4
                                      + flank[2] * 0.6, flank[2], flank[3]]), 0.82)  # fmt: skip
            if self.is_small:
                return
            foot = flank[3] + (self.side * 0.08, 0.06, -0.12)
            mirror = np.stack([foot, foot + (self.side * 0.14, 0.05, 0.02)])
            self._face(mirror, shade(self.car.paint, 0.6), 0.13 * self.px)

    def _sees(self, ring: np.ndarray, here: int) -> bool:
        edge = ring[here + 1] - ring[here]
        gap = self.eye[[2, 1]] - ring[here]
        return bool(edge[0] * gap[1] - edge[1] * gap[0] > 0)

    def _glass(self, quad: np.ndarray, share: float) -> None:
        inner = quad.mean(axis=0) + (quad - quad.mean(axis=0)) * share
        self._face(inner, GLASS)
        if self.is_small:
            return
        a, b, c, d = inner
        self._face(np.stack([b, b * 0.55 + c * 0.45, a * 0.75 + d * 0.25, a]), (150, 135, 118))

    def _circle(self, x: float, z: float, radius: float, up: float) -> np.ndarray:
        ring = WHEEL * radius
        ring += (x, up, z)
        return ring

    def _wheels(self) -> None:
        radius = 0.33 * self.car.size if self.car.shape != "suv" else 0.38
        x = self.side * (self.half + 0.005)
        for share in (-0.31, 0.31):
            z = share * self.length
            if self.is_small:
                self._face(self._circle(x, z, radius, radius), (30, 30, 32))
                self._face(self._circle(x, z, radius * 0.6, radius), self.car.rim)
                continue
            arch = self._circle(x, z, radius * 1.2, radius)
            self._face(arch, mix(self.car.paint, (15, 15, 15), 0.85))
            self._face(self._circle(x, z, radius, radius), (30, 30, 32))
            self._face(self._circle(x, z, radius * 0.64, radius), self.car.rim)
            hub = self._circle(x, z, radius * 0.52, radius)
            if self.px > 22:
                for a, b in ((0, 8), (3, 11), (6, 14)):
                    self._face(hub[[a, b]], (60, 60, 62), radius * 0.14 * self.px)
            self._face(self._circle(x, z, radius * 0.16, radius), (90, 90, 92))

    def _far_wheels(self) -> None:
        """Under the car one sees its dark belly and the tyres' treads."""
        half, low = self.half * 0.96, 0.24
        for z in (-0.31 * self.length, 0.31 * self.length):
            for x in (-1, 1):
                inner = x * (half - 0.2)
                corners = [[inner, 0, z - 0.2], [x * half, 0, z - 0.2], [x * half, 0, z + 0.2],
                           [inner, 0, z + 0.2]]  # fmt: skip
                foot = np.array(corners)
                self._face(foot, (24, 24, 26))
                for a, b in ((0, 1), (1, 2), (2, 3), (3, 0)):
                    wall = foot[[a, b, b, a]]
                    wall[2:, 1] = 0.35
                    self._face(wall, (24, 24, 26))
        belly = [[-half, low, -self.length * 0.44], [half, low, -self.length * 0.44],
                 [half, low, self.length * 0.44], [-half, low, self.length * 0.44]]  # fmt: skip
        self._face(np.array(belly), (20, 20, 22))

    def _ends(self) -> None:
        """Bumpers, lamps, grille and number plate on the end that faces the camera."""
        for end in (-1.0, 1.0):
            if end * self.eye[2] < self.length / 2:
                continue
            z, belt, half = end * (self.length / 2 + 0.005), self.belt, self.half
            top = belt * (0.78 if end < 0 else self.bonnet * 0.74)

            def box(x1: float, x2: float, y1: float, y2: float, colour: Colour,
                    depth: float = z) -> None:  # fmt: skip
                quad = [[x1, y1, depth], [x2, y1, depth], [x2, y2, depth], [x1, y2, depth]]
                self._face(np.array(quad), colour)

            body = self._lit(np.array([0, 0, end]), self.car.paint)
            box(-half * 0.97, half * 0.97, 0.22, 0.42, mix(body, (30, 30, 32), 0.7))
            box(-half * 0.96, half * 0.96, 0.42, top, body)
            white, red = ((250, 252, 255), (205, 210, 215)), ((60, 60, 255), (35, 30, 165))
            lamp, dim = white if end > 0 else red
            colour = lamp if self.car.lamps_on else dim
            for x in (-1, 1):
                inner, outer = x * half * 0.56, x * half * 0.93
                box(inner, outer, top - 0.16, top, mix(colour, (60, 60, 60), 0.35))
                box(x * half * 0.62, x * half * 0.88, top - 0.13, top - 0.03, colour)
            if end > 0:
                box(-half * 0.48, half * 0.48, top - 0.17, top - 0.02, (38, 38, 40))
            box(-0.26, 0.26, 0.46, 0.57, (225, 230, 232))
