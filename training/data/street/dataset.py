"""`Street`: the procedural street as a data source, like a folder of annotated images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.data.joints import FACE_LANDMARKS
from training.data.sample import DataError, Sample
from training.data.street.frame import StreetFrame, check_labels, check_size, render_frame
from training.data.street.vocabulary import (
    CATEGORY_IDS,
    CLASSES,
    JOINT_FLIP_PAIRS,
    JOINT_NAMES,
    JOINT_SIGMAS,
    JOINT_SKELETON,
    PERSON,
)

SPLIT_SEEDS = {"train": 0, "val": 1_000_000, "test": 2_000_000}
SPLIT_LENGTHS = {"train": 20_000, "val": 500, "test": 2_000}
MAX_LENGTH = 1_000_000  # the distance between the seeds of two splits
MIN_FACE_PX = 8.0  # height at 768 pixels of width; smaller faces are to be ignored, as ...
MIN_FACE_VISIBILITY = 0.5  # ... are those of which less is seen
REFERENCE_W = 768
# Places of FACE_LANDMARKS in the order of the truth's, which begins with the left eye.
FACE_ORDER = (1, 0, 2, 4, 3)
MAX_INDEX = 60  # a sample shows its scene at a random frame before this one


class Street:
    """A split of the street; each sample is a scene of its own, rendered when it is asked for.

    Attributes:
        classes: names; ``Sample.classes`` indexes them.
        category_ids: ids of the classes in COCO files, 1..5.
        joints, skeleton, flip_pairs, sigmas: of the keypoints, COCO's; indices from 0.
        jointed: indices of the classes that have joints.
        has_masks: whether samples carry masks.
    """

    classes = CLASSES
    category_ids = CATEGORY_IDS
    joints = JOINT_NAMES
    skeleton = JOINT_SKELETON
    flip_pairs = JOINT_FLIP_PAIRS
    sigmas = JOINT_SIGMAS
    jointed: tuple[int, ...] = (PERSON,)

    def __init__(
        self,
        split: str,
        length: int | None = None,
        size_hw: tuple[int, int] = (432, 768),
        labels: Sequence[str] = ("boxes",),
    ) -> None:
        """Choose a split.

        Args:
            split: train, val or test; their scenes are disjoint.
            length: number of samples, 1 to 1,000,000; 20,000, 500 or 2,000 when None.
            size_hw: height and width of the images in pixels.
            labels: some of LABELS; masks and keypoints reach the samples, the rest `frame` only.
        """
        if split not in SPLIT_SEEDS:
            raise DataError(
                f"street has no split {split!r}; expected {', '.join(SPLIT_SEEDS)}. Name one."
            )
        if length is not None and not 1 <= length <= MAX_LENGTH:
            raise DataError(
                f"length of the street is {length}; expected 1 to {MAX_LENGTH}. Choose another."
            )
        self.split = split
        self.length = SPLIT_LENGTHS[split] if length is None else int(length)
        self.size_hw = check_size(size_hw)
        self.labels = tuple(sorted(check_labels(labels)))
        self.has_masks = "masks" in self.labels

    def __len__(self) -> int:
        return self.length

    def scene_of(self, index: int) -> tuple[int, int]:
        """The scene's seed and the frame's index in it, of a sample."""
        if not -self.length <= index < self.length:
            raise IndexError(f"sample {index} of {self.length}")
        seed = SPLIT_SEEDS[self.split] + index % self.length
        return seed, int(np.random.default_rng([5, seed]).integers(MAX_INDEX))

    def frame(self, index: int) -> StreetFrame:
        """The sample with every label that was asked for."""
        seed, time = self.scene_of(index)
        return render_frame(seed, time, size_hw=self.size_hw, labels=self.labels)

    def __getitem__(self, index: int) -> Sample:
        """Render a sample."""
        frame = self.frame(index)
        return Sample(
            image=frame.image,
            boxes_xyxy=frame.boxes_xyxy,
            classes=frame.classes,
            is_crowd=frame.is_crowd,
            image_id=index % self.length,
            file_name=f"{self.split}_{index % self.length:06d}.jpg",
            masks=frame.masks,
            keypoints_xyv=frame.keypoints_xyv,
        )


class StreetFaces(Street):
    """The street as a data set of faces with five landmarks, in the order of WIDER FACE.

    Attributes:
        classes: ("face",).
    """

    classes = ("face",)
    category_ids = (1,)
    joints = FACE_LANDMARKS.joints
    skeleton = FACE_LANDMARKS.skeleton
    flip_pairs = FACE_LANDMARKS.flip_pairs
    sigmas = FACE_LANDMARKS.sigmas
    jointed = (0,)

    def __getitem__(self, index: int) -> Sample:
        """Render a sample; faces too small or too hidden to be told are crowds."""
        frame = self.frame(index)
        assert frame.faces_xyxy is not None, "opened with landmarks"
        assert frame.face_visibility is not None
        assert frame.landmarks_xyv is not None
        rows = np.flatnonzero(frame.faces_xyxy.any(axis=1))
        boxes = frame.faces_xyxy[rows]
        least = MIN_FACE_PX * self.size_hw[1] / REFERENCE_W
        is_lost = frame.face_visibility[rows] < MIN_FACE_VISIBILITY
        return Sample(
            image=frame.image,
            boxes_xyxy=boxes,
            classes=np.zeros(len(rows), np.int64),
            is_crowd=is_lost | (boxes[:, 3] - boxes[:, 1] < least),
            image_id=index % self.length,
            file_name=f"{self.split}_{index % self.length:06d}.jpg",
            keypoints_xyv=frame.landmarks_xyv[rows][:, FACE_ORDER],
        )
