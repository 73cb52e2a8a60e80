"""Data sets of image files: what a reader (COCO, VOC, YOLO) hands over, cleaned, counted, read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from training.data.outlines import rasterise
from training.data.sample import DataError, Sample, Source

logger = logging.getLogger("kestrel.data")

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
)
MIN_SIDE_PX = 0.1  # a box thinner than this has zero size
MAX_SIDE_PX = 1 << 20  # OpenCV reads no larger image
CLIP_TOLERANCE_PX = 1.0  # rounding of annotation tools; more than this is counted


class Defects:
    """Counts what is wrong with a data set, by kind, and keeps the first three names of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self.counts)

    def add(self, kind: str, name: str, num: int = 1) -> None:
        if num <= 0:
            return
        self.counts[kind] = self.counts.get(kind, 0) + num
        names = self._names.setdefault(kind, [])
        if len(names) < 3 and name not in names:
            names.append(name)

    def __str__(self) -> str:
        parts = []
        for kind, num in sorted(self.counts.items()):
            names = self._names[kind]
            more = ", ..." if num > len(names) else ""
            parts.append(f"{num} x {kind} ({', '.join(names)}{more})")
        return "; ".join(parts)


@dataclass(slots=True)
class Record:
    """One image file and its labels, before the image is read.

    Attributes:
        path: of the image file.
        file_name: as the data set names it.
        image_id: unique within the source.
        boxes: (N, 4) float64 as (x1, y1, x2, y2): pixels, or fractions if ``is_normalised``.
        classes: (N,) int64.
        is_crowd: (N,) bool.
        image_wh: as annotated; None where the annotation does not say.
        is_normalised: boxes, outlines and keypoints are fractions of the image's sides.
        outlines: N outlines, each a list of (P, 2) polygons, an RLE dict, or None.
        keypoints: (N, J, 3) float64, or None.
        video: the clip that it is a frame of, and its place there; None of a lone image.
        track_ids: (N,) int64 of a frame of a clip: the same object's in all of its frames; None
            where the annotations do not say.
    """

    path: Path
    file_name: str
    image_id: int
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    is_crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    image_wh: tuple[int, int] | None = None
    is_normalised: bool = False
    outlines: list[list[np.ndarray] | dict | None] | None = None
    keypoints: np.ndarray | None = None
    video: tuple[int, int] | None = None
    track_ids: np.ndarray | None = None

    def keep(self, rows: np.ndarray) -> None:
        """Drop every object but these (an index array or a mask of N)."""
        rows = np.arange(len(self.boxes))[rows]
        self.boxes, self.classes = self.boxes[rows], self.classes[rows]
        self.is_crowd = self.is_crowd[rows]
        if self.outlines is not None:
            self.outlines = [self.outlines[row] for row in rows]
        if self.keypoints is not None:
            self.keypoints = self.keypoints[rows]
        if self.track_ids is not None:
            self.track_ids = self.track_ids[rows]


def known_size(width: object, height: object) -> tuple[int, int] | None:
    """A size as annotations give it, (width, height) in pixels; None where it cannot be one."""
    whole = _whole_side(width), _whole_side(height)
    return (whole[0], whole[1]) if whole[0] and whole[1] else None


def _whole_side(side: object) -> int:
    is_side = isinstance(side, int | float) and 1 <= side <= MAX_SIDE_PX and side == int(side)
    return int(side) if is_side else 0  # type: ignore[call-overload]


