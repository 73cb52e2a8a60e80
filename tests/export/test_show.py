"""The script that says what a bundle is, what is wrong with it, and what differs between two."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from audited import make_detector
from onnx import numpy_helper
from tiny_bundle import write_tiny_bundle

from export import show
from export.showing.text import render_table
from runtime.contract.bundle import hash_file
from runtime.contract.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_VERDICT_FAIL, run_script
from runtime.contract.manifest import MANIFEST_NAME
from runtime.engines.fingerprint import Identity

HALF_STEP = 2.0**-11  # half has 11 bits: the most that rounding changes, relatively
HALF_LEAST = 2.0**-25  # and below its smallest normal number, absolutely

Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Run the script; gives status, stdout and stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["show.py", *map(str, arguments)])
        status = run_script(show.main)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny")


def find_problems(run: Show, path: Path) -> list[str]:
    status, text, _ = run(path, "--json")
    problems = json.loads(text)["problems"]
    assert status == (EXIT_VERDICT_FAIL if problems else EXIT_DONE)
    return problems


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((folder / MANIFEST_NAME).read_text())
    change(document)
    (folder / MANIFEST_NAME).write_text(json.dumps(document))


def change_weight(path: Path, name: str, step: float) -> None:
    model = onnx.load(path)
    tensor = next(each for each in model.graph.initializer if each.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += step
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)


# ------------------------------------------------------------------------------------------- sound


def test_sound_bundle_is_shown_without_problems(run_show: Show, bundle: Path):
    status, text, _ = run_show(bundle)
    assert status == EXIT_DONE
    assert text.rstrip().endswith("no problems")
    for part in ("tiny colours", "score_threshold", "Bx48x64x3", "lint: clean", "model.fp32.onnx"):
        assert part in text


def test_exported_bundle_is_shown_without_problems(run_show: Show, written_bundle: Path):
    status, text, _ = run_show(written_bundle, "--json")
    document = json.loads(text)
    assert (status, document["problems"]) == (EXIT_DONE, [])
    for file in document["files"]:
        assert set(file["audit"]["tail"]) == {"fp32"}


def test_layers_are_listed_where_asked(run_show: Show, bundle: Path):
    _, short, _ = run_show(bundle)
    _, long, _ = run_show(bundle, "--layers")
    assert "layers of model.fp32.onnx" not in short
    listed = long.split("layers of model.fp32.onnx")[1]
    assert any(line.split()[:2] == ["fp32", "TopK"] for line in listed.splitlines())


def test_compiled_graphs_are_shown_where_asked(run_show: Show, bundle: Path):
    status, text, _ = run_show(bundle, "--compiled", "--json")
    audits = json.loads(text)["files"][0]["compiled"]
    assert status == EXIT_DONE
    assert [(each["backend"], each["verdict"]) for each in audits] == [
        ("openvino f32", "pass"),
        ("onnxruntime", "pass"),
    ]


def test_lone_file_is_held_against_the_manifest_it_carries(
    run_show: Show, bundle: Path, tmp_path: Path
):
    alone = Path(shutil.copy(bundle / "model.fp32.onnx", tmp_path / "alone.onnx"))
    assert find_problems(run_show, alone) == []


def test_table_sets_numbers_to_the_right():
    lines = render_table(("name", "count"), [("a", 5), ("long", 1234)], indent="")
    assert lines == ["name  count", "----  -----", "a         5", "long   1234"]


# ---------------------------------------------------------------------------------------- problems


def test_float32_graph_in_the_place_of_fp16_is_found(run_show: Show, tmp_path: Path):
    folder = write_tiny_bundle(tmp_path / "tiny", precisions=("fp16",))
    assert any(
        "model.fp16.onnx: asked for fp16, not built" in problem
        for problem in find_problems(run_show, folder)
    )


def test_renamed_file_is_found_by_its_name(run_show: Show, bundle: Path, tmp_path: Path):
    renamed = Path(shutil.copy(bundle / "model.fp32.onnx", tmp_path / "model.fp16.onnx"))
    assert find_problems(run_show, renamed) == [
        "model.fp16.onnx is fp16 by its name and fp32 by its metadata. Give it back its name, or "
        "export that precision."
    ]


def test_renamed_file_is_found_by_its_metadata_in_a_bundle(run_show: Show, tmp_path: Path):
    """Manifest and hashes may be right: the file says itself what it is."""
    folder = write_tiny_bundle(tmp_path / "tiny", precisions=("fp32", "fp16"))
    shutil.copy(folder / "model.fp32.onnx", folder / "model.fp16.onnx")
    hashes = {name: hash_file(folder / name) for name in ("model.fp32.onnx", "model.fp16.onnx")}
    change_manifest(folder, lambda m: m["graphs"]["model"]["sha256"].update(hashes))
    problems = find_problems(run_show, folder)
    assert any("is fp16 by the manifest and fp32 by its own metadata" in each for each in problems)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.update(classes=["person", *m["classes"][1:]]), 'has classes ["person"'),
        (lambda m: m["defaults"].update(score_threshold=0.01), "has defaults"),
        (lambda m: m["geometry"].update(height=96), "'image' is uint8 ['B', 48, 64, 3]"),
    ],
    ids=["classes", "threshold", "size"],
)
def test_manifest_that_was_changed_is_found(
    run_show: Show, bundle: Path, change: Callable[[dict[str, Any]], None], told: str
):
    change_manifest(bundle, change)
    assert any(told in problem for problem in find_problems(run_show, bundle))


def test_weight_that_was_changed_is_found_by_the_hash(run_show: Show, bundle: Path):
    change_weight(bundle / "model.fp32.onnx", "base_scores", 0.25)
    problems = find_problems(run_show, bundle)
    assert len(problems) == 1
    assert "the manifest expects" in problems[0]


def test_missing_file_is_found(run_show: Show, tmp_path: Path):
    folder = write_tiny_bundle(tmp_path / "tiny", precisions=("fp32",), cpu_precisions=("fp32",))
    (folder / "model.fp32.cpu.onnx").unlink()
    problems = find_problems(run_show, folder)
    assert problems == [
        "model.fp32.cpu.onnx is missing; the manifest names it. Copy the whole folder."
    ]


def test_external_weights_that_were_changed_are_found(run_show: Show, tmp_path: Path):
    folder = write_tiny_bundle(tmp_path / "tiny", has_external_data=True)
    assert find_problems(run_show, folder) == []
    data = bytearray((folder / "weights.bin").read_bytes())
    data[0] ^= 1
    (folder / "weights.bin").write_bytes(bytes(data))
    assert "weights.bin is not the file" in find_problems(run_show, folder)[0]


def test_proof_that_failed_is_a_problem(run_show: Show, tmp_path: Path):
    verdicts = {("fp32", "openvino"): "fail", ("fp32", "onnxruntime"): "pass"}
    folder = write_tiny_bundle(tmp_path / "tiny", verdicts=verdicts)
    problems = find_problems(run_show, folder)
    assert problems == ["the proof of fp32 on openvino failed: no reason given"]


def test_broken_lint_rule_is_a_problem(run_show: Show, bundle: Path):
    path = bundle / "model.fp32.onnx"
    model = onnx.load(path)
    model.opset_import[0].version = 16
    onnx.save(model, path)
    assert any("breaks rule opset" in problem for problem in find_problems(run_show, bundle))


# ----------------------------------------------------------------------------------------- engines


def write_engine(folder: Path, **changes: Any) -> Path:
    """An engine's file and record, as the cache of the runtime writes them."""
    identity = Identity(
        onnx_sha256={"model": hash_file(folder / "model.fp32.onnx")},
        precision="fp32",
        flavour="tensorrt",
        flavour_version="10.9.0",
        device="NVIDIA Orin",
        compute_capability="8.7",
        platform="Linux aarch64",
        plugin_sha256="",
        shapes={"1": {"image": [1, 48, 64, 3]}},
        flags={},
    )
    identity = dataclasses.replace(identity, **changes)
    path = folder / "engines" / f"{identity.fingerprint()}.engine"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"a plan")
    record = {
        "schema": 1,
        "fingerprint": identity.fingerprint(),
        "onnx": "model.fp32.onnx",
        "identity": identity.to_dict(),
        "sha256": hashlib.sha256(b"a plan").hexdigest(),
        "verdict": "not run",
    }
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


