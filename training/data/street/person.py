"""People: a kinematic body with the 17 COCO joints, clothes, hair and a face, drawn as limbs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data.street.camera import Camera
from training.data.street.chance import pick, shares
from training.data.street.sprite import Canvas, Colour, Sprite, mix, shade

SKINS: tuple[Colour, ...] = (
    (165, 190, 232), (140, 172, 222), (115, 150, 205), (85, 115, 170), (60, 85, 130), (45, 62, 95),
)  # fmt: skip
HAIRS: tuple[Colour, ...] = (
    (25, 25, 30), (35, 45, 60), (50, 75, 110), (90, 150, 195), (150, 155, 160), (40, 60, 130),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (50, 45, 190), (180, 85, 35), (60, 140, 60), (40, 190, 225), (220, 220, 222), (40, 40, 44),
    (120, 70, 40), (150, 60, 130), (70, 120, 220), (170, 160, 70), (110, 110, 115), (60, 80, 105),
    (190, 150, 200), (200, 185, 120),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = (
    (110, 75, 45), (80, 55, 35), (45, 42, 42), (95, 100, 105), (75, 105, 135), (140, 165, 180),
    (60, 70, 60), (35, 35, 75),
)  # fmt: skip
PATTERNS = shares(0.42, 0.16, 0.14, 0.12, 0.16)
WEARS = shares(0.58, 0.14, 0.14, 0.14)
HAIR_STYLES = shares(0.45, 0.32, 0.15, 0.08)
BAGS = shares(0.66, 0.18, 0.16)
OVAL = np.array([[np.cos(a), 1.16 * np.sin(a)] for a in np.linspace(0, 6.283, 20)[:-1]])
HAIR = OVAL[OVAL[:, 1] < 0.25] * (1.08, 1.05)
HAIR = HAIR[np.argsort(np.arctan2(HAIR[:, 1], HAIR[:, 0]))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Looks and habit of one person; height in metres, gait one of walk, stand, wave, run, ride."""

    height: float
    girth: float
    gait: str
    phase: float
    skin: Colour
    hair: Colour
    top: Colour
    trim: Colour
    bottom: Colour
    shoe: Colour
    pattern: int  # 0 plain, 1 stripes, 2 block, 3 badge, 4 open jacket
    wear: int  # 0 trousers, 1 shorts, 2 skirt, 3 coat
    hair_style: int  # 0 short, 1 long, 2 cap, 3 bald
    bag: int  # 0 none, 1 backpack, 2 handbag


@dataclass(slots=True, kw_only=True)
class Figure:
    """A posed person: joints (17, 3) and landmarks (5, 3) in world metres, head centre (3,).

    forward and right are the unit axes of the body, head_r the head's radius in metres, facing
    (17,) and landmark_facing (5,) bool: not hidden by the own body.
    """

    joints: np.ndarray
    landmarks: np.ndarray
    head: np.ndarray
    forward: np.ndarray
    right: np.ndarray
    head_r: float


def draw_person(rng: np.random.Generator, gait: str) -> Person:
    """Draw the looks of a person."""
    is_child = gait != "ride" and rng.random() < 0.14

    def tint(bank: tuple[Colour, ...]) -> Colour:
        return shade(bank[int(rng.integers(len(bank)))], float(rng.uniform(0.8, 1.15)))

    return Person(
        height=float(rng.uniform(1.05, 1.4) if is_child else rng.uniform(1.55, 1.92)),
        girth=float(rng.uniform(0.85, 1.25)),
        gait=gait,
        phase=float(rng.uniform(0, 2 * np.pi)),
        skin=tint(SKINS),
        hair=tint(HAIRS),
        top=tint(CLOTHES),
        trim=tint(CLOTHES),
        bottom=tint(TROUSERS),
        shoe=[(30, 30, 34), (60, 60, 90), (225, 225, 225)][int(rng.integers(3))],
        pattern=pick(rng, PATTERNS),
        wear=pick(rng, WEARS),
        hair_style=pick(rng, HAIR_STYLES),
        bag=pick(rng, BAGS),
    )


def _leg(hip: np.ndarray, swing: float, flex: float, h: float) -> tuple[np.ndarray, np.ndarray]:
    knee = hip + 0.245 * h * np.array([0, -np.cos(swing), np.sin(swing)])
    shin = swing - flex
    return knee, knee + 0.245 * h * np.array([0, -np.cos(shin), np.sin(shin)])


