"""Rendering of one frame: sky, ground, shadows, houses, then everything from far to near."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from training.data.street import textures
from training.data.street.backdrop import (
    Face,
    haze_part,
    light_ground,
    paint_buildings,
    paint_ground,
    paint_sky,
)
from training.data.street.bicycle import Bicycle, paint_bicycle
from training.data.street.camera import Camera
from training.data.street.car import Car, CarPainter
from training.data.street.layout import CAST, Weather
from training.data.street.person import Figure, Person, PersonPainter, pose_person
from training.data.street.props import PROPS, prop_pictures
from training.data.street.scene import (
    FRAMES_PER_S,
    Placed,
    Scene,
    build_scene,
    place_actor,
)
from training.data.street.shadows import (
    shade_by_figure,
    shade_by_houses,
    shade_by_thing,
    shade_contacts,
)
from training.data.street.small import Ball, Cone, paint_ball, paint_cone
from training.data.street.sprite import Sprite, composite, place_picture, smear, tone

MAX_PAINTED = 250


@dataclass(slots=True, kw_only=True)
class Painted:
    """One thing as it was painted: its value in the id picture, its sprite's solid mask and place.

    amodal_px counts the solid pixels inside the frame; inside is the share of its box there.
    """

    value: int
    placed: Placed
    solid: np.ndarray
    x: int
    y: int
    amodal_px: int
    inside: float
    figure: Figure | None
    depth: float


@dataclass(slots=True, kw_only=True)
class Painting:
    """A frame with all that its labels need: image (H, W, 3), ids (H, W) uint8, 0 = backdrop."""

    image: np.ndarray
    ids: np.ndarray
    things: list[Painted]
    faces: list[Face]
    scene: Scene
    camera: Camera
    time_s: float
    is_blurred: bool
    is_shadowed: bool


def paint_frame(seed: int, index: int, size_hw: tuple[int, int]) -> Painting:
    """Paint frame `index` of the scene of a seed."""
    scene, time_s = build_scene(seed), index / FRAMES_PER_S
    return paint_scene(scene, scene.camera(time_s, size_hw), time_s, size_hw, grain=index)


def paint_scene(
    scene: Scene, camera: Camera, time_s: float, size_hw: tuple[int, int], *, grain: int
) -> Painting:
    """Paint a scene at a time, as a camera of frames of `size_hw` sees it; `grain` draws noise."""
    weather, layout = scene.weather, scene.layout
    placed = [place_actor(actor, layout, time_s) for actor in scene.actors]
    figures = [
        pose_person(p.actor.look, p.x, p.z, p.heading, time_s)
        if isinstance(p.actor.look, Person) else None for p in placed
    ]  # fmt: skip
    image = np.zeros((*size_hw, 3), np.uint8)
    paint_sky(image, camera, weather)
    paint_ground(image, camera, layout, weather)
    shadow = np.zeros(size_hw, np.uint8)
    shade_by_houses(shadow, camera, layout, weather)
    top = max(0, min(size_hw[0] - 1, int(camera.horizon_v)))
    shaded = cv2.mean(shadow[top:])[0] / CAST
    house_shadow = shadow.copy()
    _shade_by_all(shadow, placed, figures, camera, weather)
    shadow[top:] = cv2.blur(shadow[top:], (3, 3))
    light_ground(image, shadow, camera, weather)
    faces = paint_buildings(image, camera, layout, weather)
    ids = np.zeros(size_hw, np.uint8)
    painter = _Painter(scene, camera, size_hw, time_s, house_shadow)
    things = painter.paint_all(image, ids, placed, figures)
    is_blurred = weather.defocus > 0 or weather.shake > 0
    return Painting(
        image=_expose(image, weather, scene.seed, grain),
        ids=ids,
        things=things,
        faces=faces,
        scene=scene,
        camera=camera,
        time_s=time_s,
        is_blurred=is_blurred,
        is_shadowed=bool(shaded > 0.3 and weather.shadow_depth > 0.4),
    )


def _shade_by_all(
    shadow: np.ndarray, placed: list[Placed], figures: list[Figure | None], camera: Camera,
    weather: Weather,
) -> None:  # fmt: skip
    uv, depth = camera.project(np.array([[p.x, 0, p.z] for p in placed]).reshape(-1, 3))
    margin = 5 * camera.focal / np.maximum(depth, 1.0)  # a long shadow or a long car
    is_near = (depth > 0.7) & (depth < 90) & (uv[:, 0] > -margin)
    is_near &= uv[:, 0] < shadow.shape[1] + margin
    for here in np.flatnonzero(is_near):
        if figures[here] is None:
            shade_by_thing(shadow, placed[here], camera, weather)
        else:
            shade_by_figure(shadow, figures[here], camera, weather)
    shade_contacts(shadow, [placed[here] for here in np.flatnonzero(is_near)], camera)


class _Painter:
    def __init__(self, scene: Scene, camera: Camera, size_hw: tuple[int, int], time_s: float,
                 house_shadow: np.ndarray) -> None:  # fmt: skip
        self.scene, self.camera, self.size_hw, self.time_s = scene, camera, size_hw, time_s
        self.house_shadow = house_shadow
        sun_x, sun_z = scene.weather.sun
        across = camera.rotation()[0]
        side = -(across[0] * sun_x + across[2] * sun_z) / (np.hypot(sun_x, sun_z) + 1e-6)
        self.light_side = float(side)

    def paint_all(
        self, image: np.ndarray, ids: np.ndarray, placed: list[Placed],
        figures: list[Figure | None],
    ) -> list[Painted]:  # fmt: skip
        """Paint everything from far to near, in place; what was painted, in that order."""
        feet = np.array([[p.x, 0, p.z] for p in placed]).reshape(-1, 3)
        foot_uv, depths = self.camera.project(feet)
        order = np.argsort([p.actor.nudge - d for p, d in zip(placed, depths, strict=True)])
        things: list[Painted] = []
        for here in order[-MAX_PAINTED:]:
            thing, depth = placed[here], float(depths[here])
            if depth < 1.1 + (2.4 if isinstance(thing.actor.look, Car) else 0.0):
                continue
            sprite = self._sprite(thing, figures[here], depth)
            if sprite is None:
                continue
            self._light(sprite, thing, foot_uv[here].tolist(), depth)
            composite(image, sprite)
            value = len(things) + 1
            h, w = sprite.solid.shape
            cv2.copyTo(np.full((h, w), value, np.uint8), sprite.solid,
                       ids[sprite.y : sprite.y + h, sprite.x : sprite.x + w])  # fmt: skip
            things.append(
                Painted(value=value, placed=thing, solid=sprite.solid, x=sprite.x, y=sprite.y,
                        amodal_px=cv2.countNonZero(sprite.solid), inside=sprite.inside,
                        figure=figures[here], depth=depth)
            )  # fmt: skip
        return things

    def _sprite(self, thing: Placed, figure: Figure | None, depth: float) -> Sprite | None:
        look, place = thing.actor.look, (thing.x, thing.z, thing.heading)
        camera, size_hw, weather = self.camera, self.size_hw, self.scene.weather
        if isinstance(look, Person):
            return PersonPainter(look, figure, camera, size_hw, self.light_side).paint()
        if isinstance(look, Car):
            return CarPainter(look, place, camera, size_hw, weather.sun).paint()
        if isinstance(look, Bicycle):
            pedal = look.phase + thing.travelled * 1.2
            return paint_bicycle(look, place, camera, size_hw, pedal)
        if isinstance(look, Cone):
            return paint_cone(look, thing.x, thing.z, camera, size_hw, self.light_side)
        if isinstance(look, Ball):
            roll = thing.travelled / look.radius
            return paint_ball(look, thing.x, thing.z, camera, size_hw, self.light_side, roll)
        _, aspect, variants, _ = PROPS[look]
        pictures = prop_pictures()[look][thing.actor.variant % variants]
        foot, _ = camera.project(np.array([thing.x, 0.0, thing.z]))
        height = thing.actor.height * camera.focal / depth
        half = height * aspect / 2
        extent = (foot[0] - half, foot[1] - height, foot[0] + half, foot[1])
        is_mirrored = thing.actor.variant >= variants and look != "sign"
        return place_picture(pictures, extent, size_hw, is_mirrored=is_mirrored)

    def _light(self, sprite: Sprite, thing: Placed, foot: list[float], depth: float) -> None:
        """Shade by the houses, fade into the haze, smear by the motion within the exposure."""
        weather = self.scene.weather
        height, width = self.size_hw
        column = min(max(int(foot[0]), 0), width - 1)
        row = min(max(int(foot[1]), 0), height - 1)
        gain = 1.0
        if self.house_shadow[row, column] > 127:
            gain = 1.0 - 0.62 * weather.shadow_depth
        fade = haze_part(depth, weather)
        if gain < 1.0 or fade > 0.03:
            tone(sprite, (gain, gain, gain), weather.haze, fade)
        if thing.actor.speed > 2.5:
            rotation = self.camera.rotation()[0]
            across = np.sin(thing.heading) * rotation[0] + np.cos(thing.heading) * rotation[2]
            moved = abs(across) * thing.actor.speed / FRAMES_PER_S  # metres in a frame's time
            smeared = 0.4 * moved * self.camera.focal / depth
            if smeared >= 2:
                smear(sprite, min(15, int(smeared) | 1), self.size_hw)


def _tone_curve(image: np.ndarray, weather: Weather) -> np.ndarray:
    """Exposure, contrast and the colour of the light."""
    warm = np.array([1 - weather.warmth, 1.0, 1 + weather.warmth], np.float32)
    if not weather.is_dusk:
        gain = weather.contrast * weather.exposure * warm
        offset = (0.5 - 0.5 * weather.contrast) * weather.exposure * warm * 255
        return cv2.transform(image, np.column_stack([np.diag(gain), offset]).astype(np.float32))
    ramp = np.arange(256, dtype=np.float32) / 255
    curve = (ramp - 0.5) * weather.contrast + 0.5
    curve = weather.exposure * curve + (1 - weather.exposure) * ramp**4  # the lamps stay bright
    table = np.clip(curve[:, None] * warm * 255, 0, 255).astype(np.uint8)[None]
    return cv2.LUT(image, table)


def _expose(image: np.ndarray, weather: Weather, seed: int, index: int) -> np.ndarray:
    """The camera's part: blur, tone curve, falling rain, noise; (H, W, 3) uint8."""
    height, width = image.shape[:2]
    scale = width / 768
    if weather.shake:
        image = cv2.blur(image, (max(2, round(weather.shake * scale)), 1))
    if weather.defocus:
        image = cv2.GaussianBlur(image, (0, 0), weather.defocus * scale)
    image = _tone_curve(image, weather)
    rng = np.random.default_rng([77, seed, index])
    if weather.falling >= 0:
        drops = textures.rain_bank()[weather.falling]
        drops = np.roll(drops, (int(rng.integers(432)), int(rng.integers(768))), axis=(0, 1))
        drops = cv2.resize(drops, (width, height), interpolation=cv2.INTER_LINEAR)
        image = cv2.add(image, cv2.cvtColor(drops, cv2.COLOR_GRAY2BGR))
    bank = textures.noise_bank()
    row = int(rng.integers(max(1, bank.shape[0] - height)))
    column = int(rng.integers(max(1, bank.shape[1] - width)))
    grain = bank[row : row + height, column : column + width]
    if grain.shape != image.shape:
        grain = cv2.resize(bank, (width, height), interpolation=cv2.INTER_NEAREST)
    return cv2.addWeighted(image, 1.0, grain, weather.noise, -128.0 * weather.noise)
