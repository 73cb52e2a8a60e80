"""What stands behind the objects: the sky, the ground with its road, the rows of buildings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from training.data.street import textures
from training.data.street.camera import Camera
from training.data.street.layout import Building, Layout, Weather
from training.data.street.vocabulary import PAVEMENT, ROAD, VEGETATION

GROUND_PX = 768  # texels across the street
PERIOD_PX, PERIOD_M = 512, 16.0  # texels and metres after which the ground repeats
# Rows of the ground by depth (metres): nearest first, with the texture's reduction along Z, X.
GROUND_BANDS = ((0.0, 9.0, 1, 1), (9.0, 22.0, 4, 2), (22.0, 1e9, 16, 4))
NUM_REDUCED = 12 * textures.NUM_FACADES


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """One painted wall: its polygon in pixels (N, 2), and its plane's normal and origin (3,)."""

    polygon: np.ndarray
    normal: np.ndarray
    origin: np.ndarray


def haze_part(depth: float, weather: Weather) -> float:
    """How far (0..1) a thing at this depth in metres has faded into the haze."""
    return 1.0 - math.exp(-max(0.0, depth) / weather.sight_m)


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
    part = cv2.resize(strip[:, start : start + 768], (width, tall))
    target = frame[rows - tall : rows]
    rest = cv2.cvtColor(255 - part[..., 3], cv2.COLOR_GRAY2BGR)
    cv2.multiply(target, rest, dst=rest, scale=1 / 255)
    target[:] = cv2.add(rest, cv2.cvtColor(part, cv2.COLOR_BGRA2BGR))