def _arm(
    shoulder: np.ndarray, swing: float, flex: float, spread: float, h: float
) -> tuple[np.ndarray, np.ndarray]:
    elbow = shoulder + 0.17 * h * np.array([spread, -np.cos(swing), np.sin(swing)])
    fore = swing + flex
    wrist = elbow + 0.15 * h * np.array([spread * 0.4, -np.cos(fore), np.sin(fore)])
    return elbow, wrist


def _walking(person: Person, time_s: float) -> np.ndarray:
    """Local joints (right, up, forward) of the upright gaits; metres, the feet near up = 0."""
    h = person.height
    rate, reach = {"walk": (5.4, 0.42), "run": (8.5, 0.75)}.get(person.gait, (0.9, 0.04))
    turn = person.phase + rate * time_s
    local = np.zeros((17, 3))
    lean = 0.12 if person.gait == "run" else 0.02
    for side, left in ((-1.0, True), (1.0, False)):
        swing = np.sin(turn + (0 if left else np.pi))
        lift = max(0.0, np.cos(turn + (0 if left else np.pi)))
        shoulder = np.array([side * 0.115 * h * person.girth**0.5, 0.815 * h, lean * h * 0.6])
        hip = np.array([side * 0.062 * h * person.girth**0.5, 0.53 * h, 0])
        knee, ankle = _leg(hip, reach * swing, 0.1 + 1.3 * reach * lift, h)
        bend = 1.3 if person.gait == "run" else 0.35
        elbow, wrist = _arm(shoulder, -0.85 * reach * swing, bend, side * 0.16, h)
        if person.gait == "wave" and not left:
            elbow, wrist = _arm(shoulder, 2.1, 0.7 + 0.25 * np.sin(9 * time_s), 0.45, h)
        if person.gait == "stand" and left and person.pattern % 2 == 0:  # on the telephone
            elbow, wrist = _arm(shoulder, 0.5, 2.0, -0.1, h)
        first = 0 if left else 1
        rows = [5 + first, 7 + first, 9 + first, 11 + first, 13 + first, 15 + first]
        local[rows] = shoulder, elbow, wrist, hip, knee, ankle
    local[:, 1] += 0.045 * h - local[15:17, 1].min()
    return local


def _riding(person: Person, pedal: float) -> np.ndarray:
    """Local joints on a bicycle whose middle is the origin; pedal is the crank's angle."""
    h = person.height
    local = np.zeros((17, 3))
    for side, first in ((-1.0, 0), (1.0, 1)):
        hip = np.array([side * 0.07 * h, 0.98, -0.22])
        shoulder = np.array([side * 0.11 * h, 0.98 + 0.26 * h, -0.22 + 0.13 * h])
        hand = np.array([side * 0.25, 1.02, 0.42])
        angle = pedal + (0 if first == 0 else np.pi)
        foot = np.array([side * 0.1, 0.36 + 0.17 * np.sin(angle), 0.02 + 0.17 * np.cos(angle)])
        knee = _bend(hip, foot, 0.25 * h, np.array([0, 0.25, 1.0]))
        elbow = _bend(shoulder, hand, 0.165 * h, np.array([side * 0.7, -1.0, 0]))
        rows = [5 + first, 7 + first, 9 + first, 11 + first, 13 + first, 15 + first]
        local[rows] = shoulder, elbow, hand, hip, knee, foot
    return local


def _bend(start: np.ndarray, end: np.ndarray, bone: float, towards: np.ndarray) -> np.ndarray:
    """The middle joint of two equal bones from start to end, bent towards a direction."""
    gap = end - start
    far = float(np.linalg.norm(gap))
    out = towards - gap * (towards @ gap) / max(far * far, 1e-6)
    out = out / max(float(np.linalg.norm(out)), 1e-6)
    return (start + end) / 2 + out * np.sqrt(max(0.0, bone * bone - far * far / 4))


