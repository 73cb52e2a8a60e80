"""Tasks: each a module of the task's name that collates, evaluates and names its labels."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from training.data.joints import FACE_LANDMARKS

if TYPE_CHECKING:
    from training.data.sample import Source
    from training.models.base import Spec

TASKS: dict[str, str] = {
    "detection": "training.tasks.detection",
    "instance": "training.tasks.instance",
    "keypoints": "training.tasks.keypoints",
    "pose_crop": "training.tasks.pose_crop",
}


def task_module(task: str) -> ModuleType:
    """The module of a task, imported on demand."""
    return importlib.import_module(TASKS[task])


def labels_of(task: str, joints: Sequence[str] = ()) -> tuple[str, ...]:
    """What samples of a task have to carry beside boxes; `joints` are the names, where it has any.

    Where a data set has both, the joints say whether people or their faces are meant.
    """
    if tuple(joints) == FACE_LANDMARKS.joints:
        return ("landmarks",)
    labels: tuple[str, ...] = task_module(task).LABELS
    return labels


def main_score_of(task: str, joints: Sequence[str] = ()) -> str:
    """The score by which the best weights are chosen; of faces that of their boxes, as is usual."""
    if tuple(joints) == FACE_LANDMARKS.joints:
        return "AP50"
    score: str = task_module(task).MAIN_SCORE
    return score


def open_source(
    task: str, spec: Spec, data: str, split: str, *, is_training: bool = False
) -> Source:
    """Open one split of a data set as a task takes it.

    Args:
        task: its name.
        spec: of the model; of tasks with joints their names, of task pose_crop the crop, too.
        data, split: as of `training.data.open_data`.
        is_training: samples will be augmented; a task of crops leaves room around them.

    Raises:
        DataError: no such data, or it lacks what the task needs.
    """
    from training.data import open_data

    source = open_data(data, split, labels_of(task, getattr(spec, "joints", ())))
    prepare = getattr(task_module(task), "prepare_source", None)
    return source if prepare is None else prepare(source, spec, is_training=is_training)
