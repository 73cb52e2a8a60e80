"""What stands behind the objects: the sky, the ground with its road, the rows of buildings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from training.data.street import textures
from training.data.street.camera import Camera
from training.data.street.layout import Building, Layout, Weather
from training.data.street.vocabulary import BUILDING, PAVEMENT, ROAD, VEGETATION

GROUND_PX = 768  # texels across the street
PERIOD_PX, PERIOD_M = 512, 16.0  # texels and metres after which the ground repeats
# Rows of the ground by depth (metres): nearest first, with the texture's reduction along Z, X.
GROUND_BANDS = ((0.0, 9.0, 1, 1), (9.0, 22.0, 4, 2), (22.0, 1e9, 16, 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """One painted wall: its polygon in pixels (N, 2), and its plane's normal and origin (3,)."""

    polygon: np.ndarray
    normal: np.ndarray
    origin: np.ndarray


def haze_part(depth: float, weather: Weather) -> float:
    """How far (0..1) a thing at this depth in metres has faded into the haze."""
    return float(1.0 - np.exp(-max(0.0, depth) / weather.sight_m))


def paint_sky(frame: np.ndarray, camera: Camera, weather: Weather) -> None:
    """Paint the sky and the far skyline above the horizon, in place."""
    height, width = frame.shape[:2]
    rows = min(height, int(camera.horizon_v) + 1)
    if rows <= 0:
        return
    sky = textures.skies()[weather.sky][1]
    turn = int((weather.sky_turn + camera.yaw * 400) % 256)
    crop = sky[:, turn : turn + 768]
    crop = crop[max(0, 320 - int(rows * 432 / height * 1.2)) :]
    cv2.resize(crop, (width, rows), dst=frame[:rows], interpolation=cv2.INTER_LINEAR)
    strip = textures.skylines()[weather.skyline]
    scale = width / 768
    tall = max(2, min(rows, int(96 * scale * weather.skyline_gain)))
    start = int((weather.sky_turn * 3 + camera.yaw * camera.focal / scale) % 768)
    part = cv2.resize(strip[:, start : start + 768], (width, tall), interpolation=cv2.INTER_AREA)
    target = frame[rows - tall : rows]
    rest = cv2.cvtColor(255 - part[..., 3], cv2.COLOR_GRAY2BGR)
    cv2.multiply(target, rest, dst=rest, scale=1 / 255)
    target[:] = cv2.add(rest, cv2.cvtColor(part, cv2.COLOR_BGRA2BGR))


