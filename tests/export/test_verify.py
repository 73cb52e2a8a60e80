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
    FILES,
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
import training.data
from export.bundling import ExportOptions, write_bundle
from runtime.contract.bundle import VERIFY_NAME, Bundle
from training.loop.checkpoint import load_release, save_release


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
    monkeypatch.setattr(export.proof.reference, "_checkpoint_scores", lambda *_: {"AP": 0.9})
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


@pytest.fixture
def absent(monkeypatch):
    """A way to take a backend away."""

    def take_away(*names: str) -> None:
        entries = tuple(
            dataclasses.replace(entry, package="a_package_of_another_machine")
            if entry.name in names
            else entry
            for entry in runtime.sessions.BACKENDS
        )
        monkeypatch.setattr(runtime.sessions, "BACKENDS", entries)

    return take_away


def verdicts(bundle: Path) -> dict[str, str]:
    return {row["backend"]: row["verdict"] for row in artifacts(bundle)}


def test_absent_backend_is_not_run_and_fails_nothing(
    tiny_exported, tiny_checkpoint, discs, absent, quick_trace
):
    absent("openvino")
    done = verify(tiny_exported, tiny_checkpoint, discs)
    assert done.returncode == PASSED, done.stdout
    assert verdicts(tiny_exported) == {"onnxruntime": "pass", "openvino": "not run"}
    assert "a_package_of_another_machine" in done.stdout


def test_without_any_backend_nothing_is_proven_and_the_status_says_so(
    tiny_exported, tiny_checkpoint, discs, absent
):
    absent("openvino", "onnxruntime")
    done = verify(tiny_exported, tiny_checkpoint, discs)
    assert done.returncode == FAILED
    assert verdicts(tiny_exported) == {"onnxruntime": "not run", "openvino": "not run"}
    assert "nothing was proven: no backend that could run the bundle is here" in done.stdout


def test_fault_of_the_whole_bundle_fails_without_any_backend(
    tiny_exported, tiny_checkpoint, discs, absent
):
    absent("openvino", "onnxruntime")
    change_manifest(tiny_exported, category_ids=[1, 2, 3])
    assert verify(tiny_exported, tiny_checkpoint, discs).returncode == FAILED
    assert verdicts(tiny_exported) == {"onnxruntime": "fail", "openvino": "fail"}
    assert "category_ids" in artifacts(tiny_exported)[0]["reasons"][0]


@pytest.fixture
def shy(tmp_path, tiny_checkpoint, discs, quick_trace) -> tuple[Path, Path]:
    """A checkpoint whose default threshold lets nothing pass, and its bundle."""
    model = load_release(tiny_checkpoint)[0]
    model.spec = dataclasses.replace(model.spec, score_threshold=0.99)
    checkpoint, out = tmp_path / "shy.safetensors", tmp_path / "shy"
    save_release(checkpoint, "retinanet", model, training={"data": "discs"}, scores={})
    given = {"model": "retinanet", "variant": None, "size_hw": None, "data": str(discs)}
    options = ExportOptions(checkpoint=checkpoint, out=out, precisions=("fp32",), **given)
    write_bundle(options, report=lambda line: None)
    return out, checkpoint


def test_where_nothing_passes_the_default_threshold_the_scores_below_it_are_compared(
    shy, discs, one_backend
):
    out, checkpoint = shy
    done = verify(out, checkpoint, discs)
    assert done.returncode == PASSED, done.stdout
    assert "finds nothing at the default thresholds; compared at scores above 0.001" in done.stdout
    (row,) = artifacts(out)
    assert (row["verdict"], row["reasons"]) == ("pass", [])
    assert row["matched"] >= IMAGES


def test_graph_fault_is_seen_below_the_default_threshold(shy, discs, one_backend):
    out, checkpoint = shy
    for name in FILES:
        replace_graph(out, scale_a_bias, name)
    done = verify(out, checkpoint, discs)
    assert done.returncode == FAILED
    assert "score error" in done.stdout


def test_manifest_fault_is_seen_where_nothing_passes_the_default_threshold(
    tiny_exported, tiny_checkpoint, discs, one_backend
):
    change_manifest(tiny_exported, defaults={"score_threshold": 0.99, "iou_threshold": 0.5})
    done = verify(tiny_exported, tiny_checkpoint, discs)
    assert done.returncode == FAILED
    assert artifacts(tiny_exported)[0]["reasons"] == [
        "manifest score_threshold is 0.99; the checkpoint has 0.02"
    ]


@pytest.mark.parametrize("changes", [{}, {"category_ids": [1, 2, 3]}], ids=["right", "faulty"])
def test_checkpoint_that_finds_nothing_at_any_score_leaves_nothing_to_prove(
    shy, discs, one_backend, monkeypatch, changes
):
    monkeypatch.setattr(export.proof.reference, "SCORE_FLOOR", 0.995)
    out, checkpoint = shy
    change_manifest(out, **changes)
    done = verify(out, checkpoint, discs)
    (row,) = artifacts(out)
    assert done.returncode == (FAILED if changes else PASSED)
    assert row["verdict"] == ("fail" if changes else "not run")
    assert ("nothing was compared" in done.stdout) == (not changes)


def test_data_is_opened_once(tiny_exported, tiny_checkpoint, discs, one_backend, monkeypatch):
    opened = []
    open_data = training.data.open_data

    def counted(*arguments, **options):
        opened.append(arguments)
        return open_data(*arguments, **options)

    monkeypatch.setattr("training.data.open_data", counted)
    assert verify(tiny_exported, tiny_checkpoint, discs).returncode == PASSED
    assert len(opened) == 1


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
