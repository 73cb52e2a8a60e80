import dataclasses
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_bundle import CLASSES, find_colours, write_tiny_bundle
from tiny_video_bundle import write_tiny_video_bundle

import runtime
import runtime.contract.bundle
from runtime.contract.bundle import MAKING_SUFFIX, MOVED_SUFFIX, Bundle
from runtime.contract.errors import BundleError, ManifestError
from runtime.contract.manifest import METADATA_KEY, SCHEMA, Joints, Manifest
from runtime.contract.onnx_metadata import read_external_files, read_metadata

REFUSED_MANIFESTS = {
    "newer schema": ({"schema": SCHEMA + 1}, f"manifest schema {SCHEMA + 1}"),
    "schema of a wrong type": ({"schema": "one"}, "manifest schema 'one'"),
    "missing field": ({"task": None}, "lacks field 'task'"),
    "unknown field": ({"precisionz": []}, "did you mean 'precisions'? Export again."),
    "unknown field like no other": ({"xyz": 1}, "unknown field 'xyz'. Export again."),
    "threshold over one": ({"defaults": {"score_threshold": 1.5}}, "score_threshold 1.5; expected"),
    "threshold that is no number": ({"defaults": {"iou_threshold": float("nan")}}, "'iou_thresh"),
    "negative threshold": ({"defaults": {"iou_threshold": -0.1}}, "iou_threshold -0.1; expected 0"),
    "unknown type of an input": (
        {"inputs": [{"name": "image", "dtype": "floaty", "shape": ["B"]}]},
        "'image' has type 'floaty'; expected one of uint8",
    ),
    "file outside the folder": (
        {"graphs": {"model": {"files": {"fp32": "../a.onnx", "fp16": "b.onnx"}}}},
        "names '../a.onnx'; expected a file's name without a folder",
    ),
    "unknown task": ({"task": "telepathy"}, "task 'telepathy'"),
    "no classes": ({"classes": []}, "no classes"),
    "ids and classes differ": ({"category_ids": [1]}, "1 category_ids for 3 classes"),
    "geometry that is not ours": (
        {"geometry": {"height": 48, "width": 64, "colour": "rgb"}},
        "input uint8 rgb",
    ),
    "no graphs": ({"graphs": {}}, "no graphs"),
    "batch of none": ({"batches": [0]}, "batches (0,)"),
    "wrong type": ({"max_detections": "many"}, "wrong value for 'max_detections'"),
    "precision without a file": ({"precisions": ["fp32", "int8"]}, "no file for int8"),
}


@pytest.fixture
def folder(tmp_path):
    return write_tiny_bundle(tmp_path / "tiny", precisions=("fp32", "fp16"))


def edit_manifest(folder: Path, changes: dict) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    for name, value in changes.items():
        if value is None:
            del document[name]
        else:
            document[name] = value
    (folder / "manifest.json").write_text(json.dumps(document))


def test_manifest_survives_the_round_trip_through_json(folder):
    manifest = Bundle.open(folder).manifest
    joints = Joints(("nose", "tail"), ((0, 1),), ((0, 0),), (0.1, 0.2))
    rich = dataclasses.replace(manifest, joints=joints, scores={"street val AP": 0.5})
    assert Manifest.from_json(rich.to_json(), origin="here") == rich


