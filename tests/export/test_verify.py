"""The proof of a bundle: it passes what is right, and each planted fault turns the verdict."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from planting import (
    FAILED,
    IMAGES,
    PASSED,
    REFUSED,
    artifacts,
    change_manifest,
    replace_graph,
    verify,
)
from tiny_models import tiny_model, tiny_spec

import export.proof.reference
import runtime.sessions
from runtime.contract.bundle import VERIFY_NAME, Bundle
from training.loop.checkpoint import save_release


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch):
    """A way to change what the proof takes for PyTorch's answer."""

    def plant(change) -> None:
        answer = export.proof.reference.torch_results

        def changed(*arguments):
            results = answer(*arguments)
            change(results)
            return results

        monkeypatch.setattr(export.proof.reference, "torch_results", changed)

    return plant


def test_faithful_bundle_passes_on_every_cpu_backend(tiny_exported, tiny_checkpoint, discs):
    done = verify(tiny_exported, tiny_checkpoint, discs)
    assert done.returncode == PASSED, done.stdout + done.stderr
    rows = artifacts(tiny_exported)
    assert {row["backend"]: row["verdict"] for row in rows} == {
        "onnxruntime": "pass",
        "openvino": "pass",
    }
    assert all(row["matched"] >= IMAGES and row["reasons"] == [] for row in rows)
    assert all(0 <= row["AP"] <= 1 for row in rows)
    assert Bundle.open(tiny_exported).verdict("fp32", "onnxruntime") == "pass"


# ------------------------------------------------------------------------------- planted faults


def swap_classes(results: dict[str, np.ndarray]) -> None:
    results["classes"][:] = np.array([1, 0, 2, -1])[results["classes"]]


def shift_boxes(results: dict[str, np.ndarray]) -> None:
    results["boxes_xyxy"] += np.float32(0.2)


def raise_scores(results: dict[str, np.ndarray]) -> None:
    results["scores"] += np.float32(0.005)


def drop_best(results: dict[str, np.ndarray]) -> None:
    for name in ("boxes_xyxy", "scores", "classes"):
        results[name][0, :-1] = results[name][0, 1:]
    results["num_detections"][0] -= 1


def spoil_a_score(results: dict[str, np.ndarray]) -> None:
    results["scores"][0, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (swap_classes, "results unmatched"),
        (shift_boxes, "box error 0.2 px"),
        (raise_scores, "score error 0.005"),
        (drop_best, "1 of them far from any threshold"),
        (spoil_a_score, "far from any threshold"),
    ],
    ids=["classes-swapped", "boxes-shifted", "scores-raised", "result-lost", "not-a-number"],
)
def test_fault_in_the_results_turns_the_verdict_to_fail(
    change, says, fault, tiny_exported, tiny_checkpoint, discs, one_backend
):
    fault(change)
    done = verify(tiny_exported, tiny_checkpoint, discs)
    assert done.returncode == FAILED
    assert says in done.stdout
    (row,) = artifacts(tiny_exported)
    assert row["verdict"] == "fail"
    assert any(says in reason for reason in row["reasons"])
    assert Bundle.open(tiny_exported).verdict("fp32", "onnxruntime") == "fail"


def test_lost_result_is_listed_with_its_margins(
    fault, tiny_exported, tiny_checkpoint, discs, one_backend
):
    fault(drop_best)
    verify(tiny_exported, tiny_checkpoint, discs)
    (worst,) = artifacts(tiny_exported)[0]["worst"]
    assert (worst["side"], worst["image"]) == ("candidate", 0)
    assert worst["score_margin"] == pytest.approx(worst["score"] - 0.02, abs=1e-6)


def test_lower_ap_than_the_checkpoints_turns_the_verdict_to_fail(
    tiny_exported, tiny_checkpoint, discs, one_backend, monkeypatch
):
    monkeypatch.setattr(export.proof.reference, "_checkpoint_ap", lambda *_: 0.9)
    assert verify(tiny_exported, tiny_checkpoint, discs).returncode == FAILED
    assert "the checkpoint has 0.9000" in artifacts(tiny_exported)[0]["reasons"][0]


def test_graph_that_computes_something_else_turns_the_verdict_to_fail(
    tiny_exported, tiny_checkpoint, discs, one_backend
):
    replace_graph(tiny_exported, scale_a_bias)
    assert verify(tiny_exported, tiny_checkpoint, discs).returncode == FAILED


def test_graph_that_a_present_backend_refuses_turns_the_verdict_to_fail(
    tiny_exported, tiny_checkpoint, discs, one_backend
):
    replace_graph(tiny_exported, unknown_operator)
    assert verify(tiny_exported, tiny_checkpoint, discs).returncode == FAILED
    assert "FancyRelu" in artifacts(tiny_exported)[0]["reasons"][0]


def scale_a_bias(graph: onnx.GraphProto) -> None:
    bias = next(t for t in graph.initializer if t.name.endswith("scores.predict.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * 0.99, bias.name))


def unknown_operator(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Relu").op_type = "FancyRelu"


# ---------------------------------------------------------------------------- neither pass nor fail


def test_absent_backend_is_not_run_and_fails_nothing(
    tiny_exported, tiny_checkpoint, discs, one_backend, monkeypatch
):
    entries = tuple(
        dataclasses.replace(entry, package="onnxruntime_of_another_machine")
        for entry in runtime.sessions.BACKENDS
    )
    monkeypatch.setattr(runtime.sessions, "BACKENDS", entries)
    done = verify(tiny_exported, tiny_checkpoint, discs)
    assert done.returncode == PASSED
    assert artifacts(tiny_exported)[0]["verdict"] == "not run"
    assert "onnxruntime_of_another_machine" in done.stdout


def test_bundle_that_finds_nothing_has_proven_nothing(
    tiny_exported, tiny_checkpoint, discs, one_backend
):
    change_manifest(tiny_exported, defaults={"score_threshold": 0.99, "iou_threshold": 0.5})
    done = verify(tiny_exported, tiny_checkpoint, discs)
    assert done.returncode == PASSED
    assert artifacts(tiny_exported)[0]["verdict"] == "not run"
    assert "nothing was compared" in done.stdout


# ----------------------------------------------------------------------------------------- refused


def test_checkpoint_of_other_weights_is_refused_by_its_hash(tiny_exported, discs, tmp_path):
    other = tmp_path / "other.safetensors"
    save_release(other, "retinanet", tiny_model(spec=tiny_spec(), seed=5), training={}, scores={})
    done = verify(tiny_exported, other, discs)
    assert done.returncode == REFUSED
    assert "sha256" in done.stderr
    assert not (tiny_exported / VERIFY_NAME).exists()


def test_changed_graph_is_refused_by_its_hash(tiny_exported, tiny_checkpoint, discs):
    path = tiny_exported / "model.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    done = verify(tiny_exported, tiny_checkpoint, discs)
    assert done.returncode == REFUSED
    assert "sha256" in done.stderr
    assert not (tiny_exported / VERIFY_NAME).exists()


def test_bundle_is_verified_on_data_of_other_classes_without_ap(
    tiny_exported, tiny_checkpoint, discs, one_backend, tmp_path
):
    others = Path(shutil.copytree(discs, tmp_path / "others"))
    labels = others / "val" / "_annotations.coco.json"
    labels.write_text(labels.read_text().replace('"pink"', '"rose"'))
    done = verify(tiny_exported, tiny_checkpoint, others)
    assert done.returncode == PASSED, done.stdout
    document = json.loads((tiny_exported / VERIFY_NAME).read_text())
    assert document["AP_checkpoint"] is None
    assert "AP" not in document["artifacts"][0]
