"""Models that nobody tried before export, and neither lint nor proof refuses them.

Their weights are random, so rounding to half really does change what they find: the proof's verdict
is asked of fp32 only, the lint and the audit of the file of both precisions.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planting import PASSED, artifacts, change_manifest, verify
from tiny_models import lively, write_discs
from torch import Tensor, nn

import export.verify
from export.bundling import ExportOptions, write_bundle
from export.proof.files import find_file_fault
from export.proof.frames import network_frames
from runtime.contract.bundle import Bundle
from training.loop.checkpoint import load_release, save_release
from training.models import build_model, model_variant
from training.models.base import Model

NUM_SLOW, NUM_QUICK = 50, 3
IMAGES = 8
FOUND = (15, 40)  # detections a frame asked for
QUICK_SIZES = ((64, 64), (64, 96))
SIZES = (*QUICK_SIZES, (96, 128), (128, 128), (160, 224), (128, 96), (64, 224))


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of more objects, their labels of no use here."""
    return write_discs(tmp_path_factory.mktemp("frames"), train=1, val=IMAGES)


def random_fields(seed: int, *, is_quick: bool) -> dict[str, Any]:
    """Fields of a spec that a user might write."""
    draw = np.random.default_rng(seed)

    def one_of(*values: Any) -> Any:
        return values[draw.integers(len(values))]

    count = int(draw.integers(1, 21))
    channels = tuple(int(c) for c in np.sort(draw.integers(1, 5, 4)) * 8)
    return {
        "size_hw": one_of(*(QUICK_SIZES if is_quick else SIZES)),
        "classes": tuple(f"class {number}" for number in range(count)),
        "category_ids": tuple(int(i) for i in np.sort(draw.permutation(90)[:count] + 1)),
        "backbone_args": (("channels", channels),),
        "fpn_channels": one_of(16, 32, 64),
        "head_convs": int(draw.integers(1, 3)),
        "norm": one_of("none", "batch", "group"),
        "anchor_scale": one_of(2.0, 3.0, 4.0),
        "octaves": one_of((1.0,), (1.0, 1.5), (1.0, 2 ** (1 / 3), 2 ** (2 / 3))),
        "ratios": one_of((1.0,), (0.5, 2.0), (0.5, 1.0, 2.0)),
        "matching": one_of("iou", "atss"),
        "box_loss": one_of("smooth_l1", "giou"),
        "has_soft_labels": bool(draw.integers(2)),
        "iou_threshold": one_of(0.3, 0.45, 0.5, 0.6, 0.75),
        "num_candidates": one_of(50, 100, 300, 1000, 2048),
        "max_detections": one_of(20, 50, 100, 300),
        "mean": one_of((123.675, 116.28, 103.53), (0.0, 0.0, 0.0), (127.5, 127.5, 127.5)),
        "std": one_of((58.395, 57.12, 57.375), (255.0, 255.0, 255.0), (1.0, 1.0, 1.0)),
    }


def with_spread_logits(model: Model, data: Path) -> Model:
    """Scale each convolution so that what it gives has variance 1, and scores lie around a half.

    `lively` does so for networks with norms, which undo what stands before them.
    """
    scaled: set[nn.Module] = set()

    def scale(conv: nn.Conv2d, inputs: Any, output: Tensor) -> Tensor:
        if conv in scaled:  # shared by the levels
            return output
        scaled.add(conv)
        factor = output.std().clamp(min=1e-6)
        conv.weight.data /= factor
        if conv.bias is not None:
            conv.bias.data.zero_()
        return output / factor

    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(scale) for conv in convs]
    frames = torch.from_numpy(network_frames(str(data), model.spec, IMAGES))
    with torch.no_grad():
        model(model.prepare(frames))
    for hook in hooks:
        hook.remove()
    return model


def with_fitting_threshold(model: Model, data: Path) -> Model:
    """A default threshold in the widest gap of the scores that lets some pass on each frame."""
    frames = torch.from_numpy(network_frames(str(data), model.spec, IMAGES))
    with torch.no_grad():
        found = [model.candidates(model(model.prepare(f[None]))).logits for f in frames]
    scores = torch.cat([each.flatten().sigmoid() for each in found]).sort(descending=True).values
    top = scores[FOUND[0] * len(frames) : FOUND[1] * len(frames)]
    place = int((top[:-1] - top[1:]).argmax())
    threshold = float(top[place] + top[place + 1]) / 2
    model.spec = dataclasses.replace(model.spec, score_threshold=threshold)
    return model


def export_and_verify(seed: int, folder: Path, data: Path, *, is_quick: bool) -> None:
    spec = dataclasses.replace(
        model_variant("retinanet").spec, **random_fields(seed, is_quick=is_quick)
    )
    path = folder / "model.safetensors"
    model = with_spread_logits(lively(build_model("retinanet", spec), seed), data)
    save_release(path, "retinanet", model, training={"data": "discs"}, scores={})
    model = with_fitting_threshold(load_release(path)[0], data)  # as rounded by the release
    save_release(path, "retinanet", model, training={"data": "discs"}, scores={})
    out = folder / "bundle"
    options = ExportOptions(
        model="retinanet", variant=None, checkpoint=path, size_hw=None, out=out, data=str(data)
    )
    write_bundle(options, report=lambda line: None)
    bundle = Bundle.open(out)
    assert [find_file_fault(bundle, p) for p in ("fp32", "fp16")] == ["", ""]
    change_manifest(out, precisions=["fp32"])
    done = verify(out, path, data, "--images", IMAGES)
    assert done.returncode == PASSED, f"{spec}\n{done.stdout}\n{done.stderr}"
    rows = artifacts(out)
    assert {row["backend"]: row["verdict"] for row in rows} == dict.fromkeys(
        export.verify.BACKENDS, "pass"
    )
    assert all(row["matched"] >= IMAGES for row in rows)


@pytest.mark.parametrize("seed", range(NUM_QUICK))
def test_honest_model_of_a_small_size_passes(seed, tmp_path, frames, monkeypatch):
    monkeypatch.setattr(export.verify, "BACKENDS", ("onnxruntime",))
    export_and_verify(seed, tmp_path, frames, is_quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 100 + NUM_SLOW))
def test_honest_model_passes_on_every_cpu_backend(seed, tmp_path, frames):
    export_and_verify(seed, tmp_path, frames, is_quick=False)
