"""A source as tasks with joints see it: the classes that have joints, and what the joints are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.data.joints import JointSet
from training.data.sample import DataError, Sample, Source


def joints_of(source: Source) -> JointSet:
    """The joints of a source; pairs and constants that it does not give go by the names.

    Raises:
        DataError: it has no joints.
    """
    names = tuple(getattr(source, "joints", ()))
    if not names:
        raise DataError(
            f"{getattr(source, 'name', type(source).__name__)} has no joints; expected samples "
            "with keypoints. Give such a data set, or street."
        )
    known = JointSet.of_names(names, getattr(source, "skeleton", ()))
    return JointSet(
        names,
        known.skeleton,
        tuple(getattr(source, "flip_pairs", ())) or known.flip_pairs,
        tuple(getattr(source, "sigmas", ())) or known.sigmas,
    )


class Jointed:
    """A source without the classes that have no joints: of a street, its people alone.

    Attributes:
        classes, category_ids: those that have joints, in the source's order.
        joints, skeleton, flip_pairs, sigmas: see `JointSet`.
        kept: the kept classes' indices in the source.

    Args:
        source: with joints; its `jointed` are the indices of the classes that have them, all
            where it does not say.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        found = joints_of(source)
        self.joints, self.skeleton = found.joints, found.skeleton
        self.flip_pairs, self.sigmas = found.flip_pairs, found.sigmas
        self.kept = tuple(getattr(source, "jointed", ())) or tuple(range(len(source.classes)))
        self.classes = tuple(source.classes[place] for place in self.kept)
        self.category_ids = tuple(source.category_ids[place] for place in self.kept)
        self._is_whole = len(self.kept) == len(source.classes)
        self._new = np.full(len(source.classes), -1, np.int64)
        self._new[list(self.kept)] = np.arange(len(self.kept))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """A sample with the objects of the kept classes alone."""
        sample = self.source[index]
        return sample if self._is_whole else self._narrowed(sample)

    def _narrowed(self, sample: Sample) -> Sample:
        classes = self._new[sample.classes]
        rows = classes >= 0
        masks, keypoints = sample.masks, sample.keypoints_xyv
        return replace(
            sample,
            boxes_xyxy=sample.boxes_xyxy[rows],
            classes=classes[rows],
            is_crowd=sample.is_crowd[rows],
            masks=None if masks is None else masks[rows],
            keypoints_xyv=None if keypoints is None else keypoints[rows],
        )