def _tint(tile: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    ramp = np.arange(256, dtype=np.float32)[:, None] * np.asarray(colour, np.float32) / 128.0
    return cv2.LUT(tile, np.clip(ramp, 0, 255).astype(np.uint8)[None])


@lru_cache(maxsize=4)
def ground_texture(layout: Layout) -> tuple[np.ndarray, ...]:
    """The ground around one street, one picture per band of GROUND_BANDS, X right and Z down."""
    per_m = GROUND_PX / (2 * layout.reach)
    tiles = textures.ground_tiles()
    picture = np.empty((PERIOD_PX, GROUND_PX, 3), np.uint8)

    def column(x: float) -> int:
        return int(np.clip(round((x + layout.reach) * per_m), 0, GROUND_PX))

    def lay(kind: str, x1: float, x2: float, colour: tuple[float, float, float]) -> None:
        left, right = column(x1), column(x2)
        tile = tiles[kind][layout.style % 4]
        for start in range(left, right, textures.TILE_PX):
            stop = min(right, start + textures.TILE_PX)
            picture[:, start:stop] = _tint(tile[:, : stop - start], colour)

    lay("slabs", -layout.reach, layout.reach, layout.pavement_colour)
    for x1, x2 in layout.lawns:
        lay("grass", x1, x2, (118, 118, 118))
    lay("asphalt", -layout.road_half, layout.road_half, layout.road_colour)
    _paint_marks(picture, layout, per_m)
    reduced = [
        cv2.resize(picture, (GROUND_PX // x, PERIOD_PX // z), interpolation=cv2.INTER_AREA)
        for _, _, z, x in GROUND_BANDS
    ]
    return tuple(reduced)


def _paint_marks(picture: np.ndarray, layout: Layout, per_m: float) -> None:
    def box(x1: float, x2: float, z1: float, z2: float, grey: int) -> None:
        columns = [round((x + layout.reach) * per_m) for x in (x1, x2)]
        rows = [round(z / PERIOD_M * PERIOD_PX) for z in (z1, z2)]
        area = picture[rows[0] : rows[1], columns[0] : max(columns[1], columns[0] + 1)]
        cv2.addWeighted(area, 0.3, np.full_like(area, grey), 0.7, 0, dst=area)

    half = layout.road_half
    for side in (-1, 1):
        x = side * half
        box(x - 0.13, x + 0.13, 0, PERIOD_M, 176)  # kerb stones
        box(x - side * 0.13 - 0.05, x - side * 0.13 + 0.05, 0, PERIOD_M, 62)  # gutter
        if layout.has_edge_lines:
            box(x - side * 0.5 - 0.06, x - side * 0.5 + 0.06, 0, PERIOD_M, 222)
    for start in (0.0, 4.0, 8.0, 12.0):
        box(-0.07, 0.07, start, start + (4.0 if layout.has_solid_line else 2.0), 225)
    if layout.has_crossing:
        for x in np.arange(-half + 0.5, half - 0.5, 1.0):
            box(x, x + 0.5, 6.0, 9.0, 228)


def paint_ground(frame: np.ndarray, camera: Camera, layout: Layout, weather: Weather) -> None:
    """Paint everything under the horizon, in place."""
    height, width = frame.shape[:2]
    x, eye, z = camera.position
    plane = camera.plane_to_image(np.zeros(3), np.array([1.0, 0, 0]), np.array([0, 0, 1.0]))
    to_plane = np.linalg.inv(plane)
    drop = camera.focal * eye
    pictures = ground_texture(layout)
    for (near, far, reduce_z, reduce_x), picture in zip(GROUND_BANDS, pictures, strict=True):
        top = int(np.ceil(camera.horizon_v + drop / far)) if far < 1e8 else int(camera.horizon_v)
        bottom = int(np.ceil(camera.horizon_v + drop / near)) if near > 0 else height
        top, bottom = max(0, top), min(height, bottom)
        if bottom <= top:
            continue
        sx = GROUND_PX / (2 * layout.reach) / reduce_x
        sz = PERIOD_PX / PERIOD_M / reduce_z
        to_texel = np.array([[sx, 0, layout.reach * sx], [0, sz, 0], [0, 0, 1.0]])
        offset = np.array([[1.0, 0, 0.5], [0, 1.0, top + 0.5], [0, 0, 1.0]])
        cv2.warpPerspective(
            picture, to_texel @ to_plane @ offset, (width, bottom - top), dst=frame[top:bottom],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_WRAP,
        )  # fmt: skip


def light_ground(
    frame: np.ndarray, shadow: np.ndarray, camera: Camera, weather: Weather
) -> None:
    """Darken the ground where the shadow mask (H, W) uint8 says, and fade it into the haze."""
    height = frame.shape[0]
    top = max(0, int(camera.horizon_v))
    if top >= height:
        return
    rows = np.arange(top, height) + 0.5 - camera.horizon_v
    depth = camera.focal * camera.position[1] / np.maximum(rows, 0.5)
    fade = 1.0 - np.exp(-depth / weather.sight_m)
    ground = frame[top:]
    lit = cv2.LUT(shadow[top:], weather.shadow_curve())
    gain = cv2.multiply(lit, np.repeat((255 * (1 - fade)).astype(np.uint8)[:, None],
                                       frame.shape[1], 1), scale=1 / 255)  # fmt: skip
    cv2.multiply(ground, cv2.cvtColor(gain, cv2.COLOR_GRAY2BGR), dst=ground, scale=1 / 255)
    veil = (fade[:, None, None] * np.asarray(weather.haze)).astype(np.uint8)
    last = int(np.searchsorted(-fade, -0.02))  # nearer rows have too little haze to matter
    if last > 0:
        cv2.add(ground[:last], np.repeat(veil[:last], frame.shape[1], 1), dst=ground[:last])


def _walls(building: Building, camera: Camera) -> list[tuple[np.ndarray, np.ndarray, float, bool]]:
    """(origin at the foot, axis along, length in metres, is the side turned to the street)."""
    x, z1, z2 = building.x, building.z1, building.z2
    out = np.sign(x)
    walls = []
    for z, faces_camera in ((z1, camera.position[2] < z1), (z2, camera.position[2] > z2)):
        if faces_camera:
            walls.append((np.array([x, 0, z]), np.array([out, 0, 0.0]), building.deep, False))
    walls.append((np.array([x, 0, z1]), np.array([0, 0, 1.0]), z2 - z1, True))
    return walls


def paint_buildings(
    frame: np.ndarray, camera: Camera, layout: Layout, weather: Weather
) -> list[Face]:
    """Paint the houses, far ones first, in place; the faces painted, in that order."""
    eye = np.asarray(camera.position)
    by_distance = sorted(
        layout.buildings, key=lambda b: -np.hypot(b.x - eye[0], (b.z1 + b.z2) / 2 - eye[2])
    )
    faces = []
    for building in by_distance:
        for origin, along, length, is_front in _walls(building, camera):
            face = _paint_wall(frame, camera, weather, building, (origin, along, length, is_front))
            if face is not None:
                faces.append(face)
    return faces


def _paint_wall(
    frame: np.ndarray, camera: Camera, weather: Weather, building: Building,
    wall: tuple[np.ndarray, np.ndarray, float, bool],
) -> Face | None:  # fmt: skip
    origin, along, length, is_front = wall
    height, width = frame.shape[:2]
    up = np.array([0, building.height, 0.0])
    corners = np.stack([origin, origin + along * length, origin + along * length + up, origin + up])
    polygon = camera.clip_polygon(corners)
    if len(polygon) == 0:
        return None
    low = np.floor(np.clip(polygon.min(axis=0), 0, (width, height))).astype(int)
    high = np.ceil(np.clip(polygon.max(axis=0), 0, (width, height))).astype(int)
    if (high - low).min() < 1:
        return None
    texture, lit = textures.facades()[building.facade]
    if not is_front:
        texture, lit = texture[8:40], lit[8:40]  # a blank strip of wall, mostly
    normal = np.cross(along, (0, 1.0, 0))
    normal *= np.sign(normal @ (np.asarray(camera.position) - origin)) or 1.0
    gain = weather.wall_gain(normal) * building.gain
    depth = float(camera.to_camera(corners)[:, 2].clip(1).mean())
    fade = haze_part(depth * 0.7, weather)
    ramp = np.arange(256)[:, None] * gain * (1 - fade) + np.asarray(weather.haze) * fade
    texture = cv2.LUT(texture, np.clip(ramp, 0, 255).astype(np.uint8)[None])
    if weather.is_dusk:
        cv2.copyTo(np.full_like(texture, (140, 215, 250)), lit, texture)
    plane = camera.plane_to_image(corners[3], along * length, -up)
    shrink = max(1.0, float(high[0] - low[0]) / texture.shape[1] * 2)
    if shrink <= 1.0:
        texture = cv2.resize(texture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    scale = np.diag([1 / texture.shape[1], 1 / texture.shape[0], 1.0])
    shift = np.array([[1.0, 0, -low[0] - 0.5], [0, 1.0, -low[1] - 0.5], [0, 0, 1.0]])
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    picture = cv2.warpPerspective(
        texture, shift @ plane @ scale, size, flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    mask = np.zeros((size[1], size[0]), np.uint8)
    cv2.fillPoly(mask, [np.rint((polygon - low - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    cv2.copyTo(picture, mask, frame[low[1] : high[1], low[0] : high[0]])
    return Face(polygon=polygon, normal=normal, origin=origin)


def stuff_of_ground(layout: Layout, x: np.ndarray) -> np.ndarray:
    """Semantic class of ground points by their X in metres."""
    stuff = np.where(np.abs(x) < layout.road_half, ROAD, PAVEMENT).astype(np.uint8)
    for x1, x2 in layout.lawns:
        stuff[(x >= x1) & (x < x2)] = VEGETATION
    return stuff


BUILDING_STUFF = BUILDING
