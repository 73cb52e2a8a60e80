"""Tasks on the way out: each a module of the task's name.

It has `EndToEnd`, the module that is exported (`export/graph/temporal.py` makes two of its parts
`model`, `input` and `answer`), `describe_outputs(model)`, the fields of the manifest that say the
sizes of its outputs, and `score(ground_truth, results)`, which scores COCO results as training
does.
"""

from __future__ import annotations

import importlib
from types import ModuleType

TASKS: dict[str, str] = {
    "detection": "export.tasks.detection",
    "instance": "export.tasks.instance",
    "keypoints": "export.tasks.keypoints",
    "pose_crop": "export.tasks.pose_crop",
}


def task_module(task: str) -> ModuleType:
    """The module of a task, imported on demand."""
    return importlib.import_module(TASKS[task])
