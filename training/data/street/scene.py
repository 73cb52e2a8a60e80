"""A scene: a street, its weather, a camera's path, and everything that stands or moves in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from training.data.street.bicycle import Bicycle, draw_bicycle
from training.data.street.camera import Camera
from training.data.street.car import Car, draw_car
from training.data.street.chance import pick, shares, side
from training.data.street.layout import (
    STREET_FROM_M,
    STREET_TO_M,
    Layout,
    Weather,
    draw_weather,
    plan_street,
)
from training.data.street.person import Person, draw_person
from training.data.street.props import PROPS
from training.data.street.small import Ball, Cone, draw_ball, draw_cone
from training.data.street.vocabulary import BALL, BICYCLE, CAR, CONE, PERSON

FRAMES_PER_S = 25.0
REFERENCE_W = 768  # the frame width that target sizes below are given for
LOOP_M = STREET_TO_M - STREET_FROM_M  # driving cars come round again after this many metres
Look = Person | Car | Bicycle | Cone | Ball | str
# class -> range of the apparent longer side in pixels of a 768-wide frame, drawn log-uniformly
SIZES: dict[int, tuple[float, float]] = {
    PERSON: (28.0, 240.0), CAR: (42.0, 320.0), BICYCLE: (30.0, 200.0), CONE: (15.0, 84.0),
    BALL: (14.0, 66.0),
}  # fmt: skip
CLASS_SHARES = shares(0.32, 0.26, 0.17, 0.10, 0.15)
GAITS = ("walk", "stand", "wave", "run")
GAIT_SHARES = shares(0.6, 0.24, 0.08, 0.08)
CONE_ROWS = shares(0.55, 0.2, 0.15, 0.1)
EYE_LEVELS = shares(0.42, 0.36, 0.22)


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """One thing in the scene at time 0: world x and z in metres, heading in radians, m/s.

    kind is the class index, or -1 for a prop (look is then its name, variant its picture and
    height its metres). Things of one track move together.
    """

    kind: int
    look: Look
    x: float
    z: float
    heading: float
    speed: float
    height: float
    width: float
    track: int
    variant: int = 0
    nudge: float = 0.0  # metres towards the camera in the depth order


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that a seed fixes."""

    seed: int
    layout: Layout
    weather: Weather
    actors: tuple[Actor, ...]
    eye: tuple[float, float, float]
    yaw: float
    focal: float  # in frame widths
    horizon: float  # in frame heights
    sway: tuple[float, ...]  # metres and radians: X, Z, yaw; then three rates and a phase

    def camera(self, time_s: float, size_hw: tuple[int, int]) -> Camera:
        """The camera at a time; pixels of a frame of size_hw."""
        height, width = size_hw
        along, ahead, turn, r1, r2, r3, phase = self.sway
        x, y, z = self.eye
        x = float(np.clip(x + along * np.sin(r1 * time_s + phase), self.layout.left + 0.8,
                          self.layout.right - 0.8))  # fmt: skip
        return Camera(
            position=(x, y, z + ahead * float(np.sin(r2 * time_s + phase))),
            yaw=self.yaw + turn * float(np.sin(r3 * time_s + 2 * phase)),
            focal=self.focal * width,
            centre_u=width / 2,
            horizon_v=self.horizon * height,
        )


