"""Checkpoints: what is refused, what a start takes over, and that a failed save harms nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_model, tiny_spec
from torch import nn

import training.loop.checkpoint
from training.errors import CheckpointError
from training.loop.checkpoint import (
    HEADER_KEY,
    load_matching,
    load_release,
    pack_optimizer,
    read_header,
    save_release,
    unpack_optimizer,
    write_tensors,
)


def truncated(path: Path, good: bytes) -> None:
    path.write_bytes(good[: len(good) // 2])


def empty(path: Path, good: bytes) -> None:
    path.write_bytes(b"")


def text(path: Path, good: bytes) -> None:
    path.write_text("no checkpoint at all, but a text that is long enough to look like one")


def foreign(path: Path, good: bytes) -> None:
    save_file({"a": torch.zeros(3)}, path)


def newer(path: Path, good: bytes) -> None:
    save_file({"a": torch.zeros(3)}, path, metadata={HEADER_KEY: json.dumps({"format": 99})})


def absent(path: Path, good: bytes) -> None:
    path.unlink()


def state(path: Path, good: bytes) -> None:
    write_tensors(path, {"a": torch.zeros(1)}, {"format": 1, "model": "retinanet", "state": {}})


def other_shape(path: Path, good: bytes) -> None:
    model = tiny_model()
    model.scores.predict = nn.Conv2d(16, 9, 3, padding=1)
    save_release(path, "retinanet", model, training={}, scores={})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (truncated, "no whole safetensors file"),
        (empty, "no whole safetensors file"),
        (text, "no whole safetensors file"),
        (foreign, "not this project's header"),
        (newer, "format 99; this version reads 1"),
        (absent, "there is no checkpoint"),
        (state, "state of a training run"),
        (other_shape, "2 tensors are missing, unknown or of another shape"),
    ],
)
def test_damaged_checkpoint_is_refused_with_what_is_wrong(
    spoil, says, tiny_checkpoint: Path, tmp_path: Path
):
    path = tmp_path / "spoilt.safetensors"
    path.touch()
    spoil(path, tiny_checkpoint.read_bytes())
    with pytest.raises(CheckpointError, match=says):
        load_release(path)


def test_checkpoint_of_another_model_is_refused_by_both_names(tiny_checkpoint: Path):
    with pytest.raises(CheckpointError, match=r"model 'retinanet'; expected 'yolact'"):
        load_release(tiny_checkpoint, "yolact")


@pytest.mark.parametrize("spoil", [truncated, text, absent])
def test_damaged_start_is_refused_too(spoil, tiny_checkpoint: Path, tmp_path: Path):
    path = tmp_path / "spoilt.safetensors"
    path.touch()
    spoil(path, tiny_checkpoint.read_bytes())
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        load_matching(tiny_model(), path)


def test_start_from_data_of_other_classes_takes_all_but_the_last_layer(tiny_checkpoint: Path):
    model = tiny_model(spec=tiny_spec(classes=("one",), category_ids=(1,)), seed=9)
    fresh = load_matching(model, tiny_checkpoint)
    assert fresh == ["scores.predict.weight", "scores.predict.bias"]
    loaded, _ = load_release(tiny_checkpoint)
    assert torch.equal(model.backbone.conv1.weight, loaded.backbone.conv1.weight)


def test_start_from_a_checkpoint_that_shares_nothing_is_refused(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({"something.else": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="no tensor of .* fits"):
        load_matching(tiny_model(), path)


def test_failed_save_keeps_the_old_checkpoint_and_leaves_nothing_beside_it(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "best.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes())

    def fail(tensors, target, metadata):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training.loop.checkpoint, "save_file", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        write_tensors(path, {}, {})
    assert path.read_bytes() == tiny_checkpoint.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_header_keeps_scores_and_history(tiny_checkpoint: Path):
    header = read_header(tiny_checkpoint)
    assert (header["model"], header["task"]) == ("retinanet", "detection")
    assert header["training"] == {"data": "discs"}


def test_optimizer_continues_where_it_was_packed():
    def stepped(count: int, start=None):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        if start is not None:
            layer.load_state_dict(start[0])
            unpack_optimizer(optimizer, start[1])
        for _ in range(count):
            optimizer.zero_grad()
            layer(torch.ones(1, 3)).pow(2).sum().backward()
            optimizer.step()
        return copy.deepcopy(layer.state_dict()), pack_optimizer(optimizer)

    through, _ = stepped(8)
    resumed, _ = stepped(4, stepped(4))
    assert all(torch.equal(resumed[key], value) for key, value in through.items())
