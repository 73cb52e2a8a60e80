"""Tasks on the way out: each a module of the task's name with the module that is exported."""

from __future__ import annotations

import importlib
from types import ModuleType

TASKS: dict[str, str] = {"detection": "export.tasks.detection"}


def task_module(task: str) -> ModuleType:
    """The module of a task, imported on demand."""
    return importlib.import_module(TASKS[task])
