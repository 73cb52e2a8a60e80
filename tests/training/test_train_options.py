"""What a run makes of its options, its data and its machine."""

from __future__ import annotations

import argparse
import copy
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_models import CATEGORY_IDS, CLASSES, tiny_model

import training.loop.precision
from training import train
from training.data import open_data
from training.errors import TrainingError
from training.loop.precision import choose_precision
from training.loop.trainer import RunOptions, Trainer, find_module, parameter_groups
from training.models.base import Recipe


def test_only_matrices_decay():
    groups = parameter_groups(tiny_model(), 0.05)
    assert all(p.ndim >= 2 for p in groups[0]["params"])
    assert all(p.ndim < 2 for p in groups[1]["params"])
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]


@pytest.mark.parametrize(
    ("asked", "flags", "expected"),
    [
        ("fp32", "amx_bf16", "no"),
        ("bf16", "avx2", "bf16"),
        ("auto", "flags : avx2 avx512_bf16", "bf16"),
        ("auto", "flags : amx_bf16 amx_int8", "bf16"),
        ("auto", "flags : avx2 avx512f", "no"),
    ],
)
def test_precision_on_a_cpu_is_what_it_computes_in(asked, flags, expected, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text(flags)
    monkeypatch.setattr(training.loop.precision, "Path", lambda _: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_precision(asked) == expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_precision_on_a_gpu_is_half(has_bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    assert choose_precision("auto") == expected


@pytest.mark.parametrize(
    ("images_hw", "expected"),
    [
        ([(720, 1280)] * 3, (288, 512)),
        ([(480, 640)], (320, 448)),
        ([(1280, 720)], (512, 288)),
        ([(100, 100), (720, 1280), (700, 1250)], (288, 512)),
        ([(10, 4000)], (64, 7680)),
    ],
    ids=["16:9", "4:3", "upright", "median", "panorama"],
)
def test_fitted_size_keeps_the_pixels_and_takes_the_images_aspect(images_hw, expected):
    height, width = train.fitted_size((288, 512), images_hw)
    assert (height, width) == expected
    assert height % 32 == width % 32 == 0


def namespace(**changes: object) -> argparse.Namespace:
    options = dict.fromkeys(("batch", "epochs", "steps", "lr"))
    return argparse.Namespace(**options | {"workers": 0, "save_every": 1} | changes)


@pytest.mark.parametrize(
    ("options", "num_samples", "steps"),
    [
        ({"steps": 50}, 100, 50),
        ({"epochs": 2.0, "batch": 10}, 100, 20),
        ({"epochs": 0.001}, 100, 1),
        ({}, 100, 2000),
        ({}, 1_000_000, 9000),
    ],
    ids=["steps", "epochs", "at-least-one", "small-data", "large-data"],
)
def test_length_of_a_run_is_what_was_asked_or_fits_the_data(options, num_samples, steps):
    recipe = train.adjusted_recipe(Recipe(), namespace(**options), num_samples)
    assert recipe.steps == steps
    assert recipe.warm_up <= max(1, steps // 10)
    assert recipe.validate_every <= steps


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("epochs", math.inf), ("lr", math.nan), ("batch", -1), ("workers", -1)],
)
def test_number_that_can_be_none_is_refused(name, value):
    with pytest.raises(TrainingError, match=f"--{name}"):
        train.check_numbers(namespace(**{name: value}))


@pytest.mark.parametrize(
    ("classes", "ids", "says"),
    [
        (("pink", "green"), (3, 7), "blue"),
        (("green", "pink", "blue"), (3, 7, 9), "green, pink|pink, green"),
        (("green", "pink", "blue"), (7, 3, 9), "order"),
    ],
    ids=["one-less", "swapped", "other-order"],
)
def test_splits_of_different_classes_are_refused(classes, ids, says):
    ours = SimpleNamespace(classes=CLASSES, category_ids=CATEGORY_IDS)
    theirs = SimpleNamespace(classes=classes, category_ids=ids)
    with pytest.raises(TrainingError, match=says):
        train.check_same_classes(ours, theirs)


def test_frozen_modules_keep_their_weights_and_statistics(discs, tmp_path):
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    recipe = Recipe(steps=2, batch=2, warm_up=1, validate_every=2, lr=1e-2)
    frozen = ("backbone.conv1", "backbone.bn1")
    options = RunOptions(name="retinanet", out=tmp_path, precision="no", workers=0, frozen=frozen)
    assert Trainer(model, recipe, open_data(str(discs), "train"), None, options, {}).run()
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert [key for key in moved if key.startswith(frozen)] == []
    assert {"backbone.layer1.0.conv1.weight", "backbone.layer1.0.bn1.running_mean"} <= moved


def test_module_to_freeze_is_found_by_name_or_refused_with_the_nearest():
    model = tiny_model()
    assert find_module(model, "backbone.layer1") is model.backbone.layer1
    with pytest.raises(TrainingError, match=r"no module 'backbone.layr1'.*'backbone.layer1'\?"):
        find_module(model, "backbone.layr1")
