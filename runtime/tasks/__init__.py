"""The tasks that the runtime knows: one module each, imported when a bundle of it is loaded.

A task's module has
* `thresholds(manifest, batch, score_threshold, iou_threshold) -> {input name: array}`,
* `finish(outputs, letterboxes, manifest) -> [one result per letterbox]`,
* `draw(frame_bgr, result) -> frame_bgr`, in place.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from runtime.contract.errors import BundleError
from runtime.contract.manifest import Manifest
from runtime.preprocess import Frame, Letterbox
from runtime.results import Detections
from runtime.sessions.base import Array

ScoreThreshold: TypeAlias = (
    "float | Sequence[float] | Mapping[str, float] | NDArray[np.floating] | None"
)
IouThreshold: TypeAlias = "float | Sequence[float] | NDArray[np.floating] | None"

MODULES = {
    "detection": "runtime.tasks.detection",
    "instance": "runtime.tasks.instance",
    "keypoints": "runtime.tasks.keypoints",
    "pose_crop": "runtime.tasks.pose_crop",
}


class Task(Protocol):
    """What a task's module offers."""

    def thresholds(
        self,
        manifest: Manifest,
        batch: int,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
    ) -> dict[str, Array]:
        """The graph's inputs beside the image."""
        ...

    def finish(
        self, outputs: Mapping[str, Array], letterboxes: Sequence[Letterbox], manifest: Manifest
    ) -> list[Detections]:
        """The graph's outputs in pixels of the source frames."""
        ...

    def draw(self, frame_bgr: Frame, result: Detections) -> Frame:
        """Draw a result into its frame."""
        ...


def load_task(name: str) -> Task:
    """The module of a task.

    Raises:
        BundleError: a task that this runtime does not know yet.
    """
    if name not in MODULES:
        raise BundleError(
            f"the bundle's task is {name!r}; this runtime runs {', '.join(MODULES)}. "
            "Upgrade the runtime."
        )
    return cast(Task, importlib.import_module(MODULES[name]))