def test_engine_that_cannot_be_loaded_here_is_shown_and_not_judged(run_show: Show, bundle: Path):
    engine = write_engine(bundle)
    status, text, _ = run_show(engine)
    assert status == EXIT_DONE
    assert "tensorrt 10.9.0 for NVIDIA Orin 8.7" in text
    assert "precision not audited" in text


def test_engine_that_claims_another_precision_is_found(run_show: Show, bundle: Path):
    """Its record is whole in itself; the graph that it was built from tells."""
    engine = write_engine(bundle, precision="fp16")
    told = "claims fp16, and was built from the fp32 graph"
    assert [problem for problem in find_problems(run_show, bundle) if told in problem]
    assert [problem for problem in find_problems(run_show, engine) if told in problem]


def test_record_that_was_changed_is_found_by_its_fingerprint(run_show: Show, bundle: Path):
    record = write_engine(bundle).with_suffix(".json")
    document = json.loads(record.read_text())
    document["identity"]["device"] = "NVIDIA Thor"
    record.write_text(json.dumps(document))
    assert "was changed: its identity has the fingerprint" in find_problems(run_show, bundle)[0]


def test_plan_that_was_changed_is_found_by_its_hash(run_show: Show, bundle: Path):
    write_engine(bundle).write_bytes(b"another plan")
    assert "is not what was built" in find_problems(run_show, bundle)[0]


def test_engine_without_a_record_is_a_problem(run_show: Show, bundle: Path):
    engine = write_engine(bundle)
    engine.with_suffix(".json").unlink()
    assert "has no record beside it" in find_problems(run_show, engine)[0]


def test_engine_of_another_export_is_noted_and_no_problem(run_show: Show, bundle: Path):
    write_engine(bundle, onnx_sha256={"model": "0" * 64})
    status, text, _ = run_show(bundle)
    assert status == EXIT_DONE
    assert "was built from another export" in text