def pose_person(person: Person, x: float, z: float, heading: float, time_s: float) -> Figure:
    """Pose a person standing at world (x, z) metres; heading 0 looks along +Z."""
    local = (
        _riding(person, person.phase + 4.0 * time_s)
        if person.gait == "ride"
        else _walking(person, time_s)
    )
    radius = 0.068 * person.height + (0.022 if person.height < 1.45 else 0.004)
    neck = (local[5] + local[6]) / 2
    head = neck + np.array([0, 0.055 * person.height + radius * 1.05, 0.02 * person.height])
    on_head = radius * np.array(
        [[0, -0.08, 1.02], [-0.36, 0.16, 0.9], [0.36, 0.16, 0.9], [-0.95, 0.05, 0.0],
         [0.95, 0.05, 0.0], [-0.30, -0.5, 0.84], [0.30, -0.5, 0.84]]
    )  # fmt: skip
    local[:5] = head + on_head[:5]
    mouth = head + on_head[5:]
    right = np.array([np.cos(heading), 0, -np.sin(heading)])
    forward = np.array([np.sin(heading), 0, np.cos(heading)])
    axes = np.stack([right, (0, 1.0, 0), forward])
    place = np.array([x, 0, z])
    landmarks = np.concatenate([local[[1, 2, 0]], mouth])
    return Figure(
        joints=local @ axes + place,
        landmarks=landmarks @ axes + place,
        head=head @ axes + place,
        forward=forward,
        right=right,
        head_r=radius,
    )


