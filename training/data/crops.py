"""Single people as samples, cut out of the frames of another source: for top-down pose networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from training.data.augment import Augment
from training.data.crop_geometry import augmented_crop, crop_affine, cropped
from training.data.jointed import Jointed
from training.data.sample import DataError, Sample

MIN_SIDE_PX = 48.0  # the longer side of a box; in smaller ones joints lie on top of each other
SLOTS = 4  # people of one rendered frame that become samples
FRAMES_KEPT = 8
MOST_OBJECTS = 1000  # of one frame: image ids of crops are made with it


def is_usable(sample: Sample) -> np.ndarray:
    """(N,) bool: no crowd, large enough, with a labelled joint."""
    assert sample.keypoints_xyv is not None
    sides = sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]
    is_labelled = (sample.keypoints_xyv[..., 2] > 0).any(axis=1)
    return ~sample.is_crowd & (sides.max(axis=1, initial=0) >= MIN_SIDE_PX) & is_labelled


class PersonCrops:
    """A source whose samples are single people, cut out of the frames of another.

    Of annotated files every usable person is a sample. What is rendered is not known before it
    is: there each frame gives SLOTS samples, the same person again where it has fewer, the next
    frame's where it has none. Image ids tell repeated people, so `each_once` takes each once.

    Attributes:
        classes, category_ids, joints, skeleton, flip_pairs, sigmas: of the source.

    Args:
        source: with joints.
        size_hw: (height, width) of the network input, pixels.
        margin: see `crop_affine`.
        context: None gives crops of network size; a number gives a piece of the frame in its own
            pixels, that many times as large as the crop, for augmentation to cut from.
    """

    def __init__(
        self,
        source: Jointed,
        size_hw: tuple[int, int],
        margin: float,
        *,
        context: float | None = None,
    ) -> None:
        self.source, self.size_hw, self.margin, self.context = source, size_hw, margin, context
        self.classes, self.category_ids = source.classes, source.category_ids
        self.joints, self.skeleton = source.joints, source.skeleton
        self.flip_pairs, self.sigmas = source.flip_pairs, source.sigmas
        self._frames: OrderedDict[int, tuple[Sample, np.ndarray]] = OrderedDict()
        self._places = _places_of(source)
        if not len(self):
            raise DataError(
                f"{getattr(source.source, 'name', 'the data set')} has no person of "
                f"{MIN_SIDE_PX:g} px and more with labelled joints; expected at least one. Give "
                "other data."
            )

    def __len__(self) -> int:
        return len(self.source) * SLOTS if self._places is None else len(self._places)

    def __getitem__(self, index: int) -> Sample:
        """One person."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        frame, slot = divmod(index, SLOTS) if self._places is None else self._places[index]
        for step in range(len(self.source)):
            sample, rows = self._load((frame + step) % len(self.source))
            if len(rows):
                return self._cut(sample, int(rows[slot % len(rows)]))
        raise DataError(
            f"none of {len(self.source)} frames has a person of {MIN_SIDE_PX:g} px and more with "
            "labelled joints; expected some. Give other data."
        )

    def augmented(
        self,
        sample: Sample,
        draw_other: Callable[[], Sample] | None,  # noqa: ARG002 - crops make no mosaic
        size_hw: tuple[int, int],
        augment: Augment,
        rng: np.random.Generator,
    ) -> Sample:
        """A sample as a crop of network size; in place of `training.data.augment.augmented`."""
        return augmented_crop(sample, size_hw, self.margin, augment, rng)

    def _load(self, frame: int) -> tuple[Sample, np.ndarray]:
        """A frame and the rows of its usable people; the last few are kept."""
        if frame not in self._frames:
            sample, rng = self.source[frame], np.random.default_rng([7, frame])
            # In an order of chance: of a crowded frame not always the farthest fill the slots.
            self._frames[frame] = sample, rng.permutation(np.flatnonzero(is_usable(sample)))
            if len(self._frames) > FRAMES_KEPT:
                self._frames.popitem(last=False)
        return self._frames[frame]

    def _cut(self, sample: Sample, row: int) -> Sample:
        assert row < MOST_OBJECTS, row
        box = sample.boxes_xyxy[row]
        matrix, size_hw = crop_affine(box, self.size_hw, self.margin), self.size_hw
        if self.context is not None:
            pixel = self.context / matrix[0, 0]
            height, width = (int(side * pixel) + 1 for side in self.size_hw)
            left = int((box[0] + box[2]) / 2) - width // 2
            top = int((box[1] + box[3]) / 2) - height // 2
            matrix, size_hw = np.array([[1, 0, -left], [0, 1, -top]], float), (height, width)
        crop = cropped(sample, row, matrix, size_hw)
        return replace(crop, image_id=sample.image_id * MOST_OBJECTS + row)


def _places_of(source: Jointed) -> list[tuple[int, int]] | None:
    """(frame, place among its usable people) of every person; None where nothing is annotated.

    What the annotations say of sizes decides, before an image is read.
    """
    records = getattr(source.source, "records", None)
    if records is None or any(record.is_normalised for record in records):
        return None
    kept = np.asarray(source.kept)
    places = []
    for frame, record in enumerate(records):
        sides = record.boxes[:, 2:] - record.boxes[:, :2]
        fits = ~record.is_crowd & np.isin(record.classes, kept)
        fits &= sides.max(axis=1, initial=0) >= MIN_SIDE_PX
        if record.keypoints is not None:
            fits &= (record.keypoints[..., 2] > 0).any(axis=1)
        places += [(frame, slot) for slot in range(int(fits.sum()))]
    return places