# --------------------------------------------------------------------------------------- two paths


def test_bundle_does_not_differ_from_its_copy(run_show: Show, bundle: Path, tmp_path: Path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    status, text, _ = run_show(bundle, copy, "--json")
    differences = json.loads(text)["differences"]
    assert status == EXIT_DONE
    assert differences["files"] == [{"names": ["model.fp32.onnx"] * 2, "is_same": True}]
    assert not any(differences[name] for name in ("manifest", "engines", "proof", "only_first"))


def test_weight_that_differs_is_named_with_the_largest_difference(
    run_show: Show, bundle: Path, tmp_path: Path
):
    other = Path(shutil.copy(bundle / "model.fp32.onnx", tmp_path / "other.onnx"))
    change_weight(other, "base_scores", 0.25)
    status, text, _ = run_show(bundle / "model.fp32.onnx", other, "--json")
    weights = json.loads(text)["differences"]["files"][0]["weights"]
    assert status == EXIT_DONE
    assert [row["name"] for row in weights["changed"]] == ["base_scores"]
    assert weights["changed"][0]["max_difference"] == pytest.approx(0.25)
    assert weights["num_same"] == len(onnx.load(other).graph.initializer) - 1


def test_exports_of_two_sizes_differ_in_manifest_contract_and_weights(
    run_show: Show, bundle: Path, tmp_path: Path
):
    from runtime.contract.manifest import InputGeometry

    other = write_tiny_bundle(tmp_path / "wide", geometry=InputGeometry(48, 96))
    _, text, _ = run_show(bundle, other, "--json")
    differences = json.loads(text)["differences"]
    assert [row["name"] for row in differences["manifest"]] == ["geometry.width"]
    pair = differences["files"][0]
    assert [row["name"] for row in pair["contract"]] == ["input image"]
    shapes = {row["name"]: row["shapes"] for row in pair["weights"]["changed"]}
    assert shapes["x_near"] == [[1, 1, 64, 1], [1, 1, 96, 1]]


def test_file_of_one_side_only_is_listed(run_show: Show, bundle: Path, tmp_path: Path):
    other = write_tiny_bundle(tmp_path / "two", cpu_precisions=("fp32",))
    _, text, _ = run_show(bundle, other)
    assert "only in the second: model.fp32.cpu.onnx" in text


def test_precisions_of_one_model_are_compared_weight_by_weight(run_show: Show, tmp_path: Path):
    """Rounding is all that differs; a copy in half has another name and is found all the same."""
    fp32, fp16 = tmp_path / "fp32.onnx", tmp_path / "fp16.onnx"
    onnx.save(make_detector(), fp32)
    onnx.save(make_detector(is_half=True), fp16)
    _, text, _ = run_show(fp32, fp16, "--json")
    pair = json.loads(text)["differences"]["files"][0]
    assert pair["shares"] == [{"fp32": 1.0}, {"fp16": 1.0}]
    assert pair["nodes"]["Cast"][1] > pair["nodes"]["Cast"][0]
    weights = pair["weights"]
    assert not weights["only_first"] + weights["only_second"]
    assert {tuple(row["types"]) for row in weights["changed"]} == {("float32", "float16")}
    largest = {
        tensor.name: np.abs(numpy_helper.to_array(tensor)).max()
        for tensor in onnx.load(fp32).graph.initializer
    }
    assert all(
        row["max_difference"] <= HALF_STEP * largest[row["name"]] + HALF_LEAST
        for row in weights["changed"]
    )


def test_infinite_difference_is_no_number_of_json(tmp_path: Path, bundle: Path, run_show: Show):
    other = Path(shutil.copy(bundle / "model.fp32.onnx", tmp_path / "other.onnx"))
    change_weight(other, "base_scores", np.inf)
    _, text, _ = run_show(bundle / "model.fp32.onnx", other, "--json")
    changed = json.loads(text)["differences"]["files"][0]["weights"]["changed"]
    assert changed[0]["max_difference"] is None


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: folder / "nothing", "does not exist"),
        (lambda folder: folder, "has no manifest.json"),
        (lambda folder: _write(folder / "notes.txt", b"x"), "is a .txt file"),
        (lambda folder: _write(folder / "empty.onnx", b""), "is no ONNX file or is damaged"),
        (lambda folder: _write(folder / "cut.onnx", b"\x08\x09\x3a\xff"), "is no ONNX file"),
    ],
    ids=["missing", "no bundle", "text", "empty", "cut short"],
)
def test_bad_input_is_one_line_and_status_2(
    run_show: Show, tmp_path: Path, make: Callable[[Path], Path], told: str
):
    status, out, err = run_show(make(tmp_path))
    assert status == EXIT_BAD_INPUT
    assert out == ""
    assert told in err
    assert len(err.splitlines()) == 1


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_damaged_manifest_is_bad_input(run_show: Show, bundle: Path):
    (bundle / MANIFEST_NAME).write_text("{")
    status, _, err = run_show(bundle)
    assert status == EXIT_BAD_INPUT
    assert "is not JSON" in err
