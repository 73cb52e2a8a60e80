"""Every task that a model has stands in all three packages and in the contract."""

from __future__ import annotations

import importlib

import pytest

from runtime.contract.outputs import INPUTS, OUTPUTS
from training.models import REGISTRY, model_class

TASKS = sorted({model_class(name).task for name in REGISTRY})
PARTS = {
    "training": ("collate", "evaluate"),
    "export": ("EndToEnd", "describe_outputs", "score"),
    "runtime": ("thresholds", "finish", "draw"),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("package", PARTS)
def test_task_has_a_module_with_its_parts(task: str, package: str):
    loader = importlib.import_module(f"{package}.tasks")
    find = loader.load_task if package == "runtime" else loader.task_module
    module = find(task)
    assert module.__name__ == f"{package}.tasks.{task}"
    assert [part for part in PARTS[package] if not callable(getattr(module, part, None))] == []


@pytest.mark.parametrize("task", TASKS)
def test_task_has_rows_in_the_contract(task: str):
    assert INPUTS[task][0].name == "image"
    assert len(OUTPUTS[task]) >= 1


def test_tasks_of_training_are_those_of_export():
    from export.tasks import TASKS as EXPORTED
    from training.tasks import TASKS as TRAINED

    assert set(EXPORTED) == set(TRAINED) == set(TASKS)
