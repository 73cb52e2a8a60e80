"""Clips of the street: neighbouring frames with their true flow, calm, fast or both in turn."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import cv2
import numpy as np

from training.data.clips import KINDS, Flow
from training.data.sample import DataError, Sample
from training.data.street import truth
from training.data.street.camera import Camera
from training.data.street.dataset import MAX_INDEX, SPLIT_LENGTHS, SPLIT_SEEDS
from training.data.street.frame import StreetFrame, check_size, label_painting
from training.data.street.render import Painting, paint_scene
from training.data.street.scene import FRAMES_PER_S, Scene, build_scene
from training.data.street.vocabulary import CATEGORY_IDS, CLASSES

MAX_FRAMES = 1000  # of a clip: image ids are clip x 1000 + frame
FAST_SHARES = (0.007, 0.016)  # of the frame's width that a fast camera pans in a frame
FAST_M = 0.05  # metres that it moves sideways in a frame, at most
PART_FRAMES = (8, 16)  # of a still or a moving part of a mixed clip
SAME_DEPTH = 0.08  # relative: nearer to each other, two points of the backdrop are one


@dataclasses.dataclass(frozen=True, slots=True)
class Course:
    """How a clip runs, frame by frame, (N,) each: the scene's time and what the camera adds.

    Attributes:
        times_s: of the scene, rising or standing.
        turns: radians to the right, beside the scene's own yaw.
        shifts_m: metres to the right, beside the scene's own path.
    """

    times_s: np.ndarray
    turns: np.ndarray
    shifts_m: np.ndarray


def plan_course(seed: int, num_frames: int, kind: str) -> Course:
    """Draw how a clip of a scene runs.

    Args:
        seed: of the scene; fixes the course as well.
        num_frames: of the clip.
        kind: "plain" is the scene's own 25 frames a second; "fast" adds a steady pan, four to
            eight pixels a frame at a network input 512 wide, and a sideways drive; "mixed" stands
            still and moves fast in turn.
    """
    rng = np.random.default_rng([31, seed])
    start_s = rng.integers(MAX_INDEX) / FRAMES_PER_S
    if kind == "plain":
        is_moving, is_fast = np.ones(num_frames), np.zeros(num_frames)
    elif kind == "fast":
        is_moving = is_fast = np.ones(num_frames)
    else:
        lengths = rng.integers(*PART_FRAMES, num_frames, endpoint=True)
        parts = (np.arange(num_frames) + rng.integers(2)) % 2
        is_moving = np.repeat(parts, lengths)[:num_frames].astype(float)
        sides = np.repeat(1 - 2 * (np.arange(num_frames) // 2 % 2), lengths)[:num_frames]
        is_fast = is_moving * sides  # to and fro
    pan = rng.uniform(*FAST_SHARES) / build_scene(seed).focal * rng.choice([-1, 1])
    drive = rng.uniform(-FAST_M, FAST_M)
    travelled = np.cumsum(is_fast) - is_fast[0]
    travelled -= (travelled.max() + travelled.min()) / 2  # the middle looks where the scene does
    times_s = start_s + (np.cumsum(is_moving) - is_moving[0]) / FRAMES_PER_S
    return Course(times_s, pan * travelled, drive * travelled)


class StreetClip:
    """A clip of one scene; see `training.data.clips.Clip`. Frames are painted when asked for."""

    def __init__(
        self, seed: int, course: Course, size_hw: tuple[int, int], first_id: int, name: str
    ) -> None:
        self.scene: Scene = build_scene(seed)
        self.course, self.size_hw = course, size_hw
        self.first_id, self.name = first_id, name
        self._paint = lru_cache(maxsize=len(course.times_s))(self._paint_anew)

    def __len__(self) -> int:
        return len(self.course.times_s)

    def camera(self, index: int) -> Camera:
        """Of a frame."""
        course, layout = self.course, self.scene.layout
        camera = self.scene.camera(float(course.times_s[index]), self.size_hw)
        x, y, z = camera.position
        right = camera.rotation()[0] * course.shifts_m[index]
        x = float(np.clip(x + right[0], layout.left + 0.8, layout.right - 0.8))
        yaw = camera.yaw + float(course.turns[index])
        return dataclasses.replace(camera, position=(x, y, float(z + right[2])), yaw=yaw)

    def _paint_anew(self, index: int) -> tuple[Painting, StreetFrame]:
        time_s = float(self.course.times_s[index])
        camera = self.camera(index)
        painting = paint_scene(self.scene, camera, time_s, self.size_hw, grain=index)
        return painting, label_painting(painting, frozenset())

    def frame(self, index: int) -> Sample:
        painting, frame = self._paint(index)
        return Sample(
            image=frame.image,
            boxes_xyxy=frame.boxes_xyxy,
            classes=frame.classes,
            is_crowd=frame.is_crowd,
            image_id=self.first_id + index,
            file_name=f"{self.name}_{index:03d}.jpg",
            masks=truth.masks_of(painting, truth.find_objects(painting)),
        )

    def track_ids(self, index: int) -> np.ndarray:
        return self._paint(index)[1].track_ids

    def identities(self, index: int) -> np.ndarray:
        """(H, W) int32: the track id of what each pixel shows, props as well; 0 is backdrop."""
        painting = self._paint(index)[0]
        table = np.zeros(256, np.int32)
        for thing in painting.things:
            table[thing.value] = thing.placed.track_id
        return table[painting.ids]

    def flow(self, later: int, earlier: int) -> Flow:
        painting, before = self._paint(later)[0], self._paint(earlier)[0]
        depth = truth.depth_of(painting, truth.backdrop_of(painting))
        camera, time_s = self.camera(earlier), float(self.course.times_s[earlier])
        offsets, depth_there = truth.flow_towards(painting, depth, camera, time_s)
        height, width = self.size_hw
        columns = np.floor(offsets[..., 0] + np.arange(width) + 0.5)
        rows = np.floor(offsets[..., 1] + np.arange(height)[:, None] + 0.5)
        is_seen = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        is_seen &= np.isfinite(depth_there)
        maps = columns.astype(np.float32), rows.astype(np.float32)
        found = cv2.remap(self.identities(earlier).astype(np.float32), *maps, cv2.INTER_NEAREST)
        mine = self.identities(later)
        is_seen &= found == mine
        depth_before = truth.depth_of(before, truth.backdrop_of(before))
        behind = cv2.remap(depth_before, *maps, cv2.INTER_NEAREST)
        is_same = np.abs(behind - depth_there) < SAME_DEPTH * depth_there
        return Flow(offsets, is_seen & (is_same | (mine > 0)))


class StreetClips:
    """A split of the street's clips, each of a scene of its own; see `ClipSource`.

    Args:
        split: train, val or test; scenes as of `Street`'s splits.
        length: number of clips; as many as `Street` has samples when None.
        kind: one of KINDS; see `plan_course`. "plain+fast" takes turns.
        num_frames: of each clip.
        size_hw: height and width of the frames, pixels.
    """

    classes = CLASSES
    category_ids = CATEGORY_IDS
    has_flow = True

    def __init__(
        self,
        split: str,
        length: int | None = None,
        *,
        kind: str = "plain",
        num_frames: int = 12,
        size_hw: tuple[int, int] = (432, 768),
    ) -> None:
        if split not in SPLIT_SEEDS:
            raise DataError(
                f"street has no split {split!r}; expected {', '.join(SPLIT_SEEDS)}. Name one."
            )
        self.kinds = tuple(kind.split("+"))
        if not set(self.kinds) <= set(KINDS):
            raise DataError(
                f"street has no clips of kind {kind!r}; expected {', '.join(KINDS)}. Name one."
            )
        if not 2 <= num_frames <= MAX_FRAMES:
            raise DataError(
                f"clips of {num_frames} frames; expected 2 to {MAX_FRAMES}. Choose another length."
            )
        self.length = SPLIT_LENGTHS[split] if length is None else int(length)
        self.name, self.split = f"street ({split}, {kind} clips)", split
        self.num_frames, self.size_hw = num_frames, check_size(size_hw)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> StreetClip:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        seed = SPLIT_SEEDS[self.split] + index
        course = plan_course(seed, self.num_frames, self.kinds[index % len(self.kinds)])
        name = f"{self.split}_{index:06d}"
        return StreetClip(seed, course, self.size_hw, index * MAX_FRAMES, name)
