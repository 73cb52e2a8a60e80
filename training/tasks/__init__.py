"""Tasks: each a module of the task's name that collates, evaluates and names its labels."""

from __future__ import annotations

import importlib
from types import ModuleType

TASKS: dict[str, str] = {
    "detection": "training.tasks.detection",
    "instance": "training.tasks.instance",
}


def task_module(task: str) -> ModuleType:
    """The module of a task, imported on demand."""
    return importlib.import_module(TASKS[task])