class _Planner:
    """Places actors where the camera sees them at time 0."""

    def __init__(
        self, rng: np.random.Generator, layout: Layout, camera: Camera, is_dusk: bool
    ) -> None:
        self.rng, self.layout, self.camera, self.is_dusk = rng, layout, camera, is_dusk
        self.actors: list[Actor] = []
        self.tracks = 0

    def free(self, x: float, z: float, room: float, lane: float = 0.0) -> bool:
        """Whether nothing else stands within reach of (x, z); lane widens cars along Z."""
        for other in self.actors:
            gap = room + other.width * 0.3
            reach = gap + (1.2 if other.kind == CAR else 0.0) + lane
            if abs(other.x - x) < gap and abs(other.z - z) < reach:
                return False
        return True

    def spot(self, size_m: float, kind: int) -> tuple[float, float] | None:
        """A world place where a thing of this size has a fitting apparent size."""
        rng, camera = self.rng, self.camera
        low, high = SIZES[kind]
        px = low * (high / low) ** (rng.random() ** 1.15)
        depth = camera.focal * size_m / px
        u = float(rng.uniform(0.02, 0.98)) * REFERENCE_W
        hosts = [a for a in self.actors if a.kind >= 0]
        if hosts and rng.random() < 0.72:  # behind another thing, half hidden by it
            host = hosts[int(rng.integers(len(hosts)))]
            host_u, _, host_depth = camera.project_point(host.x, 0.0, host.z)
            depth = host_depth * float(rng.uniform(1.06, 1.45)) + 0.4
            half = 0.5 * max(host.width, size_m * 0.3) * camera.focal / max(1.0, host_depth)
            u = float(host_u + rng.uniform(-0.62, 0.62) * half)
            if camera.focal * size_m / depth < low:
                return None
        if not 2.6 < depth < 62:
            return None
        return camera.ground_at(u, depth)

    def seen(self, x: float, z: float, near: float) -> bool:
        u, _, depth = self.camera.project_point(x, 0.0, z)
        return depth > near and -20 < u < REFERENCE_W + 20

    def add(self, kind: int, look: Look, x: float, z: float, heading: float, speed: float,
            height: float, width: float, **more: float) -> None:  # fmt: skip
        self.tracks += 1
        self.actors.append(
            Actor(kind=kind, look=look, x=x, z=z, heading=heading, speed=speed, height=height,
                  width=width, track=self.tracks, **more)
        )  # fmt: skip

    def along(self, wander: float) -> float:
        """A heading along the street, either way, give or take."""
        return float((0.0, np.pi)[int(self.rng.integers(2))] + self.rng.normal(0, wander))

    def person(self) -> None:
        rng, layout = self.rng, self.layout
        place = self.spot(1.72, PERSON)
        if place is None or not layout.left + 0.5 < place[0] < layout.right - 0.5:
            return
        if abs(place[0]) < layout.road_half and rng.random() < 0.55:
            return
        if not self.free(*place, 0.45):
            return
        gait = GAITS[pick(rng, GAIT_SHARES)]
        person = draw_person(rng, gait)
        speed = {"walk": 1.3, "run": 3.2}.get(gait, 0.0) * person.height / 1.7
        heading = self.along(0.35) if gait in ("walk", "run") else float(rng.uniform(0, 6.28))
        self.add(PERSON, person, *place, heading, speed, person.height, 0.55)

    def car(self) -> None:
        rng, layout = self.rng, self.layout
        place = self.spot(3.0, CAR)
        if place is None:
            return
        x, z = place
        parking, lane = layout.road_half - 1.05, layout.road_half * 0.48
        is_parked = rng.random() < 0.55
        x = float(np.sign(x) or 1.0) * (parking if is_parked else lane)
        if not self.seen(x, z, 5.2) or not self.free(x, z, 1.5, 2.4):
            return
        car = draw_car(rng, lamps_on=self.is_dusk or bool(rng.random() < 0.2))
        heading = 0.0 if x > 0 else np.pi
        heading += float(rng.normal(0, 0.03)) if rng.random() < 0.88 else float(rng.uniform(-1, 1))
        speed = 0.0 if is_parked else (0.0, 4.0, 8.0, 11.0)[int(rng.integers(4))]
        if speed:
            heading = 0.0 if x > 0 else np.pi
        self.add(CAR, car, x, z, heading, speed, car.dimensions[2], car.dimensions[0] * 0.6)

    def bicycle(self) -> None:
        rng, layout = self.rng, self.layout
        place = self.spot(1.6, BICYCLE)
        if place is None or not layout.left + 0.9 < place[0] < layout.right - 0.9:
            return
        x, z = place
        if not self.free(x, z, 0.8):
            return
        bicycle = draw_bicycle(rng)
        has_rider = rng.random() < 0.35
        abeam = self.camera.yaw + side(rng) * np.pi / 2
        heading = abeam + float(rng.normal(0, 0.45)) if rng.random() < 0.82 else self.along(0.2)
        speed = float(rng.uniform(2, 4.5)) if has_rider and abs(np.sin(heading)) < 0.6 else 0.0
        self.add(BICYCLE, bicycle, x, z, heading, speed, 1.1, 1.5)
        if has_rider:
            rider = draw_person(rng, "ride")
            self.add(PERSON, rider, x, z, heading, speed, 1.75, 0.5, nudge=0.08)

    def cone(self) -> None:
        rng, layout = self.rng, self.layout
        place = self.spot(0.72, CONE)
        if place is None or not layout.left + 0.4 < place[0] < layout.right - 0.4:
            return
        first = draw_cone(rng)
        count = 1 + pick(rng, CONE_ROWS)
        step = rng.normal(0, 1, 2)
        step *= rng.uniform(0.7, 1.8) / (np.linalg.norm(step) + 1e-6)
        for number in range(count):
            x, z = place[0] + number * step[0], place[1] + number * step[1]
            is_inside = layout.left + 0.4 < x < layout.right - 0.4
            if is_inside and self.seen(x, z, 2.5) and self.free(x, z, 0.25):
                self.add(CONE, first, float(x), float(z), 0.0, 0.0, first.height, 0.4)

    def ball(self) -> None:
        rng, layout = self.rng, self.layout
        ball = draw_ball(rng)
        place = self.spot(2 * ball.radius, BALL)
        if place is None or not layout.left + 0.4 < place[0] < layout.right - 0.4:
            return
        if self.free(*place, 0.25):
            speed = float(rng.uniform(0.6, 2.0)) if rng.random() < 0.25 else 0.0
            heading = float(rng.uniform(0, 6.28))
            self.add(BALL, ball, *place, heading, speed, 2 * ball.radius, 2 * ball.radius)

    def prop(self) -> None:
        """A prop at the kerb or by the walls; or, often, just before an object."""
        rng, layout, camera = self.rng, self.layout, self.camera
        names = tuple(PROPS)
        hosts = [a for a in self.actors if a.kind >= 0]
        if hosts and rng.random() < 0.76:
            host = hosts[int(rng.integers(len(hosts)))]
            host_u, _, depth = camera.project_point(host.x, 0.0, host.z)
            near = depth * float(rng.uniform(0.72, 0.94)) - 0.3
            half = 0.5 * host.width * camera.focal / max(1.0, depth)
            x, z = camera.ground_at(float(host_u + rng.uniform(-1, 1) * half), max(2.5, near))
            name = ("bin", "bollard", "sign", "planter", "lamp", "bush", "cabinet", "hydrant",
                    "tree", "signal")[int(rng.integers(10))]  # fmt: skip
        else:
            name = names[int(rng.integers(len(names)))]
            depth = 3.5 * 16 ** float(rng.random())
            x, z = camera.ground_at(float(rng.uniform(0, 1)) * REFERENCE_W, depth)
            outward = 1.0 if x > 0 else -1.0
            wall = layout.right if x > 0 else -layout.left
            x = outward * (layout.road_half + 0.5 if rng.random() < 0.6 else wall - 0.7)
        on_road = abs(x) < layout.road_half + 0.25
        if on_road or not layout.left + 0.4 < x < layout.right - 0.4:
            return
        is_tall = PROPS[name][0][1] > 3.8
        if not self.seen(x, z, 7.0 if is_tall else 3.2) or not self.free(x, z, 0.35):
            return
        (low, high), aspect, variants, _ = PROPS[name]
        height = float(rng.uniform(low, high))
        width = min(0.9, height * aspect)
        self.add(-1, name, float(x), float(z), 0.0, 0.0, height, width,
                 variant=int(rng.integers(2 * variants)))  # fmt: skip


