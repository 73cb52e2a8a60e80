"""A published checkpoint on the whole road gives the published detections.

The reference stands at the normalised image, while bundles take bytes. A frame of float pixels,
image * std + mean, is what bytes would be without rounding: PyTorch's road takes it as it is, and
so does the bundle's own graph once its input is declared as float32.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from calling import call
from published_weights import FOLDER, filled_tensors, flat_tensors, normalised_image
from tiny_polygons import write_polygons
from torch import Tensor

from export.bundling import ExportOptions, write_bundle
from export.graph.end_to_end import end_to_end
from export.show import main as show
from runtime.contract.bundle import Bundle
from runtime.contract.errors import BundleError
from runtime.contract.matching import pairwise_iou
from training.data.coco_names import CATEGORY_IDS, CLASSES
from training.loop.checkpoint import file_sha256
from training.models.base import Candidates, Model
from training.published import MODEL, import_published

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "yolact_resnet50.npz"
COUNT, MATCHED = 100, 97  # published detections, and how many must be found: scores are saturated
SAME_IOU = 0.999
SAME_SCORE = 1e-4  # float32 sums in another order
PER_CLASS = 200  # rows of a class that enter the published suppression
PUBLISHED = ("resnet50", "resnet101", "darknet53", "mobilenetv2")


@pytest.fixture(scope="module")
def model() -> Model:
    return import_published(filled_tensors("yolact_resnet50"))


@pytest.fixture(scope="module")
def found(model: Model) -> Candidates:
    with torch.no_grad():
        return model.candidates(model(normalised_image()))


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    """The published detections; boxes in pixels."""
    with np.load(FOLDER / "yolact_resnet50_found.npz") as file:
        return {**file, "boxes_xyxy": file["boxes_xyxy"] * 550}


def float_frame(model: Model) -> np.ndarray:
    """(1, 550, 550, 3) float32 BGR pixels that the model's preparation turns into the image."""
    pixels = normalised_image() * model.std + model.mean
    return pixels.flip(1).permute(0, 2, 3, 1).contiguous().numpy()


def matches(boxes: np.ndarray, classes: np.ndarray, published: dict[str, np.ndarray]) -> np.ndarray:
    """(100,) the row of ours that is each published detection, -1 where there is none."""
    iou = pairwise_iou(published["boxes_xyxy"], boxes)
    iou[published["classes"][:, None] != classes[None]] = 0
    return np.where(iou.max(1) >= SAME_IOU, iou.argmax(1), -1)