@pytest.mark.parametrize(("changes", "message"), REFUSED_MANIFESTS.values(), ids=REFUSED_MANIFESTS)
def test_manifest_is_refused_with_the_reason(folder, changes, message):
    edit_manifest(folder, changes)
    with pytest.raises(ManifestError) as caught:
        Bundle.open(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG_VALUES = (None, True, "x", 7, 0.5, float("nan"), [], {}, [None], [["x"]], {"x": None})


def places_in(node: object) -> list[tuple]:
    """Paths to every value of a JSON document but the whole."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    found = []
    for key, value in pairs:
        found.append((key,))
        if isinstance(value, (dict, list)):
            found += [(key, *rest) for rest in places_in(value)]
    return found


def test_wrong_value_anywhere_is_read_or_refused_in_one_line(folder):
    """Every value of a rich manifest, replaced by values of every JSON type."""
    joints = Joints(("nose", "tail"), ((0, 1),), ((0, 0),), (0.1, 0.2))
    rich = dataclasses.replace(
        Bundle.open(folder).manifest,
        joints=joints,
        scores={"AP": 0.5},
        state={"a": "b"},
        training={"data": "street"},
    )
    text = rich.to_json()
    refusals = []
    for place in places_in(json.loads(text)):
        for wrong in WRONG_VALUES:
            document = json.loads(text)
            owner = document
            for key in place[:-1]:
                owner = owner[key]
            owner[place[-1]] = wrong
            try:
                manifest = Manifest.from_json(json.dumps(document), origin="manifest.json")
                manifest.sizes(1)
            except ManifestError as error:
                refusals.append(str(error))
    assert len(refusals) > 500
    assert [line for line in refusals if "\n" in line or not line.endswith(".")] == []


@pytest.mark.parametrize("text", ["{", "[]", "", "\ufeff{}"], ids=["cut", "list", "empty", "bom"])
def test_manifest_that_is_no_json_object_is_refused(folder, text):
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        Bundle.open(folder)


def test_bundle_gives_the_file_that_the_manifest_names(folder):
    assert Bundle.open(folder).file("model", "fp16").name == "model.fp16.onnx"


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere", "does not exist"), (".", "has no manifest.json")],
    ids=["absent", "a folder of something else"],
)
def test_bundle_that_is_none_is_refused(tmp_path, path, message):
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path / path)


def test_bundle_refuses_a_changed_file_and_names_both_hashes(folder):
    expected = Bundle.open(folder).manifest.graphs["model"].sha256["model.fp32.onnx"]
    path = folder / "model.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder).file("model", "fp32")
    message = str(caught.value)
    assert expected in message
    assert len([word for word in message.split() if len(word.strip(".;")) == 64]) == 2
    assert "model.fp32.onnx" in message


def test_bundle_hashes_a_file_only_once(folder):
    bundle = Bundle.open(folder)
    path = bundle.file("model", "fp32")
    path.write_bytes(b"changed behind our back")
    assert bundle.file("model", "fp32") == path


def test_bundle_refuses_a_missing_file(folder):
    (folder / "model.fp32.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx is missing"):
        Bundle.open(folder).file("model", "fp32")


def test_bundle_refuses_a_file_whose_hash_the_manifest_lacks(folder):
    edit_manifest(
        folder,
        {"graphs": {"model": {"files": {p: f"model.{p}.onnx" for p in ("fp32", "fp16")}}}},
    )
    with pytest.raises(BundleError, match="no sha256"):
        Bundle.open(folder).file("model", "fp32")


def test_bundle_refuses_missing_external_data(tmp_path):
    folder = write_tiny_bundle(tmp_path, has_external_data=True)
    (folder / "weights.bin").unlink()
    with pytest.raises(BundleError, match=r"weights\.bin is missing"):
        Bundle.open(folder).file("model", "fp32")


def test_bundle_refuses_changed_external_data(tmp_path):
    folder = write_tiny_bundle(tmp_path, has_external_data=True)
    data = bytearray((folder / "weights.bin").read_bytes())
    data[0] ^= 1
    (folder / "weights.bin").write_bytes(data)
    with pytest.raises(BundleError, match=r"weights\.bin has sha256"):
        Bundle.open(folder).file("model", "fp32")


def test_bundle_accepts_external_data_that_is_whole(tmp_path):
    folder = write_tiny_bundle(tmp_path, has_external_data=True)
    assert read_external_files(Bundle.open(folder).file("model", "fp32")) == ("weights.bin",)


def test_external_data_outside_the_folder_is_refused(tmp_path):
    path = write_tiny_bundle(tmp_path, has_external_data=True) / "model.fp32.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../etc/passwd"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="outside its folder"):
        read_external_files(path)


def test_bundle_names_what_it_has_when_asked_for_another_precision(folder):
    with pytest.raises(BundleError, match="it has fp32, fp16"):
        Bundle.open(folder).file("model", "int8")


def test_samples_hold_feeds_and_results_of_every_image(folder):
    samples = Bundle.open(folder).samples()
    assert len(samples) == 4
    expected = find_colours(samples.feeds["image"], samples.feeds["score_threshold"])
    for name, array in expected.items():
        np.testing.assert_array_equal(samples.results[name], array)


def test_samples_are_none_where_the_bundle_has_none(tmp_path):
    assert Bundle.open(write_tiny_bundle(tmp_path, num_samples=0)).samples() is None


def test_samples_that_are_damaged_are_refused(folder):
    (folder / "samples.npz").write_bytes(b"PK not an archive")
    with pytest.raises(BundleError, match=r"samples\.npz is damaged"):
        Bundle.open(folder).samples()


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (None, "not run"),
        ({("fp32", "openvino"): "fail"}, "fail"),
        ({("fp32", "openvino"): "pass", ("fp16", "openvino"): "fail"}, "pass"),
        ({("fp32", "onnxruntime"): "pass"}, "not run"),
    ],
    ids=["no proof", "fail", "pass beside another's fail", "another backend's"],
)
def test_verdict_is_that_of_the_precision_and_backend(tmp_path, verdicts, expected):
    folder = write_tiny_bundle(tmp_path, verdicts=verdicts)
    assert Bundle.open(folder).verdict("fp32", "openvino") == expected


def test_verify_json_that_is_damaged_is_refused(folder):
    (folder / "verify.json").write_text('{"schema": 1, "artifacts": [{"verdict": "fine"}]}')
    with pytest.raises(BundleError, match=r"verify\.json is damaged"):
        Bundle.open(folder).verdict("fp32", "openvino")


def test_single_file_opens_by_the_manifest_it_carries(folder, tmp_path):
    alone = tmp_path / "renamed.onnx"
    shutil.copy(folder / "model.fp16.onnx", alone)
    bundle = Bundle.open(alone)
    assert bundle.manifest.classes == CLASSES
    assert bundle.manifest.precisions == ("fp16",)
    assert bundle.file("model", "fp16") == alone


def test_single_file_within_its_bundle_keeps_hashes_and_verdicts(tmp_path):
    folder = write_tiny_bundle(tmp_path, verdicts={("fp32", "openvino"): "fail"})
    bundle = Bundle.open(folder / "model.fp32.onnx")
    assert bundle.verdict("fp32", "openvino") == "fail"
    assert not bundle.is_single_file


def test_single_file_without_a_manifest_is_refused(folder, tmp_path):
    model = onnx.load(folder / "model.fp32.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(BundleError, match="carries no manifest"):
        Bundle.open(tmp_path / "bare.onnx")


def test_single_file_of_a_temporal_model_is_refused(tmp_path):
    folder = write_tiny_video_bundle(tmp_path)
    with pytest.raises(BundleError, match="needs all of them"):
        Bundle.open(folder / "key.fp32.onnx")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"this is no protobuf at all, it is a letter",
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
        lambda data: b"\xff" * 200,
    ],
    ids=["empty", "text", "cut in half", "zeros", "ones"],
)
def test_corrupt_onnx_is_refused_in_one_line(folder, tmp_path, damage):
    path = tmp_path / "corrupt.onnx"
    path.write_bytes(damage((folder / "model.fp32.onnx").read_bytes()))
    with pytest.raises(BundleError, match="no ONNX file or is damaged") as caught:
        Bundle.open(path)
    assert "\n" not in str(caught.value)


def test_metadata_is_what_onnx_reads(folder):
    path = folder / "model.fp32.onnx"
    expected = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert METADATA_KEY in expected
    assert read_metadata(path) == expected


def test_damage_anywhere_in_a_lone_file_is_read_or_refused_in_one_line(folder, tmp_path):
    """Bytes are changed, a few at a time; the last quarter holds the metadata."""
    whole = (folder / "model.fp32.onnx").read_bytes()
    path = tmp_path / "alone.onnx"
    draw = np.random.default_rng(0)
    refusals = []
    for _ in range(400):
        data = bytearray(whole)
        low = draw.choice([0, len(data) * 3 // 4])
        for place in draw.integers(low, len(data), 3):
            data[place] = draw.integers(256)
        path.write_bytes(bytes(data))
        try:
            bundle = Bundle.open(path)
            bundle.file("model", bundle.manifest.precisions[0])
        except BundleError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert [line for line in refusals if "\n" in line] == []


def test_file_that_may_not_be_read_is_refused_in_one_line(tmp_path):
    with pytest.raises(BundleError, match=r"cannot be read \(Is a directory\)"):
        read_metadata(tmp_path)


# ---------------------------------------------------------------------- while an export replaces it


def test_bundle_that_is_being_replaced_is_waited_for(folder):
    """An export's two renames, with a pause between them."""
    hidden = f".{folder.name}.abcdefgh"
    moved, new = (folder.with_name(hidden + suffix) for suffix in (MOVED_SUFFIX, MAKING_SUFFIX))
    shutil.copytree(folder, new)
    folder.rename(moved)
    timer = threading.Timer(0.2, lambda: new.rename(folder))
    timer.start()
    assert Bundle.open(folder).file("model", "fp32").is_file()
    timer.join()


def test_bundle_that_a_stopped_export_moved_away_is_named(folder, monkeypatch):
    monkeypatch.setattr(runtime.contract.bundle, "_SWAP_S", 0.1)
    moved = folder.rename(folder.with_name(f".{folder.name}.abcdefgh{MOVED_SUFFIX}"))
    with pytest.raises(BundleError, match=f"left the last one at {moved}: export again"):
        Bundle.open(folder)


def test_bundle_that_was_replaced_between_manifest_and_files_is_loaded_anew(tmp_path, monkeypatch):
    folder = write_tiny_bundle(tmp_path / "tiny")
    new = write_tiny_bundle(tmp_path / "new", base_scores={"model.fp32.onnx": (0.5, 0.4, 0.3)})
    manifest = json.loads((new / "manifest.json").read_text())
    (new / "manifest.json").write_text(json.dumps(manifest | {"created": "now"}))
    open_it = Bundle.open

    def replaced(path, **options):
        bundle = open_it(path, **options)
        if new.exists():
            shutil.rmtree(folder)
            new.rename(folder)
        return bundle

    monkeypatch.setattr(Bundle, "open", replaced)
    with runtime.load(folder, "onnxruntime", device="cpu") as predictor:
        assert predictor.manifest.created == "now"


def test_bundle_that_is_damaged_and_was_not_replaced_is_refused(folder):
    (folder / "model.fp32.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="sha256"):
        runtime.load(folder, "onnxruntime", "fp32", device="cpu")