@lru_cache(maxsize=8)
def build_scene(seed: int) -> Scene:
    """Draw the whole scene of a seed."""
    rng = np.random.default_rng([20_260, seed])
    layout, weather = plan_street(rng), draw_weather(rng)
    tall = float(pick(rng, EYE_LEVELS))
    eye = float(rng.uniform(1.5, 2.3) if tall == 0 else rng.uniform(2.3, 3.6) if tall == 1
                else rng.uniform(3.6, 6.0))  # fmt: skip
    yaw = float(rng.normal(0, 0.2))
    x = float(rng.uniform(layout.left + 1.5, layout.right - 1.5))
    if rng.random() < 0.14:  # across the street
        yaw = side(rng) * float(rng.uniform(0.6, 1.35))
        x = layout.left + 1.2 if yaw > 0 else layout.right - 1.2
    scene = Scene(
        seed=seed,
        layout=layout,
        weather=weather,
        actors=(),
        eye=(x, eye, 0.0),
        yaw=yaw,
        focal=float(rng.uniform(0.72, 1.15)),
        horizon=float(rng.uniform(0.34, 0.5) - 0.04 * tall),
        sway=(
            float(rng.uniform(0, 0.9)), float(rng.uniform(0, 2.2)), float(rng.uniform(0, 0.1)),
            float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.3, 0.7)),
            float(rng.uniform(0.3, 1.0)), float(rng.uniform(0, 6.28)),
        ),
    )  # fmt: skip
    camera = scene.camera(0.0, (432, REFERENCE_W))
    planner = _Planner(rng, layout, camera, weather.is_dusk)
    adders = (planner.person, planner.car, planner.bicycle, planner.cone, planner.ball)
    wanted = int(rng.integers(13, 22))
    for _ in range(90):
        if planner.tracks >= wanted:
            break
        adders[pick(rng, CLASS_SHARES)]()
    for _ in range(int(rng.integers(14, 24))):
        planner.prop()
    return Scene(
        **{name: getattr(scene, name) for name in Scene.__slots__ if name != "actors"},
        actors=tuple(planner.actors),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An actor at one time: world x, z (metres), heading, its track id and metres travelled."""

    actor: Actor
    x: float
    z: float
    heading: float
    track_id: int
    travelled: float


def place_actor(actor: Actor, layout: Layout, time_s: float) -> Placed:
    """Where an actor is at a time; a car that leaves the street returns as a new track."""
    travelled = actor.speed * time_s
    x = actor.x + travelled * float(np.sin(actor.heading))
    z = actor.z + travelled * float(np.cos(actor.heading))
    laps = int(np.floor((z - STREET_FROM_M) / LOOP_M)) if actor.kind == CAR else 0
    if actor.kind != CAR:
        x = float(np.clip(x, min(actor.x, layout.left + 0.4), max(actor.x, layout.right - 0.4)))
    return Placed(
        actor=actor,
        x=x,
        z=z - laps * LOOP_M,
        heading=actor.heading,
        track_id=actor.track + 1000 * abs(laps),
        travelled=travelled,
    )
