"""int8 in a bundle: added to one that stands, or written at export; proven, shown and run."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from calling import Done, call
from planting import FAILED, IMAGES, PASSED, REFUSED, artifacts, read_manifest, replace_graph

import export.adding
import export.quantize
from export.adding import float_graph
from export.bundling import ExportOptions, write_bundle
from export.precision.int8.calibration import (
    CALIBRATION_NAME,
    NUM_IMAGES,
    hash_network,
    read_calibrations,
)
from export.precision.int8.ranges import METHODS
from runtime.contract.bundle import VERIFY_NAME, Bundle
from runtime.contract.errors import EXIT_DONE
from runtime.sessions import open_session

NAMES = ["model.int8.onnx", "model.int8.plugin.onnx", "model.int8.cpu.onnx"]
TINY = ("--images", 6, "--verify", "none")


def quantize(bundle: Path, *more: object) -> Done:
    return call("export.quantize", bundle, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_int8_is_added_and_all_else_stays_as_it_was(with_int8, written_bundle):
    before, after = contents(written_bundle), contents(with_int8)
    assert sorted(after.keys() - before.keys()) == sorted([*NAMES, CALIBRATION_NAME])
    assert [name for name in before if before[name] != after[name]] == ["manifest.json"]
    manifest = Bundle.open(with_int8).manifest
    assert manifest.precisions == ("fp32", "int8")
    assert manifest.graphs["model"].cpu_files == {"int8": NAMES[2]}
    for kind in ("portable", "plugin", "cpu"):
        assert Bundle.open(with_int8).file("model", "int8", kind).is_file()


def test_manifest_says_what_it_was_calibrated_on(with_int8, discs):
    calibration = read_calibrations(with_int8 / CALIBRATION_NAME)["model"]
    manifest = Bundle.open(with_int8).manifest
    assert manifest.calibration == calibration.summary()
    assert manifest.calibration["data"] == str(discs)
    assert manifest.calibration["images"] == "6"
    assert manifest.calibration["checkpoint_sha256"] == manifest.training["checkpoint_sha256"]


def test_quantising_again_gives_the_same_files(int8_to_change, with_int8, discs):
    assert quantize(int8_to_change, "--data", discs, *TINY).returncode == EXIT_DONE
    assert contents(int8_to_change) == contents(with_int8)


def test_cpus_take_the_file_that_is_theirs(with_int8, monkeypatch):
    bundle = Bundle.open(with_int8)
    samples = bundle.samples()
    feeds = {name: value[:1] for name, value in samples.feeds.items()}
    taken = []

    def spy(bundle: Bundle, graph: str, precision: str, kind: str = "portable") -> Path:
        taken.append(kind)
        return give(bundle, graph, precision, kind)

    give = Bundle.file
    monkeypatch.setattr(Bundle, "file", spy)
    for backend in ("onnxruntime", "openvino"):
        with contextlib.closing(open_session(bundle, backend, "int8")) as session:
            assert session.run(feeds)["scores"].shape == (1, bundle.manifest.max_detections)
            has_given_way = session.precision != "int8"  # on x86 without VNNI
        assert {*taken} == {"portable" if has_given_way else "cpu"}
        taken.clear()
    cpu = onnx.load(with_int8 / NAMES[2])
    assert onnx.TensorProto.UINT8 in {tensor.data_type for tensor in cpu.graph.initializer}


def test_export_writes_the_same_int8_as_adding_it_does(
    with_int8, tiny_checkpoint, quick_trace, discs, tmp_path
):
    options = ExportOptions(
        model="retinanet", variant=None, checkpoint=tiny_checkpoint, size_hw=None,
        out=tmp_path / "tiny", data=str(discs), precisions=("fp32", "int8"), calibration_images=6,
    )  # fmt: skip
    write_bundle(options, report=lambda line: None)
    ours, theirs = (
        read_calibrations(folder / CALIBRATION_NAME)["model"] for folder in (options.out, with_int8)
    )
    assert ours == theirs
    for name in NAMES:
        first, second = (onnx.load(folder / name).graph for folder in (options.out, with_int8))
        assert first == second


def test_float_graph_of_a_bundle_is_what_was_traced(written_bundle, tiny_trace):
    from export.graph.batch_norm import fold_batch_norms

    traced = onnx.ModelProto()
    traced.CopyFrom(tiny_trace)
    fold_batch_norms(traced)
    assert hash_network(float_graph(Bundle.open(written_bundle))) == hash_network(traced)


# --------------------------------------------------------------------------------------- the proof


def prove(bundle: Path, checkpoint: Path, discs: Path) -> Done:
    options = ("--checkpoint", checkpoint, "--data", discs, "--images", IMAGES)
    return call("export.verify", bundle, *options)


def test_int8_is_held_against_pytorch_by_its_own_limits(
    int8_to_change, one_backend, tiny_checkpoint, discs
):
    done = prove(int8_to_change, tiny_checkpoint, discs)
    assert done.returncode == PASSED, done.stdout + done.stderr
    row = next(row for row in artifacts(int8_to_change) if row["precision"] == "int8")
    assert row["verdict"] == "pass"
    assert row["p99_score_error"] > 1e-4  # it is no float graph
    assert row["audit"]["graphs"]["model"]["file"]["shares"]["int8"] > 0.5


def test_graph_with_a_wrong_scale_fails_the_proof(
    int8_to_change, one_backend, tiny_checkpoint, discs
):
    for name in NAMES:
        replace_graph(int8_to_change, enlarge_a_scale, name)
    done = prove(int8_to_change, tiny_checkpoint, discs)
    assert done.returncode == FAILED, done.stdout
    row = next(row for row in artifacts(int8_to_change) if row["precision"] == "int8")
    assert any("max_pool2d" in reason or "relu.scale" in reason for reason in row["reasons"])


def enlarge_a_scale(graph: onnx.GraphProto) -> None:
    tensor = next(t for t in graph.initializer if t.name.endswith("relu.scale"))
    value = onnx.numpy_helper.to_array(tensor) * np.float32(60)
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))


def test_file_for_cpus_with_other_weights_fails_the_proof(
    int8_to_change, one_backend, tiny_checkpoint, discs
):
    def change(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.name.endswith(".int8_0"))
        value = onnx.numpy_helper.to_array(tensor)[::-1].copy()
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))

    replace_graph(int8_to_change, change, NAMES[2])
    done = prove(int8_to_change, tiny_checkpoint, discs)
    assert done.returncode == FAILED
    assert f"{NAMES[2]}: weight" in done.stdout


def test_proof_of_other_precisions_is_kept(
    written_bundle, one_backend, tiny_checkpoint, discs, tmp_path
):
    folder = Path(shutil.copytree(written_bundle, tmp_path / "tiny"))
    assert prove(folder, tiny_checkpoint, discs).returncode == PASSED
    before = artifacts(folder)
    options = ("--data", discs, "--images", 6, "--checkpoint", tiny_checkpoint)
    done = quantize(folder, *options)
    assert done.returncode in (PASSED, FAILED), done.stderr
    after = artifacts(folder)
    assert [row["precision"] for row in after] == ["fp32", "int8"]
    kept = {name: value for name, value in after[0].items() if name != "made_on"}
    assert kept == before[0]
    assert after[0]["made_on"]["data"] == str(discs)
    assert json.loads((folder / VERIFY_NAME).read_text())["data"] == str(discs)


# -------------------------------------------------------------------------------- what is refused


def test_stored_calibration_gives_the_same_int8(int8_to_change, written_bundle, tmp_path):
    other = Path(shutil.copytree(written_bundle, tmp_path / "other"))
    stored = int8_to_change / CALIBRATION_NAME
    assert quantize(other, "--calibration", stored, "--verify", "none").returncode == EXIT_DONE
    for name in NAMES:
        assert (other / name).read_bytes() == (int8_to_change / name).read_bytes()


def test_calibration_of_another_network_is_refused_and_nothing_written(
    int8_to_change, written_bundle, tmp_path
):
    other = Path(shutil.copytree(written_bundle, tmp_path / "other"))
    stored = json.loads((int8_to_change / CALIBRATION_NAME).read_text())
    stored["graphs"]["model"]["network_sha256"] = "0" * 64
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(stored))
    done = quantize(other, "--calibration", path, "--verify", "none")
    assert done.returncode == REFUSED
    assert done.stderr.count("\n") == 1
    assert "another network" in done.stderr
    assert contents(other) == contents(written_bundle)


def test_calibration_of_other_frames_is_refused(int8_to_change, discs, tmp_path):
    shutil.copytree(discs / "train", tmp_path / "pictures")
    (tmp_path / "pictures" / "_annotations.coco.json").unlink()
    (tmp_path / "pictures" / "0.png").unlink()
    stored = int8_to_change / CALIBRATION_NAME
    other = ("--data", tmp_path / "pictures")
    done = quantize(int8_to_change, "--calibration", stored, *other, "--verify", "none")
    assert done.returncode == REFUSED
    assert "of other images" in done.stderr


@pytest.mark.parametrize("place", ["write_files", "write_calibrations", "_keep_proof"])
def test_failure_in_the_middle_leaves_the_bundle_as_it_was(
    place, tiny_exported, with_int8, monkeypatch
):
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    before = contents(tiny_exported)
    monkeypatch.setattr(export.adding, place, fail)
    stored = with_int8 / CALIBRATION_NAME
    done = quantize(tiny_exported, "--calibration", stored, "--verify", "none")
    assert done.returncode == REFUSED
    assert contents(tiny_exported) == before
    left = [path for path in tiny_exported.parent.iterdir() if path.is_dir()]
    assert left == [tiny_exported]


def test_bundle_without_fp32_is_refused(int8_to_change, discs):
    document = read_manifest(int8_to_change)
    graph = document["graphs"]["model"]
    for kind in ("files", "plugin_files"):
        del graph[kind]["fp32"]
    document["precisions"] = ["int8"]
    (int8_to_change / "manifest.json").write_text(json.dumps(document))
    done = quantize(int8_to_change, "--data", discs, *TINY)
    assert done.returncode == REFUSED
    assert "has no fp32 graph to make int8 of; it has int8" in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--data", "nowhere"), "nowhere: no such folder"),
        (("--images", 0), "0 calibration frames were asked for"),
        (("--calibration", "none.json"), "none.json cannot be read"),
        (("--calibration", "none.json", "--images", 4), "--images goes with --data"),
        (("--max-ap-drop", 2), "--max-ap-drop 2.0 is no share"),
    ],
    ids=["no_data", "no_images", "no_calibration", "both", "no_share"],
)
def test_unusable_question_is_refused_in_one_line(given, message, tiny_exported):
    before = contents(tiny_exported)
    done = quantize(tiny_exported, *given, "--verify", "none")
    assert done.returncode == REFUSED
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(tiny_exported) == before


def test_folder_that_is_no_bundle_is_refused(tmp_path):
    done = quantize(tmp_path, *TINY)
    assert done.returncode == REFUSED
    assert "is no bundle" in done.stderr


def test_single_file_is_refused(with_int8, discs):
    done = quantize(with_int8 / "model.fp32.onnx", "--data", discs, *TINY)
    assert done.returncode == REFUSED


def test_show_finds_no_fault_and_names_the_calibration(with_int8):
    done = call("export.show", with_int8)
    assert done.returncode == EXIT_DONE, done.stdout
    assert "mse on 6 frames of" in done.stdout


def test_script_offers_the_methods_there_are_and_the_count_of_an_export():
    assert tuple(METHODS) == export.quantize.METHODS
    assert export.quantize.NUM_IMAGES == NUM_IMAGES


def test_heads_are_int8_where_that_was_asked_for(int8_to_change):
    stored = ("--calibration", int8_to_change / CALIBRATION_NAME)
    done = quantize(int8_to_change, *stored, "--heads", "int8", "--verify", "none")
    assert done.returncode == EXIT_DONE, done.stderr
    calibration = read_calibrations(int8_to_change / CALIBRATION_NAME)["model"]
    assert calibration.heads == "int8"
    graph = onnx.load(int8_to_change / NAMES[0]).graph
    assert all(n.input[1].endswith(".dq0") for n in graph.node if n.op_type == "Conv")


def test_stored_heads_and_number_of_frames_hold_where_none_are_given(
    int8_to_change, discs, tmp_path
):
    proofless = ("--verify", "none")
    few = ("--heads", "int8", "--images", 3)
    done = quantize(int8_to_change, "--data", discs, *few, *proofless)
    assert done.returncode == 0, done.stderr
    assert "warning: 3 frame(s) show little" in done.stdout
    before = (int8_to_change / "model.int8.onnx").read_bytes()
    stored = shutil.copy2(int8_to_change / "calibration.json", tmp_path / "heads.json")
    done = quantize(int8_to_change, "--data", discs, "--calibration", stored, *proofless)
    assert done.returncode == 0, done.stderr
    assert (int8_to_change / "model.int8.onnx").read_bytes() == before


def test_another_checkpoint_is_refused_before_anything_is_written(int8_to_change, discs, tmp_path):
    before = contents(int8_to_change)
    (tmp_path / "other.safetensors").write_bytes(b"another")
    options = ("--data", discs, "--images", 3, "--checkpoint", tmp_path / "other.safetensors")
    done = call("export.quantize", int8_to_change, *options)
    assert done.returncode == 2
    assert "was exported from a checkpoint with sha256" in done.stderr
    assert contents(int8_to_change) == before