class PersonPainter:
    """Draws one posed person as a sprite."""

    def __init__(self, person: Person, figure: Figure, camera: Camera, size_hw: tuple[int, int],
                 light_side: float) -> None:  # fmt: skip
        self.person, self.figure, self.camera, self.size_hw = person, figure, camera, size_hw
        self.light_side = light_side
        self.outline: np.ndarray | None = None
        tip = person.height * (figure.forward * 0.085 - (0, 0.025, 0))
        ahead = figure.forward * 0.1
        more = np.array([figure.head, figure.head + ahead, figure.head - 1.7 * ahead,
                         figure.joints[15] + tip, figure.joints[16] + tip])  # fmt: skip
        uv, depth = camera.project(np.concatenate([figure.joints, figure.landmarks, more]))
        self.uv, self.depth = uv[:17], depth[:17]
        self.face_uv, self.face_depth = uv[17:22], depth[17:22]
        self.head_uv, self.towards_uv, self.back_uv = uv[22], uv[23], uv[24]
        self.toes_uv = {15: uv[25], 16: uv[26]}
        self.head_depth = float(depth[22])
        self.px = camera.focal / self.head_depth  # pixels of a metre
        self.head_px = figure.head_r * self.px
        eye = np.asarray(camera.position) - figure.head
        eye = eye / np.linalg.norm(eye)
        self.facing = float(figure.forward @ eye)  # 1: looks into the camera

    def paint(self) -> Sprite | None:
        """The sprite, or None where nothing of it can fall into the frame."""
        points = np.concatenate([self.uv, [self.head_uv]])
        pad = 2.1 * self.head_px + 2
        low, high = points.min(axis=0) - pad, points.max(axis=0) + pad
        self.canvas = canvas = Canvas((*low, *high), self.size_hw)
        if canvas.is_empty:
            return None
        limbs = [("arm", 5), ("arm", 6), ("leg", 11), ("leg", 12)]
        limbs.sort(key=lambda limb: -self.depth[limb[1] + 2])
        middle = float(self.depth[[5, 6, 11, 12]].mean())
        behind = [limb for limb in limbs if limb[0] == "arm" and self.depth[limb[1] + 2] > middle]
        if self.person.bag == 1 and self.facing > 0:
            self._backpack()
        for limb in behind:
            self._arm(limb[1], 0.82)
        for number, limb in enumerate([limb for limb in limbs if limb[0] == "leg"]):
            self._leg(limb[1], 0.84 if number == 0 else 1.0)
        self._torso()
        if self.person.bag == 1 and self.facing <= 0:
            self._backpack()
        self._head()
        for limb in limbs:
            if limb[0] == "arm" and limb not in behind:
                self._arm(limb[1], 1.08)
        return canvas.finish()

    def _limb(self, a: int, b: int, r1: float, r2: float, colour: Colour) -> None:
        """A limb between joints a and b, radii in metres, with a lit edge."""
        p, q = self.uv[a], self.uv[b]
        r1, r2 = r1 * self.px, r2 * self.px
        self.canvas.capsule(p, q, r1, r2, shade(colour, 0.78))
        if r1 > 1.2:
            shift = np.array([self.light_side * 0.3 * r1, 0.0])
            self.canvas.capsule(p + shift, q + shift, r1 * 0.62, r2 * 0.62, shade(colour, 1.1))

    def _leg(self, hip: int, gain: float) -> None:
        person, girth = self.person, self.person.girth * self.person.height
        knee, ankle = hip + 2, hip + 4
        bare = shade(person.skin, gain)
        cloth = shade(person.bottom, gain)
        self._limb(knee, ankle, 0.034 * girth, 0.026 * girth,
                   bare if person.wear in (1, 2) else cloth)  # fmt: skip
        self._limb(hip, knee, 0.05 * girth, 0.037 * girth, cloth)
        toe = self.toes_uv[ankle]
        heel = self.uv[ankle] + (0, 0.018 * person.height * self.px)
        size = 0.024 * person.height * self.px
        self.canvas.capsule(heel, toe, size * 1.1, size, shade(person.shoe, gain))

    def _arm(self, shoulder: int, gain: float) -> None:
        person, girth = self.person, self.person.girth * self.person.height
        sleeve = shade(person.top, gain)
        short = person.wear == 1 or person.pattern == 1
        fore = shade(person.skin, gain) if short else sleeve
        self._limb(shoulder + 2, shoulder + 4, 0.025 * girth, 0.02 * girth, fore)
        self._limb(shoulder, shoulder + 2, 0.034 * girth, 0.027 * girth, sleeve)
        hand = self.uv[shoulder + 4]
        self.canvas.disc(hand, 0.026 * person.height * self.px, shade(person.skin, gain))
        if person.bag == 2 and shoulder == 6:
            self._handbag(hand)

    def _handbag(self, hand: np.ndarray) -> None:
        size = 0.09 * self.person.height * self.px
        box = np.array([[-1, 0.9], [1, 0.9], [1.15, 2.6], [-1.15, 2.6]]) * size * 0.8
        self.canvas.line(hand + np.array([[-0.6, 0.9], [0, 0], [0.6, 0.9]]) * size * 0.8,
                         0.02 * self.px, shade(self.person.trim, 0.5))  # fmt: skip
        self.canvas.poly(hand + box, shade(self.person.trim, 0.75))

    def _outline(self) -> np.ndarray:
        """(6, 2): shoulders, waist, hem, clockwise from the shoulder on the left of the picture."""
        if self.outline is None:
            self.outline = self._measure_outline()
        return self.outline

    def _measure_outline(self) -> np.ndarray:
        person = self.person
        shoulders = self.uv[[5, 6]][np.argsort(self.uv[[5, 6], 0])]
        hips = self.uv[[11, 12]][np.argsort(self.uv[[11, 12], 0])]
        low = {2: 0.12, 3: 0.2}.get(person.wear, 0.03) * person.height * self.px
        out = np.array([0.042 * person.height * person.girth * self.px, 0])
        flare = out * (1.9 if person.wear == 2 else 1.2)
        waist = shoulders * 0.42 + hips * 0.58
        return np.array(
            [shoulders[0] - out * 0.55, shoulders[1] + out * 0.55, waist[1] + out * 0.8,
             hips[1] + flare + (0, low), hips[0] - flare + (0, low), waist[0] - out * 0.8]
        )  # fmt: skip

    def _band(self, ring: np.ndarray, top: float, bottom: float, colour: Colour) -> None:
        """A belt of the torso between two shares (0 shoulder, 1 hem) of its height."""
        left, right = (ring[0], ring[4]), (ring[1], ring[3])
        corners = [a + (b - a) * t for (a, b), t in
                   ((left, top), (right, top), (right, bottom), (left, bottom))]  # fmt: skip
        self.canvas.poly(np.array(corners), colour)

    def _torso(self) -> None:
        person, canvas = self.person, self.canvas
        ring = self._outline()
        neck = (self.uv[5] + self.uv[6]) / 2
        canvas.capsule(neck, self.head_uv, 0.5 * self.head_px, 0.5 * self.head_px,
                       shade(person.skin, 0.8))  # fmt: skip
        radius = 0.032 * person.height * self.px
        for corner in ring[:2]:
            canvas.disc(corner + (0, radius * 0.6), radius, shade(person.top, 0.9))
        canvas.poly(ring, person.top)
        self._pattern(ring)
        if person.wear == 2:
            self._band(ring, 0.62, 1.0, person.bottom)
        elif person.wear != 3:
            self._band(ring, 0.86, 1.0, shade(person.bottom, 0.9))
        dark = ring[[1, 2, 3]] if self.light_side < 0 else ring[[0, 5, 4]]
        inward = (ring[:2].mean(axis=0) - ring[0]) * 0.7 * (1 if self.light_side >= 0 else -1)
        strip = np.concatenate([dark, (dark + inward)[::-1]])
        shaded = mix(person.top, (20, 20, 25), 0.3)
        if self.px > 25 and person.pattern in (0, 3):
            canvas.poly(strip, shaded)

    def _pattern(self, ring: np.ndarray) -> None:
        person = self.person
        if person.pattern == 1:
            for start in np.arange(0.08, 0.8, 0.2):
                self._band(ring, start, start + 0.09, person.trim)
        elif person.pattern == 2:
            self._band(ring, 0.0, 0.4, person.trim)
        elif person.pattern == 3 and abs(self.facing) > 0.4:
            middle = ring[:2].mean(axis=0) * 0.65 + ring[3:5].mean(axis=0) * 0.35
            self.canvas.disc(middle, 0.035 * person.height * self.px, person.trim)
        elif person.pattern == 4 and self.facing > 0.3:
            top, low = ring[:2].mean(axis=0), ring[3:5].mean(axis=0)
            half = np.array([0.028 * self.person.height * self.px, 0])
            self.canvas.poly(np.array([top - half, top + half, low + half, low - half]),
                             person.trim)  # fmt: skip

    def _backpack(self) -> None:
        ring = self._outline()
        top = ring[:2] * 0.92 + ring[3:5][::-1] * 0.08
        low = ring[:2] * 0.35 + ring[3:5][::-1] * 0.65
        shift = np.array([self.back_uv[0] - self.head_uv[0], 0])
        self.canvas.poly(np.concatenate([top, low[::-1]]) + shift, shade(self.person.trim, 0.7))

    def _head(self) -> None:
        person, canvas, r = self.person, self.canvas, self.head_px
        centre = self.head_uv
        towards = self.towards_uv - centre
        turn = np.array([float(np.clip(towards[0] / (0.1 * self.px), -1, 1)), 0.0])
        hair = (90, 120, 190) if person.hair_style == 3 else person.hair
        if person.hair_style == 1:
            canvas.capsule(centre - turn * 0.3 * r, centre + (0, 1.5 * r) - turn * 0.3 * r,
                           1.06 * r, 0.95 * r, shade(person.hair, 0.9))  # fmt: skip
        oval = OVAL
        canvas.poly(centre + oval * r, person.skin)
        if r > 3:
            side = np.array([self.light_side * 0.25, 0])
            canvas.poly(centre + (oval * 0.75 + side) * r, shade(person.skin, 1.1))
        back = -turn * 0.55 * r + (0, -0.42 * r)
        if self.facing < -0.15 and person.hair_style != 3:
            canvas.poly(centre + oval * r * 1.05 + (0, -0.08 * r), hair)
        elif person.hair_style != 3:
            canvas.poly(centre + HAIR * r + back * 0.45, hair)
        if person.hair_style == 2:
            brim = centre + (0, -0.5 * r) + turn * 0.5 * r
            canvas.capsule(centre + (0, -0.55 * r), brim + turn * 0.9 * r, 0.5 * r, 0.22 * r,
                           person.trim)  # fmt: skip
        if self.facing > -0.1 and r > 2.2:
            self._face(turn)

    def _face(self, turn: np.ndarray) -> None:
        """Eyes, brows, nose and mouth at the projected landmarks."""
        canvas, r = self.canvas, self.head_px
        uv = self.face_uv
        near = self.face_depth <= self.head_depth - 0.15 * self.figure.head_r
        for eye in (0, 1):
            if near[eye]:
                canvas.disc(uv[eye], 0.19 * r, (235, 235, 238))
                canvas.disc(uv[eye] + turn * 0.04 * r, 0.12 * r, (40, 35, 30))
                brow = uv[eye] + np.array([[-0.22, -0.26], [0.22, -0.26]]) * r
                canvas.line(brow, 0.09 * r, shade(self.person.hair, 0.8))
        if near[2]:
            canvas.capsule(uv[2] - (0, 0.25 * r), uv[2], 0.06 * r, 0.13 * r,
                           shade(self.person.skin, 0.78))  # fmt: skip
        if near[3] or near[4]:
            canvas.line(uv[3:5], 0.13 * r, (70, 60, 150))
