"""Bundles: what stands in them, and that a failing export leaves what was there as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tiny_models import CATEGORY_IDS, CLASSES, SIZE_HW, tiny_model, tiny_spec

import export.bundling
import export.graph.storage
from export.bundling import (
    NUM_SAMPLES,
    ExportOptions,
    find_checkpoint,
    torch_results,
    with_fitting_candidates,
    write_bundle,
)
from runtime.contract.bundle import Bundle, hash_file
from runtime.contract.errors import BundleError, SinkError
from runtime.contract.manifest import MANIFEST_NAME
from runtime.contract.outputs import OUTPUTS
from runtime.sessions import open_session
from training.errors import CheckpointError
from training.loop.checkpoint import file_sha256, load_release

BOX_PX = 0.05
FULL_DISK = OSError(28, "No space left on device")


def options(checkpoint: Path, out: Path, discs: Path, **changes: object) -> ExportOptions:
    given = {"model": "retinanet", "variant": None, "size_hw": None, "data": str(discs)}
    given["precisions"] = ("fp32",)
    return ExportOptions(checkpoint=checkpoint, out=out, **given | changes)


def quietly(line: str) -> None:
    """Take a line of progress and show it to nobody."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------ what stands in it


def test_bundle_holds_its_graphs_manifest_and_samples_and_nothing_else(written_bundle: Path):
    assert sorted(p.name for p in written_bundle.iterdir()) == [
        "manifest.json", "model.fp32.onnx", "model.fp32.plugin.onnx", "samples.npz",
    ]  # fmt: skip


def test_manifest_says_what_the_checkpoint_is(written_bundle: Path, tiny_checkpoint: Path):
    manifest = Bundle.open(written_bundle).manifest
    assert (manifest.task, manifest.variant) == ("detection", "small")
    assert (manifest.classes, manifest.category_ids) == (CLASSES, CATEGORY_IDS)
    assert (manifest.geometry.height, manifest.geometry.width) == SIZE_HW
    assert manifest.training["checkpoint_sha256"] == file_sha256(tiny_checkpoint)
    assert manifest.scores == {"AP": 0.5}
    assert manifest.defaults.score_threshold == 0.02


def test_hash_of_every_graph_stands_in_the_manifest(written_bundle: Path):
    graph = Bundle.open(written_bundle).manifest.graphs["model"]
    names = {*graph.files.values(), *graph.plugin_files.values()}
    assert graph.sha256 == {name: hash_file(written_bundle / name) for name in names}


def test_bundle_runs_and_answers_as_its_samples_say(written_bundle: Path):
    bundle = Bundle.open(written_bundle)
    samples = bundle.samples()
    session = open_session(bundle, "onnxruntime", "fp32", device="cpu")
    assert 0 < len(samples) <= NUM_SAMPLES
    assert samples.results["num_detections"].min() > 0
    for index in range(len(samples)):
        found = session.run({k: v[index : index + 1] for k, v in samples.feeds.items()})
        count = int(samples.results["num_detections"][index])
        assert int(found["num_detections"][0]) == count
        error = found["boxes_xyxy"][0, :count] - samples.results["boxes_xyxy"][index, :count]
        assert np.abs(error).max() <= BOX_PX
    session.close()


def test_single_file_carries_the_manifest_and_runs_alone(written_bundle: Path, tmp_path: Path):
    alone = tmp_path / "renamed.onnx"
    alone.write_bytes((written_bundle / "model.fp32.onnx").read_bytes())
    bundle = Bundle.open(alone)
    assert bundle.manifest.classes == CLASSES
    assert bundle.manifest.scores == {}
    open_session(bundle, "onnxruntime", "fp32", device="cpu").close()


def test_graph_names_no_file_of_this_machine(written_bundle: Path):
    data = (written_bundle / "model.fp32.onnx").read_bytes()
    assert b"site-packages" not in data
    assert str(Path(export.bundling.__file__).parents[1]).encode() not in data


def test_torch_results_of_several_frames_are_those_of_each(written_bundle: Path, tiny_checkpoint):
    samples = Bundle.open(written_bundle).samples()
    one = torch_results(
        load_release(tiny_checkpoint)[0], {k: v[2:3] for k, v in samples.feeds.items()}
    )
    for spec in OUTPUTS["detection"]:
        assert np.array_equal(one[spec.name], samples.results[spec.name][2:3])


