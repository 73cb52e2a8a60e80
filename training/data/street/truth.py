"""Ground truth of a painting: boxes, masks, joints, semantic and panoptic ids, depth, flow."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from training.data.street.backdrop import stuff_of_ground
from training.data.street.camera import Camera
from training.data.street.props import PROPS
from training.data.street.render import Painted, Painting
from training.data.street.scene import FRAMES_PER_S, place_actor
from training.data.street.vocabulary import (
    BUILDING,
    FIRST_THING,
    FURNITURE,
    SKY,
    VEGETATION,
)

SKY_DEPTH_M = 1000.0
MIN_VISIBILITY = 0.25  # less of an object to be seen: a region to ignore, not an object
MIN_VISIBLE_PX = 30  # both in a frame of 768x432; fewer: not labelled at all
MIN_SIDE_PX = 9.0
REFERENCE_W = 768


@dataclass(slots=True, kw_only=True)
class Found:
    """A labelled object: how it was painted, the tight box of what one sees of it, and how much.

    visibility is visible over amodal pixels inside the frame; shown is that times the share of
    the object inside the frame.
    """

    painted: Painted
    box_xyxy: tuple[int, int, int, int]
    visible_px: int
    visibility: float
    shown: float

    @property
    def is_crowd(self) -> bool:
        """Too little of it is seen: to be ignored by training and scoring."""
        return self.shown < MIN_VISIBILITY


def find_objects(painting: Painting) -> list[Found]:
    """The objects that get a label, in the order of painting (far to near)."""
    scale = painting.image.shape[1] / REFERENCE_W
    found = []
    for thing in painting.things:
        if thing.placed.actor.kind < 0 or thing.amodal_px == 0:
            continue
        h, w = thing.solid.shape
        area = painting.ids[thing.y : thing.y + h, thing.x : thing.x + w]
        mine = cv2.compare(area, float(thing.value), cv2.CMP_EQ)
        visible = cv2.countNonZero(mine)
        if visible < MIN_VISIBLE_PX * scale * scale:
            continue
        x, y, box_w, box_h = cv2.boundingRect(mine)
        if max(box_w, box_h) < MIN_SIDE_PX * scale:
            continue
        seen = visible / thing.amodal_px
        x, y = x + thing.x, y + thing.y
        found.append(
            Found(painted=thing, box_xyxy=(x, y, x + box_w, y + box_h), visible_px=visible,
                  visibility=seen, shown=seen * thing.inside)
        )  # fmt: skip
    return found


def masks_of(painting: Painting, found: list[Found]) -> np.ndarray:
    """(N, H, W) uint8 0/1: what one sees of each object."""
    masks = np.zeros((len(found), *painting.ids.shape), np.uint8)
    for mask, item in zip(masks, found, strict=True):
        x1, y1, x2, y2 = item.box_xyxy
        place = slice(y1, y2), slice(x1, x2)
        np.equal(painting.ids[place], item.painted.value, out=mask[place], casting="unsafe")
    return masks


def _points(painting: Painting, item: Found, points: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """(J, 3) as (x, y, v) of world points (J, 3); hidden (J,) bool: by the own body."""
    uv, depth = painting.camera.project(points)
    height, width = painting.ids.shape
    rows = np.zeros((len(points), 3), np.float32)
    for joint, (u, v) in enumerate(uv):
        if depth[joint] < 0.6 or not (0 <= u < width and 0 <= v < height):
            continue
        x, y = int(u), int(v)
        patch = painting.ids[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        is_seen = bool((patch == item.painted.value).any()) and not hidden[joint]
        rows[joint] = u, v, 2 if is_seen else 1
    return rows


def keypoints_of(painting: Painting, found: list[Found]) -> np.ndarray:
    """(N, 17, 3) float32 as (x, y, v): v 0 outside the frame or no person, 1 hidden, 2 seen."""
    rows = np.zeros((len(found), 17, 3), np.float32)
    for row, item in enumerate(found):
        figure = item.painted.figure
        if figure is not None:
            rows[row] = _points(painting, item, figure.joints, _joints_behind(painting, item))
    return rows


def _joints_behind(painting: Painting, item: Found) -> np.ndarray:
    """(17,) bool: turned away on the head, or an arm's joint behind the trunk."""
    figure, camera = item.painted.figure, painting.camera
    uv, depth = camera.project(figure.joints)
    head_depth = float(camera.project(figure.head)[1])
    hidden = np.zeros(17, bool)
    hidden[:3] = depth[:3] > head_depth - 0.1 * figure.head_r
    hidden[3:5] = depth[3:5] > head_depth + 0.45 * figure.head_r
    trunk = cv2.convexHull(uv[[5, 6, 11, 12]].astype(np.float32))
    middle = float(depth[[5, 6, 11, 12]].mean())
    for joint in (7, 8, 9, 10):
        if depth[joint] > middle + 0.05:
            at = (float(uv[joint, 0]), float(uv[joint, 1]))
            hidden[joint] = cv2.pointPolygonTest(trunk, at, False) > 0
    return hidden


