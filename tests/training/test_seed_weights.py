from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training import seed_weights
from training.data.coco_names import CATEGORY_IDS, CLASSES
from training.loop.checkpoint import load_release
from training.models import model_variant
from training.models.base import Model
from training.tasks import task_module

SCRIPT = Path(seed_weights.__file__)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return seed_weights.street_frames(model_variant("retinanet").spec)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seeded") / "small.safetensors"
    command = [sys.executable, str(SCRIPT), "--model", "retinanet", "--out", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "for speed only, detects nothing" in done.stdout
    return path


@pytest.fixture(scope="module")
def model(seeded: Path) -> Model:
    return load_release(seeded)[0]


def test_every_result_row_is_filled_at_the_checkpoints_own_threshold(model, frames):
    for row in range(len(frames)):
        found = task_module(model.task).detect(
            model, frames[row : row + 1], score_threshold=model.spec.score_threshold
        )[0]
        assert len(found.scores) == model.spec.max_detections


def test_activations_have_the_spread_of_a_trained_network(model, frames):
    spreads = {}

    def note(name):
        def hook(conv, inputs, output):
            spreads.setdefault(name, float(output.std()))

        return hook

    hooks = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model(model.prepare(frames[:2]))
    for hook in hooks:
        hook.remove()
    assert len(spreads) > 20
    assert all(0.2 < spread < 5 for spread in spreads.values()), spreads


def test_same_seed_gives_the_same_weights_and_another_seed_others(model, frames, monkeypatch):
    monkeypatch.setattr(seed_weights, "street_frames", lambda spec: frames)
    again = seed_weights.seed_weights("retinanet", None, 0).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    other = seed_weights.seed_weights("retinanet", None, 1).state_dict()
    assert not all(torch.equal(again[name], value) for name, value in other.items())


def test_model_with_masks_is_seeded_too(monkeypatch):
    monkeypatch.setattr(seed_weights, "NUM_FRAMES", 2)
    model = seed_weights.seed_weights("yolact", None, 0)
    frames = seed_weights.street_frames(model.spec)
    for found in task_module(model.task).detect(
        model, frames, score_threshold=model.spec.score_threshold
    ):
        assert len(found.masks) == model.spec.max_detections
        assert len(set(found.boxes.scores.tolist())) > model.spec.max_detections // 2


def test_file_says_that_it_detects_nothing(seeded):
    _, header = load_release(seeded)
    assert "detect nothing" in header["training"]["data"]
    assert header["scores"] == {}
    assert tuple(header["spec"]["classes"]) == CLASSES


def test_coco_has_80_classes_with_the_ids_of_its_files():
    assert len(set(CLASSES)) == len(set(CATEGORY_IDS)) == 80
    by_name = dict(zip(CLASSES, CATEGORY_IDS, strict=True))
    known = {"person": 1, "stop sign": 13, "backpack": 27, "tv": 72, "book": 84, "toothbrush": 90}
    assert {name: by_name[name] for name in known} == known
    assert (np.diff(CATEGORY_IDS) > 0).all()


def test_other_file_formats_are_refused(tmp_path):
    command = [sys.executable, str(SCRIPT), "--model", "retinanet", "--out", tmp_path / "w.pth"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is no .safetensors file" in done.stderr