def test_large_weights_go_to_one_file_that_both_graphs_share(
    tiny_checkpoint, discs, written_bundle, tmp_path, quick_trace, monkeypatch
):
    monkeypatch.setattr(export.graph.storage, "EXTERNAL_LIMIT_BYTES", 1000)
    out = tmp_path / "large"
    write_bundle(options(tiny_checkpoint, out, discs), quietly)
    files = {p.name: p.stat().st_size for p in out.iterdir()}
    small = (written_bundle / "model.fp32.onnx").stat().st_size
    assert files["model.fp32.weights"] > 100_000
    assert files["model.fp32.onnx"] < small - 100_000
    assert files["model.fp32.plugin.onnx"] < small - 100_000
    bundle = Bundle.open(out)
    feeds = {k: v[:1] for k, v in bundle.samples().feeds.items()}
    answers = []
    for kind in ("portable", "plugin"):
        path = bundle.file("model", "fp32", kind)  # checks the hash of the weights too
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        answers.append(session.run(None, feeds))
    assert all(np.array_equal(a, b) for a, b in zip(*answers, strict=True))
    (out / "model.fp32.weights").write_bytes(b"\0" * files["model.fp32.weights"])
    with pytest.raises(BundleError, match="sha256"):
        Bundle.open(out).file("model", "fp32")


# --------------------------------------------------------------------------------- what is refused


def foreign_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_text(json.dumps({"manifest_version": 3, "name": "extension"}))


def no_json(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_text("{")


def other_files(folder: Path) -> None:
    (folder / "thesis.tex").write_text("years of work")


@pytest.mark.parametrize("fill", [foreign_manifest, no_json, other_files])
def test_folder_that_is_no_bundle_is_refused_and_kept(fill, tiny_checkpoint, discs, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    fill(out)
    before = contents(tmp_path)
    with pytest.raises(BundleError, match="is no bundle; nothing was changed"):
        write_bundle(options(tiny_checkpoint, out, discs), quietly)
    assert contents(tmp_path) == before


def test_file_in_the_place_of_the_bundle_is_refused_and_kept(tiny_checkpoint, discs, tmp_path):
    out = tmp_path / "mine"
    out.write_text("text")
    with pytest.raises(BundleError, match="is no bundle"):
        write_bundle(options(tiny_checkpoint, out, discs), quietly)
    assert out.read_text() == "text"


@pytest.mark.parametrize("place", ["trace", "write_files", "make_samples"])
def test_failing_export_leaves_the_old_bundle_as_it_was(
    place, tiny_checkpoint, discs, tiny_exported, quick_trace, monkeypatch
):
    before = contents(tiny_exported.parent)

    def fail(*_: object, **__: object) -> None:
        raise FULL_DISK

    monkeypatch.setattr(export.bundling, place, fail)
    with pytest.raises((OSError, SinkError), match="No space left"):
        write_bundle(options(tiny_checkpoint, tiny_exported, discs), quietly)
    assert contents(tiny_exported.parent) == before


def test_new_bundle_takes_the_place_of_the_old_one(
    tiny_checkpoint, discs, tiny_exported, quick_trace
):
    (tiny_exported / "engines").mkdir()
    (tiny_exported / "engines" / "old.engine").write_text("of the old graph")
    write_bundle(options(tiny_checkpoint, tiny_exported, discs), quietly)
    assert not (tiny_exported / "engines").exists()
    assert list(tiny_exported.parent.iterdir()) == [tiny_exported]
    assert Bundle.open(tiny_exported).file("model", "fp32").is_file()


def test_checkpoint_of_another_variant_is_refused(tiny_checkpoint, discs, tmp_path):
    wanted = options(tiny_checkpoint, tmp_path / "out", discs, variant="r50")
    with pytest.raises(BundleError, match="variant 'small'; expected 'r50'"):
        write_bundle(wanted, quietly)
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_that_is_not_shipped_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(export.bundling, "shipped_checkpoint", lambda *_: tmp_path / "none")
    given = options(None, tmp_path / "out", tmp_path)
    with pytest.raises(BundleError, match="expected --checkpoint FILE.*training/train.py"):
        find_checkpoint(given)


def test_missing_checkpoint_is_refused_before_anything_is_written(discs, tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        write_bundle(options(tmp_path / "no.safetensors", tmp_path / "out", discs), quietly)
    assert list(tmp_path.iterdir()) == []


def test_candidates_are_no_more_than_the_head_has_pairs():
    model = tiny_model(spec=tiny_spec(classes=("one",), category_ids=(1,)))
    assert with_fitting_candidates(model).num_candidates == 8 * 12 + 4 * 6 + 2 * 3 + 2 + 1
    assert with_fitting_candidates(tiny_model()).num_candidates == 300