def landmarks_of(painting: Painting, found: list[Found]) -> np.ndarray:
    """(N, 5, 3) float32 as (x, y, v): eyes, nose, mouth corners; v as for joints."""
    rows = np.zeros((len(found), 5, 3), np.float32)
    for row, item in enumerate(found):
        figure = item.painted.figure
        if figure is None:
            continue
        _, depth = painting.camera.project(figure.landmarks)
        head_depth = float(painting.camera.project(figure.head)[1])
        hidden = depth > head_depth - 0.1 * figure.head_r
        rows[row] = _points(painting, item, figure.landmarks, hidden)
    return rows


def _rays(painting: Painting) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) x and y of the viewing rays at depth 1, in the camera's frame."""
    height, width = painting.ids.shape
    camera = painting.camera
    x = (np.arange(width, dtype=np.float32) + 0.5 - camera.centre_u) / camera.focal
    y = (camera.horizon_v - np.arange(height, dtype=np.float32) - 0.5) / camera.focal
    return np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))


def backdrop_of(painting: Painting) -> tuple[np.ndarray, np.ndarray]:
    """Semantic class (H, W) uint8 and depth (H, W) float32 metres without any objects."""
    camera = painting.camera
    x, y = _rays(painting)
    stuff = np.full(x.shape, SKY, np.uint8)
    depth = np.full(x.shape, SKY_DEPTH_M, np.float32)
    ground = y < -1e-6
    depth[ground] = np.minimum(SKY_DEPTH_M, camera.position[1] / -y[ground])
    right, _, forward = camera.rotation()
    world_x = camera.position[0] + depth * (x * right[0] + forward[0])
    stuff[ground] = stuff_of_ground(painting.scene.layout, world_x[ground])
    for face in painting.faces:
        mask = np.zeros(x.shape, np.uint8)
        fixed = np.rint((face.polygon - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(mask, [fixed], 1, cv2.LINE_8, 4)
        inside = mask > 0
        normal = camera.rotation() @ face.normal
        gap = float(face.normal @ (face.origin - np.asarray(camera.position)))
        slope = normal[0] * x[inside] + normal[1] * y[inside] + normal[2]
        depth[inside] = np.clip(gap / np.where(np.abs(slope) < 1e-6, 1e-6, slope), 0.1, SKY_DEPTH_M)
        stuff[inside] = BUILDING
    return stuff, depth


def stuff_of_thing(thing: Painted) -> int:
    """The semantic class of a painted thing."""
    actor = thing.placed.actor
    if actor.kind >= 0:
        return FIRST_THING + actor.kind
    return VEGETATION if PROPS[str(actor.look)][3] else FURNITURE


def semantic_of(painting: Painting, backdrop: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(H, W) uint8, indices of SEMANTIC_CLASSES."""
    table = np.zeros(256, np.uint8)
    for thing in painting.things:
        table[thing.value] = stuff_of_thing(thing)
    return np.where(painting.ids > 0, table[painting.ids], backdrop[0])


def panoptic_of(painting: Painting, semantic: np.ndarray) -> np.ndarray:
    """(H, W) int32: semantic class x 10000, plus the track id for objects."""
    table = np.zeros(256, np.int32)
    for thing in painting.things:
        if thing.placed.actor.kind >= 0:
            table[thing.value] = thing.placed.track_id
    return semantic.astype(np.int32) * 10_000 + table[painting.ids]


def depth_of(painting: Painting, backdrop: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(H, W) float32 metres along the optical axis; SKY_DEPTH_M in the sky; things stand flat."""
    table = np.zeros(256, np.float32)
    for thing in painting.things:
        table[thing.value] = thing.depth
    return np.where(painting.ids > 0, table[painting.ids], backdrop[1]).astype(np.float32)


def flow_of(painting: Painting, depth: np.ndarray) -> np.ndarray:
    """(H, W, 2) float32 pixels (x, y) from each pixel to where its point is in the next frame."""
    later = painting.time_s + 1.0 / FRAMES_PER_S
    camera = painting.scene.camera(later, painting.ids.shape)
    return flow_towards(painting, depth, camera, later)[0]


def flow_towards(
    painting: Painting, depth: np.ndarray, camera: Camera, time_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel's point is at another time, before or after, for a camera of that time.

    Objects move as rigid wholes: the swing of limbs and wheels is left out.

    Args:
        painting: of the frame. depth: (H, W) of `depth_of`.
        camera: of the other time, for frames of the same size.
        time_s: the other time, seconds of the scene.

    Returns:
        (H, W, 2) float32 pixels (x, y) from each pixel to its point in the other frame, and
        (H, W) float32 metres, the depth of the point there. The depth is NaN where a car has come
        round to the other end of the street.
    """
    here, scene = painting.camera, painting.scene
    x, y = _rays(painting)
    local = np.stack([x * depth, y * depth, depth], axis=-1)
    world = local @ here.rotation().astype(np.float32) + np.asarray(here.position, np.float32)
    shift = np.zeros((256, 3), np.float32)
    lost = np.zeros(256, bool)
    for thing in painting.things:
        moved = place_actor(thing.placed.actor, scene.layout, time_s)
        if moved.track_id == thing.placed.track_id:
            shift[thing.value] = moved.x - thing.placed.x, 0, moved.z - thing.placed.z
        else:
            lost[thing.value] = True
    world += shift[painting.ids]
    uv, depth_there = camera.project(world)
    height, width = painting.ids.shape
    grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    depth_there = np.where(lost[painting.ids], np.nan, depth_there)
    return (uv - grid).astype(np.float32), depth_there.astype(np.float32)