@lru_cache(maxsize=4)
def ground_texture(layout: Layout) -> tuple[np.ndarray, ...]:
    """The ground around one street, one picture per band of GROUND_BANDS, X right and Z down."""
    per_m = GROUND_PX / (2 * layout.reach)
    tiles = textures.ground_tiles()
    picture = np.empty((PERIOD_PX, GROUND_PX, 3), np.uint8)
    colours = np.empty((1, GROUND_PX, 3), np.uint8)

    def column(x: float) -> int:
        return int(np.clip(round((x + layout.reach) * per_m), 0, GROUND_PX))

    def lay(kind: str, x1: float, x2: float, colour: tuple[float, float, float]) -> None:
        left, right = column(x1), column(x2)
        tile = tiles[kind][layout.style % 4]
        for start in range(left, right, textures.TILE_PX):
            stop = min(right, start + textures.TILE_PX)
            picture[:, start:stop] = tile[:, : stop - start]
        colours[:, left:right] = np.clip(colour, 0, 255)

    lay("slabs", -layout.reach, layout.reach, layout.pavement_colour)
    for x1, x2 in layout.lawns:
        lay("grass", x1, x2, (118, 118, 118))
    lay("asphalt", -layout.road_half, layout.road_half, layout.road_colour)
    tint = np.ascontiguousarray(np.broadcast_to(colours, picture.shape))
    cv2.multiply(picture, tint, dst=picture, scale=1 / 128)
    _paint_marks(picture, layout, per_m)
    pictures, last = [picture], picture
    for _, _, z, x in GROUND_BANDS[1:]:
        half = (last.shape[1] // 2, last.shape[0] // 2)
        last = cv2.resize(last, half, interpolation=cv2.INTER_AREA)
        size = (GROUND_PX // x, PERIOD_PX // z)
        last = cv2.resize(last, size, interpolation=cv2.INTER_AREA)
        pictures.append(last)
    return tuple(pictures)


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


def _rows(values: np.ndarray, width: int) -> np.ndarray:
    """(N, width): each value (N,) along a whole row."""
    return np.ascontiguousarray(np.broadcast_to(values[:, None], (len(values), width)))


def light_ground(frame: np.ndarray, shadow: np.ndarray, camera: Camera, weather: Weather) -> None:
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
    clear = _rows((255 * (1 - fade)).astype(np.uint8), frame.shape[1])
    gain = cv2.multiply(lit, clear, dst=lit, scale=1 / 255)
    cv2.multiply(ground, cv2.cvtColor(gain, cv2.COLOR_GRAY2BGR), dst=ground, scale=1 / 255)
    last = int(np.searchsorted(-fade, -0.02))  # nearer rows have too little haze to matter
    if last > 0:
        part = fade[:last]
        veil = [_rows((part * haze).astype(np.uint8), frame.shape[1]) for haze in weather.haze]
        cv2.add(ground[:last], cv2.merge(veil), dst=ground[:last])


@lru_cache(maxsize=8)
def _walls(layout: Layout) -> tuple[list[Building], np.ndarray, np.ndarray]:
    """Every wall that can be seen: its house, corners (N, 4, 3) from the foot, normal (N, 3)."""
    owners, corners, normals = [], [], []

    def add(house: Building, foot: tuple[float, float], end: tuple[float, float],
            normal: tuple[float, float, float]) -> None:  # fmt: skip
        (x1, z1), (x2, z2), top = foot, end, house.height
        owners.append(house)
        corners.append([[x1, 0, z1], [x2, 0, z2], [x2, top, z2], [x1, top, z1]])
        normals.append(normal)

    houses = layout.buildings
    for number, house in enumerate(houses):
        out = 1.0 if house.x > 0 else -1.0
        add(house, (house.x, house.z1), (house.x, house.z2), (-out, 0, 0))
        for z, step in ((house.z1, -1), (house.z2, 1)):
            other = houses[number + step] if 0 <= number + step < len(houses) else None
            is_joined = other is not None and min(abs(other.z2 - z), abs(other.z1 - z)) < 0.1
            if is_joined and other.height >= house.height and abs(other.x) <= abs(house.x):
                continue
            add(house, (house.x, z), (house.x + out * house.deep, z), (0, 0, float(step)))
    return owners, np.array(corners, float), np.array(normals, float)


@lru_cache(maxsize=NUM_REDUCED)
def _reduced(facade: int, wide: int, tall: int) -> tuple[np.ndarray, np.ndarray]:
    """A facade's wall and its lit windows, halved `wide` times across and `tall` times down."""
    wall, lit = textures.facades()[facade]
    size = (textures.FACADE_PX >> wide, textures.FACADE_PX >> tall)
    return (cv2.resize(wall, size, interpolation=cv2.INTER_AREA),
            cv2.resize(lit, size, interpolation=cv2.INTER_AREA))  # fmt: skip


def paint_buildings(
    frame: np.ndarray, camera: Camera, layout: Layout, weather: Weather
) -> list[Face]:
    """Paint the houses, in place; the faces that one sees, far ones first.

    Goes from near to far and paints only what is still free, so that no pixel is warped twice.
    """
    owners, corners, normals = _walls(layout)
    eye = np.asarray(camera.position)
    uv, depth = camera.project(corners)
    faces_eye = np.einsum("nc,nc->n", normals, eye - corners[:, 0]) > 0
    is_wide = (uv[..., 0].min(axis=1) < frame.shape[1]) & (uv[..., 0].max(axis=1) > 0)
    shown = faces_eye & (depth.max(axis=1) > 0.6) & (is_wide | (depth.min(axis=1) < 0.7))
    far, near = depth.clip(1).mean(axis=1).tolist(), depth.min(axis=1).tolist()
    middle = corners.mean(axis=1) - eye
    order = np.argsort(np.hypot(middle[:, 0], middle[:, 2]))
    faces = []
    free = np.full(frame.shape[:2], 255, np.uint8)
    for wall in order[shown[order]]:
        polygon = uv[wall] if near[wall] > 0.7 else camera.clip_polygon(corners[wall])
        if len(polygon) == 0:
            continue
        face = Face(polygon=polygon, normal=normals[wall], origin=corners[wall, 0])
        fade = haze_part(far[wall] * 0.7, weather)
        shown_xyxy, mask = _claim(free, polygon)
        if mask is None:
            continue
        faces.append(face)
        picture = _picture_wall(
            camera, weather, owners[wall], corners[wall], face, fade, shown_xyxy
        )
        x1, y1, x2, y2 = shown_xyxy
        cv2.copyTo(picture, mask, frame[y1:y2, x1:x2])
    return faces[::-1]


def _claim(
    free: np.ndarray, polygon: np.ndarray
) -> tuple[tuple[int, int, int, int], np.ndarray | None]:
    """Take a polygon's free pixels away from `free` (H, W) uint8 0/255, in place.

    Returns:
        The box (x1, y1, x2, y2) of these pixels, and the mask of them in it; None where none is.
    """
    height, width = free.shape
    x1, y1 = np.floor(polygon.min(axis=0)).astype(int).tolist()
    x2, y2 = np.ceil(polygon.max(axis=0)).astype(int).tolist()
    x1, y1, x2, y2 = max(0, x1), max(0, y1), min(width, x2), min(height, y2)
    if x2 - x1 < 1 or y2 - y1 < 1:
        return (0, 0, 0, 0), None
    mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
    fixed = ((polygon - (x1 + 0.5, y1 + 0.5)) * 16).clip(-480_000, 480_000).astype(np.int32)
    cv2.fillConvexPoly(mask, fixed, 255, cv2.LINE_8, 4)
    part = free[y1:y2, x1:x2]
    cv2.bitwise_and(mask, part, dst=mask)
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return (0, 0, 0, 0), None
    cv2.subtract(part, mask, dst=part)
    return (x1 + x, y1 + y, x1 + x + w, y1 + y + h), mask[y : y + h, x : x + w]


def _picture_wall(
    camera: Camera, weather: Weather, building: Building, corners: np.ndarray, face: Face,
    fade: float, shown_xyxy: tuple[int, int, int, int],
) -> np.ndarray:  # fmt: skip
    """The picture of one wall over a box of the frame."""
    x1, y1 = np.floor(face.polygon.min(axis=0)).astype(int).tolist()
    x2, y2 = np.ceil(face.polygon.max(axis=0)).astype(int).tolist()
    size_px = textures.FACADE_PX
    wide = 0 if x2 - x1 > size_px * 0.7 else 1 if x2 - x1 > 80 else 2 if x2 - x1 > 36 else 3
    tall = 0 if y2 - y1 > size_px * 0.7 else 1 if y2 - y1 > 80 else 2
    texture, lit = _reduced(building.facade, wide, tall)
    gain = weather.wall_gain(face.normal) * building.gain * (1 - fade)
    tint = np.zeros((3, 4), np.float32)
    tint[[0, 1, 2], [0, 1, 2]] = gain
    tint[:, 3] = np.asarray(weather.haze) * fade
    texture = cv2.transform(texture, tint)
    if weather.is_dusk:
        texture[lit > 127] = (140, 215, 250)
    x1, y1, x2, y2 = shown_xyxy
    along, down = corners[1] - corners[0], corners[0] - corners[3]
    along, down = along / texture.shape[1], down / texture.shape[0]
    plane = camera.plane_to_image(corners[3], along, down)
    plane[:2] -= plane[2] * np.array([[x1 + 0.5], [y1 + 0.5]])
    return cv2.warpPerspective(
        texture, plane, (x2 - x1, y2 - y1), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip


def stuff_of_ground(layout: Layout, x: np.ndarray) -> np.ndarray:
    """Semantic class of ground points by their X in metres."""
    stuff = np.where(np.abs(x) < layout.road_half, ROAD, PAVEMENT).astype(np.uint8)
    for x1, x2 in layout.lawns:
        stuff[(x >= x1) & (x < x2)] = VEGETATION
    return stuff