def clean_record(record: Record, defects: Defects) -> None:
    """Drop boxes that cannot be used, clip the others to the image, count both."""
    name, boxes = record.file_name, record.boxes
    is_finite = np.isfinite(boxes).all(axis=1)
    if record.keypoints is not None:
        is_finite &= np.isfinite(record.keypoints).all(axis=(1, 2))
    defects.add("non-finite number", name, int((~is_finite).sum()))
    record.keep(is_finite)
    width, height = (1, 1) if record.is_normalised else (record.image_wh or (np.inf, np.inf))
    unit_px = 1 / 640 if record.is_normalised else 1.0  # a pixel, where the size is not known
    boxes = record.boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    has_size = (sides > MIN_SIDE_PX * unit_px).all(axis=1)
    defects.add("zero-size or inverted box", name, int((~has_size).sum()))
    clipped = boxes.clip((0, 0, 0, 0), (width, height, width, height))
    is_inside = (clipped[:, 2:] - clipped[:, :2] > MIN_SIDE_PX * unit_px).all(axis=1)
    defects.add("box outside the image", name, int((has_size & ~is_inside).sum()))
    moved = np.abs(clipped - boxes).max(axis=1, initial=0) > CLIP_TOLERANCE_PX * unit_px
    defects.add("box partly outside the image", name, int((has_size & is_inside & moved).sum()))
    record.boxes = clipped
    record.keep(has_size & is_inside)


class RecordSource:
    """A split of a data set of image files; see ``training.data.sample.Source``.

    Attributes:
        records: what the annotations say, cleaned.
        defects: what was wrong with them, by kind; grows when images turn out unreadable.
        has_masks: every sample carries masks; set to False to skip the work of making them.
        joints: names of the J keypoints, empty where the data set has none.
        skeleton: pairs of joint indices, 0-based.
        jointed: indices of the classes that have joints; empty: all have, where there are any.
        flip_pairs: joints that change names in a mirror; empty where the data set does not say.
    """

    def __init__(
        self,
        name: str,
        records: Sequence[Record],
        categories: Mapping[int, str],
        defects: Defects,
        *,
        joints: tuple[str, ...] = (),
        skeleton: tuple[tuple[int, int], ...] = (),
        jointed: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.category_ids = tuple(sorted(categories))
        self.classes = tuple(categories[category] for category in self.category_ids)
        self.joints, self.skeleton, self.jointed = joints, skeleton, jointed
        self.flip_pairs: tuple[tuple[int, int], ...] = ()
        self.defects = defects
        self.records = _existing(records, defects)
        for record in self.records:
            clean_record(record, defects)
        self.has_masks = any(
            outline is not None for record in self.records for outline in record.outlines or ()
        )
        self._broken: set[int] = set()
        if self.defects:
            logger.warning("%s: survived %s", name, self.defects)
        if not self.records:
            raise DataError(
                f"{name}: no usable image of {len(records)} named by the annotations "
                f"({defects or 'the list is empty'}). Check the image folder."
            )
        if not any(len(record.boxes) for record in self.records):
            raise DataError(
                f"{name}: {len(self.records)} images but not one usable box "
                f"({defects or 'no annotations'}). Check the annotations."
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Read one sample; an unreadable image is counted and replaced by the next readable one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        for step in range(len(self)):
            place = (index + step) % len(self)
            if place in self._broken:
                continue
            record = self.records[place]
            image = read_image(record.path, record.image_wh)
            if image is not None:
                return to_sample(record, image, has_masks=self.has_masks)
            self._broken.add(place)
            self.defects.add("unreadable image", record.file_name)
            if len(self._broken) == 1:
                logger.warning(
                    "%s: unreadable image %s; such images are replaced by the next readable one",
                    self.name,
                    record.file_name,
                )
        raise DataError(f"{self.name}: none of {len(self)} images can be read. Check the files.")


def _existing(records: Sequence[Record], defects: Defects) -> list[Record]:
    """The records whose image file is there and not empty; one directory listing per folder."""
    listings: dict[Path, dict[str, Path]] = {}
    found = []
    for record in records:
        folder = record.path.parent
        if folder not in listings:
            files = folder.iterdir() if folder.is_dir() else ()
            listings[folder] = {path.name: path for path in files}
        if record.path.name not in listings[folder]:
            defects.add("missing image", record.file_name)
        elif not record.path.is_file() or record.path.stat().st_size == 0:
            defects.add("unreadable image", record.file_name)
        else:
            found.append(record)
    return found


def read_image(path: Path, image_wh: tuple[int, int] | None = None) -> np.ndarray | None:
    """Read one image file.

    Args:
        path: of the file.
        image_wh: the size that the annotations were made for. Where the file's EXIF orientation
            turns the image away from it, the orientation is ignored.

    Returns:
        (H, W, 3) uint8, BGR; None where the file cannot be read.
    """
    image = _decode(path, cv2.IMREAD_COLOR)
    if image is not None and image_wh is not None:
        height, width = image.shape[:2]
        if (width, height) != image_wh and (height, width) == image_wh:
            return _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return image


def _decode(path: Path, flags: int) -> np.ndarray | None:
    try:
        image = cv2.imread(str(path), flags)
    except (cv2.error, OSError):
        return None
    return image if image is not None and image.size else None


def to_sample(record: Record, image: np.ndarray, *, has_masks: bool) -> Sample:
    """Join a record and its image: pixels of the image, clipped to what the image really is."""
    height, width = image.shape[:2]
    unit = np.array([width, height], np.float64) if record.is_normalised else np.ones(2)
    boxes = (record.boxes * np.tile(unit, 2)).clip(0, (width, height, width, height))
    rows = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] > MIN_SIDE_PX).all(axis=1))
    masks = keypoints = None
    if has_masks:
        outlines = record.outlines or [None] * len(boxes)
        masks = np.zeros((len(rows), height, width), np.uint8)
        for mask, row in zip(masks, rows, strict=True):
            rasterise(outlines[row], boxes[row], unit, out=mask)
    if record.keypoints is not None:
        keypoints = record.keypoints[rows].copy()
        keypoints[..., :2] *= unit
        keypoints[keypoints[..., 2] <= 0] = 0
        keypoints = keypoints.astype(np.float32)
    return Sample(
        image=image,
        boxes_xyxy=boxes[rows].astype(np.float32),
        classes=record.classes[rows],
        is_crowd=record.is_crowd[rows],
        image_id=record.image_id,
        file_name=record.file_name,
        masks=masks,
        keypoints_xyv=keypoints,
    )