def assert_published(
    rows: list[np.ndarray], published: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    count, boxes, scores, classes = rows[:4]
    assert int(count[0]) == COUNT
    ours = matches(boxes[0], classes[0], published)
    theirs = np.flatnonzero(ours >= 0)
    ours = ours[theirs]
    assert len(np.unique(ours)) >= MATCHED
    assert np.abs(scores[0][ours] - published["scores"][theirs]).max() <= SAME_SCORE
    return ours, theirs


# ------------------------------------------------------------------------------------------- spec


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_variant_selects_and_suppresses_as_published(variant):
    variants = importlib.import_module("training.models.instance.yolact").VARIANTS
    spec = variants[variant].spec
    assert (spec.nms, spec.iou_threshold, spec.score_threshold) == ("fast", 0.5, 0.05)
    assert (spec.num_candidates, spec.max_detections) == (1000, COUNT)
    assert not spec.has_clipped_boxes


# --------------------------------------------------------------------------------------- in PyTorch


def test_committed_detections_are_the_reference(published: dict[str, np.ndarray]):
    if not GOLDEN.is_file():
        pytest.skip(f"the full reference numbers {GOLDEN} are not on this machine")
    with np.load(GOLDEN) as golden:
        assert np.array_equal(golden["image.det.box"] * 550, published["boxes_xyxy"])
        assert np.array_equal(golden["image.det.class"], published["classes"])
        assert np.array_equal(golden["image.det.score"], published["scores"])
        assert np.array_equal(golden["image.det.mask"], published["coefficients"])


@torch.no_grad()
def test_suppression_in_pytorch_gives_the_published_detections(
    model: Model, found: Candidates, published: dict[str, np.ndarray]
):
    module = end_to_end(model, is_folded=False)
    *rows, anchors = module.find_boxes(found, *limits(model))
    ours, theirs = assert_published([row.numpy() for row in rows], published)
    coefficients = found.extras["coefficients"][0, anchors[0]].numpy()[ours]
    np.testing.assert_allclose(
        coefficients, published["coefficients"][theirs], rtol=0, atol=SAME_SCORE
    )


@torch.no_grad()
def test_what_survives_suppression_before_the_cut_is_what_the_published_rule_keeps(
    model: Model, found: Candidates
):
    """Of all rows, not of the first 100: the rows over the last score that ours let enter."""
    wide = dataclasses.replace(model.spec, max_detections=model.spec.num_candidates)
    module = end_to_end(model, is_folded=False)
    module.spec = wide
    count, _, scores, classes, anchors = module.find_boxes(found, *limits(model))
    kept = range(int(count[0]))
    ours = [(int(anchors[0, row]), int(classes[0, row])) for row in kept]
    lowest = float(found.logits.flatten().topk(wide.num_candidates).values[-1])
    theirs = [pair for score, pair in published_rule(found, model.spec.size_hw) if score >= lowest]
    assert len(ours) > 3 * COUNT
    assert set(ours) == set(theirs)
    assert float(scores[0, len(ours) - 1]) >= lowest


def published_rule(
    found: Candidates, size_hw: tuple[int, int]
) -> list[tuple[float, tuple[int, int]]]:
    """Fast NMS as YOLACT's paper and code have it, class by class: score, (anchor, class)."""
    scores = found.logits[0]  # (A, K)
    passing = (scores.amax(1) > 0.05).nonzero()[:, 0]  # by an anchor's best class
    boxes = found.decode(passing[None])[0] / size_hw[0]  # relative, reaching outside the image
    kept = []
    for label in range(scores.shape[1]):
        order = scores[passing, label].sort(descending=True, stable=True).indices[:PER_CLASS]
        overlap = relative_iou(boxes[order]).triu(1)  # of each with those before it
        for row in order[overlap.amax(0) <= 0.5].tolist():
            anchor = int(passing[row])
            kept.append((float(scores[anchor, label]), (anchor, label)))
    return kept


def relative_iou(boxes: Tensor) -> Tensor:
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (area[:, None] + area[None] - shared)


def limits(model: Model) -> tuple[Tensor, Tensor]:
    spec = model.spec
    return torch.full((1, 80), spec.score_threshold), torch.tensor([spec.iou_threshold])


# --------------------------------------------------------------------------------------- in bundles


def options(checkpoint: Path, out: Path, data: Path, variant: str | None = None) -> ExportOptions:
    return ExportOptions(
        model=MODEL, variant=variant, checkpoint=checkpoint, size_hw=None, out=out,
        data=str(data), precisions=("fp32",),
    )  # fmt: skip


def test_published_file_of_another_variant_is_refused(discs: Path, tmp_path: Path):
    path = tmp_path / "yolact_edge_mobilenetv2_54_800000.pth"
    torch.save(flat_tensors("yolact_edge_mobilenetv2"), path)
    with pytest.raises(BundleError, match="of variant 'mobilenetv2'; expected 'resnet50'"):
        write_bundle(options(path, tmp_path / "out", discs, "resnet50"), print)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def bundle(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    path = folder / "yolact_resnet50_54_800000.pth"
    torch.save(filled_tensors("yolact_resnet50"), path)
    write_bundle(options(path, folder / "bundle", discs, "resnet50"), print)
    return folder / "bundle"


@pytest.mark.slow
@pytest.mark.timeout(1500)  # a whole export at 550 pixels
def test_bundle_says_what_it_was_made_of(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    manifest = Bundle.open(bundle, allow_unverified=True).manifest
    checkpoint = bundle.parent / "yolact_resnet50_54_800000.pth"
    assert (manifest.variant, manifest.task) == ("resnet50", "instance")
    assert (manifest.classes, manifest.category_ids) == (CLASSES, CATEGORY_IDS)
    assert manifest.training["source"] == "published"
    assert manifest.training["file"] == checkpoint.name
    assert manifest.training["checkpoint_sha256"] == file_sha256(checkpoint)
    assert (manifest.defaults.score_threshold, manifest.defaults.iou_threshold) == (0.05, 0.5)
    assert "MIT" in manifest.licence
    monkeypatch.setattr("sys.argv", ["show.py", str(bundle)])
    show()
    assert f"published, {checkpoint.name}, sha256 " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1500)  # a whole export at 550 pixels
@pytest.mark.parametrize("kind", ["", ".plugin"], ids=["portable", "plugin"])
def test_graph_of_the_bundle_gives_the_published_detections(
    kind, bundle: Path, model: Model, published: dict[str, np.ndarray]
):
    graph = onnx.load(bundle / f"model.fp32{kind}.onnx")
    graph.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    score_threshold, iou_threshold = limits(model)
    feeds = {
        "image": float_frame(model),
        "score_threshold": score_threshold.numpy(),
        "iou_threshold": iou_threshold.numpy(),
    }
    assert_published(session.run(None, feeds), published)


@pytest.mark.slow
def test_published_file_goes_to_a_proven_bundle_and_an_engine_in_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build real engines")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "yolact_edge_mobilenetv2_54_800000.pth"
    torch.save(filled_tensors("yolact_edge_mobilenetv2"), path)
    data = write_polygons(tmp_path / "data", 2)
    given = ("--model", "yolact", "--checkpoint", path, "--data", data, "--out", tmp_path / "out")
    small = ("--size", "160x160", "--precision", "fp32", "--target-device", "sm_86")
    done = call("export.to_trt", *given, *small, "--optimisation-level", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("engine ")
    proof = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert [row["verdict"] for row in proof["artifacts"]] == ["pass", "pass"]
    assert all(row["matched"] > 20 for row in proof["artifacts"])
    bundle = Bundle.open(tmp_path / "out")  # proven: no need to allow it
    assert bundle.manifest.classes == CLASSES