def each_once(source: Source) -> Iterator[Sample]:
    """Go through a source in order, each image once: what stands in for a broken image is left out.

    For scoring, where a repeated image would count twice.
    """
    seen: set[int] = set()
    for index in range(len(source)):
        sample = source[index]
        if sample.image_id not in seen:
            seen.add(sample.image_id)
            yield sample


def split_by_hash(names: Sequence[str], split: str, where: str) -> list[str]:
    """Take one part of a data set that has no splits: 80 % train, 10 % val, 10 % test.

    A name's part depends on that name alone, so a growing data set never moves an image; only a
    set so small that a part would be empty is cut by rank of the hash instead.

    Args:
        names: unique file names.
        split: "train", "val", "test", or "all" for everything.
        where: the data set, for the log line.

    Returns:
        The names of that part, in the order given.
    """
    if split == "all":
        return list(names)
    if split not in SPLIT_NAMES:
        raise unknown_split(where, split, [*SPLIT_NAMES, "all"])
    digests = {name: hashlib.sha256(name.encode()).digest() for name in names}
    percents = {name: int.from_bytes(digest[:8], "big") % 100 for name, digest in digests.items()}
    parts = {name: _part(percent) for name, percent in percents.items()}
    if set(parts.values()) != set(SPLIT_NAMES) and len(names) >= 3:
        ranked = sorted(names, key=digests.__getitem__)
        num = max(1, round(len(names) / 10))
        parts = dict.fromkeys(ranked, "train")
        parts |= dict.fromkeys(ranked[:num], "val") | dict.fromkeys(ranked[num : 2 * num], "test")
    chosen = [name for name in names if parts[name] == split]
    logger.info(
        "%s has no splits: %d of %d images are its %s part (80/10/10 by hash of the file name)",
        where,
        len(chosen),
        len(names),
        split,
    )
    return chosen


def _part(percent: int) -> str:
    return "train" if percent < 80 else "val" if percent < 90 else "test"


def unknown_split(where: str, split: str, found: Sequence[str]) -> DataError:
    """The error for a split that a data set does not have."""
    return DataError(
        f"{where} has no split {split!r}; it has {', '.join(sorted(found)) or 'none'}. "
        "Name one of these, or add the missing list."
    )
