"""Faults in manifest, files, samples and engines, and which of load, lint, audit and proof sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_bench import COLOURS, colour_bundle
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from onnx import TensorProto, helper
from planting import (
    FAILED,
    FILES,
    FIRST,
    GRAPH,
    REFUSED,
    Change,
    add_constant,
    artifacts,
    change_manifest,
    layer_is_four_times,
    plant,
    put_before_output,
    put_behind,
    read_manifest,
    reasons_of,
    rehash,
    replace_graph,
    set_value,
    value_of,
    verify,
)
from tiny_models import CATEGORY_IDS, CLASSES, SIZE_HW

from export.graph import storage
from export.precision.writing import write_files
from export.proof.files import find_file_fault
from runtime.contract.bundle import Bundle
from runtime.contract.errors import BundleError, ManifestError, SessionError
from runtime.contract.manifest import METADATA_KEY
from runtime.contract.samples import SAMPLES_NAME, Samples, write_samples
from runtime.engines.cache import find_or_build
from runtime.engines.check import find_faults
from runtime.engines.fingerprint import Device
from runtime.engines.flavour import make_flavour
from runtime.sessions import open_session

# --------------------------------------------------------------------------------- in the manifest


def swapped(values: tuple) -> list:
    return [values[1], values[0], *values[2:]]


def geometry_with(**changes: object) -> Callable[[Path], dict]:
    return lambda bundle: {"geometry": read_manifest(bundle)["geometry"] | changes}


IN_MANIFEST: dict[str, tuple[Callable[[Path], dict], str]] = {
    "class names swapped": (
        lambda _: {"classes": swapped(CLASSES)},
        "manifest classes is ('green', 'pink', 'blue'); the checkpoint has ('pink', 'green'",
    ),
    "category ids": (
        lambda _: {"category_ids": [1, 2, 3]},
        f"manifest category_ids is (1, 2, 3); the checkpoint has {CATEGORY_IDS}",
    ),
    "alignment": (geometry_with(alignment="top_left"), "differs from training's"),
    "pad value": (geometry_with(pad_value=113), "differs from training's"),
    "resize": (geometry_with(resize="stretch"), "differs from training's"),
    "height": (
        geometry_with(height=SIZE_HW[0] + 32),
        "input 'image' is uint8 (B, 64, 96, 3); the manifest has uint8 (B, 96, 96, 3)",
    ),
    "width off by one": (
        geometry_with(width=SIZE_HW[1] - 1),
        "input 'image' is uint8 (B, 64, 96, 3); the manifest has uint8 (B, 64, 95, 3)",
    ),
    "rows": (
        lambda _: {"max_detections": 50},
        "output 'boxes_xyxy' is float32 (B, 100, 4); the manifest has float32 (B, 50, 4)",
    ),
}


@pytest.mark.parametrize("fault", IN_MANIFEST)
def test_proof_names_the_field_of_the_manifest(
    fault, tiny_exported, tiny_checkpoint, discs, one_backend
):
    change, says = IN_MANIFEST[fault]
    change_manifest(tiny_exported, **change(tiny_exported))
    reasons = reasons_of(tiny_exported, tiny_checkpoint, discs)
    assert any(says in reason for reason in reasons), reasons


def test_newer_manifest_is_refused_at_load(tiny_exported):
    change_manifest(tiny_exported, schema=2)
    with pytest.raises(ManifestError, match="schema 2; this runtime reads up to 1. Upgrade"):
        Bundle.open(tiny_exported)


# ------------------------------------------------------------------------------------ in the files


def swap_outputs(one: str, other: str) -> Change:
    def change(graph: GRAPH) -> None:
        names = {one: other, other: one}
        for node in graph.node:
            node.output[:] = [names.get(name, name) for name in node.output]
        for info in graph.output:
            info.name = names.get(info.name, info.name)

    return change


def slice_rows(graph: GRAPH) -> None:
    ends = [add_constant(graph, f"cut{i}", [v], "int64") for i, v in enumerate((0, 50, 1))]
    node = helper.make_node("Slice", ["scores.own", *ends], ["scores"], "cut_rows")
    put_before_output(graph, "scores", node)
    info = next(each for each in graph.output if each.name == "scores")
    info.type.tensor_type.shape.dim[1].dim_value = 50


def cut_off(graph: GRAPH) -> None:
    """The graph keeps the input; nothing reads it."""
    add_constant(graph, "always.p", [0.5])
    for node in graph.node:
        node.input[:] = ["always.p" if name == "iou_threshold" else name for name in node.input]


def no_number(graph: GRAPH) -> None:
    value = value_of(graph, FIRST)
    value[0, 0, 0, 0] = np.nan
    set_value(graph, FIRST, value)


def int32_bias(graph: GRAPH) -> None:
    name = "model.scores.predict.bias"
    steps = np.round(value_of(graph, name) / 1e-4)
    whole = add_constant(graph, "bias.int32", steps, "int32")
    scale = add_constant(graph, "bias.scale", 1e-4)
    node = helper.make_node("DequantizeLinear", [whole, scale], ["bias.float"], "bias_of_int32")
    for each in graph.node:
        each.input[:] = ["bias.float" if read == name else read for read in each.input]
    graph.node.insert(0, node)


def uint8_arithmetic(graph: GRAPH) -> None:
    node = helper.make_node("Max", ["image", "image"], ["image.larger"], "max_of_bytes")
    put_behind(graph, "image", node)


def large_topk(graph: GRAPH) -> None:
    """The brightest values of the frame, which change nothing in the scores."""
    count, zero = add_constant(graph, "many.p", [3841], "int64"), add_constant(graph, "zero.p", 0)
    axis = add_constant(graph, "axis.p", [1], "int64")
    floats = next(node.output[0] for node in graph.node if "image" in node.input)
    put_before_output(
        graph,
        "scores",
        helper.make_node("Flatten", [floats], ["flat.p"], "flat", axis=1),
        helper.make_node("TopK", ["flat.p", count], ["top.p", "at.p"], "planted_topk", axis=1),
        helper.make_node("ReduceMax", ["top.p", axis], ["best.p"], "best", keepdims=1),
        helper.make_node("Mul", ["best.p", zero], ["nothing.p"], "nothing"),
        helper.make_node("Add", ["scores.own", "nothing.p"], ["scores"], "add_nothing"),
    )


IN_FILES: dict[str, tuple[Change, str]] = {
    "scores and boxes swapped": (
        swap_outputs("scores", "boxes_xyxy"),
        "output 'boxes_xyxy' is float32 (B, 100); the manifest has float32 (B, 100, 4)",
    ),
    "classes and count swapped": (
        swap_outputs("classes", "num_detections"),
        "output 'num_detections' is int32 (B, 100); the manifest has int32 (B)",
    ),
    "output renamed": (
        swap_outputs("scores", "probabilities"),
        "has the outputs num_detections, boxes_xyxy, probabilities, classes; the manifest has",
    ),
    "rows cut": (slice_rows, "output 'scores' is float32 (B, 50); the manifest has float32 (B, 10"),
    "threshold not connected": (cut_off, "breaks rule unread-input at 'iou_threshold'"),
    "not a number": (no_number, f"breaks rule finite at '{FIRST}'"),
    "int32 bias": (int32_bias, "breaks rule int32-bias at 'bias_of_int32'"),
    "arithmetic on bytes": (uint8_arithmetic, "Max reads 'image'; TensorRT allows Cast only"),
    "topk over the limit": (large_topk, "rule topk-limit at 'planted_topk': K = 3841"),
}


@pytest.mark.parametrize("fault", IN_FILES)
def test_file_itself_is_refused_before_it_runs(
    fault, tiny_exported, tiny_checkpoint, discs, one_backend
):
    change, says = IN_FILES[fault]
    plant(tiny_exported, change, FILES[:1])
    assert says in find_file_fault(Bundle.open(tiny_exported), "fp32")
    (reason,) = reasons_of(tiny_exported, tiny_checkpoint, discs)
    assert reason.startswith("model.fp32.onnx: ")


def test_export_of_weights_that_are_no_numbers_is_refused(written_bundle, tmp_path):
    base = onnx.load(written_bundle / FILES[1])
    del base.functions[:]
    no_number(base.graph)
    manifest = Bundle.open(written_bundle).manifest
    with pytest.raises(BundleError, match=f"would break rule finite at '{FIRST}'"):
        write_files(base, "model", manifest, tmp_path)


def test_file_of_another_checkpoint_is_named_with_both_hashes(tiny_exported):
    path = tiny_exported / FILES[0]
    proto = onnx.load(path)
    text = next(p.value for p in proto.metadata_props if p.key == METADATA_KEY)
    ours = json.loads(text)["training"]["checkpoint_sha256"]
    storage.set_metadata(proto, {METADATA_KEY: text.replace(ours, "ab" * 32)})
    path.write_bytes(proto.SerializeToString())
    rehash(tiny_exported, path.name)
    fault = find_file_fault(Bundle.open(tiny_exported), "fp32")
    assert f"was exported from a checkpoint with sha256 {'ab' * 32}; the manifest says" in fault
    assert ours in fault


def test_plugin_file_of_other_weights_is_named(tiny_exported):
    plant(tiny_exported, layer_is_four_times, FILES[1:])
    fault = find_file_fault(Bundle.open(tiny_exported), "fp32")
    assert "layer2.0.conv2.weight is not that of the portable file" in fault


def test_bundle_of_another_checkpoint_is_refused(tiny_exported, tiny_checkpoint, discs):
    training = read_manifest(tiny_exported)["training"] | {"checkpoint_sha256": "ab" * 32}
    change_manifest(tiny_exported, training=training)
    done = verify(tiny_exported, tiny_checkpoint, discs)
    assert done.returncode == REFUSED
    assert f"exported from a checkpoint with sha256 {'ab' * 32}" in done.stderr


# ------------------------------------------------------------------------------- external weights


@pytest.fixture
def external(written_bundle, tmp_path, monkeypatch) -> Path:
    """The tiny bundle with its weights in a file of their own."""
    monkeypatch.setattr(storage, "EXTERNAL_LIMIT_BYTES", 0)
    base = onnx.load(written_bundle / FILES[1])
    del base.functions[:]
    (tmp_path / "manifest.json").write_text((written_bundle / "manifest.json").read_text())
    graph = write_files(base, "model", Bundle.open(written_bundle).manifest, tmp_path)
    graphs = read_manifest(tmp_path)["graphs"]
    graphs["model"]["sha256"] = graph.sha256
    change_manifest(tmp_path, graphs=graphs)
    weights = tmp_path / "model.fp32.weights"
    weights.write_bytes(weights.read_bytes()[:-5000])
    return tmp_path


def test_weights_that_were_cut_short_are_refused_at_load(external):
    with pytest.raises(BundleError, match=r"model.fp32.weights has sha256 .*cut short"):
        open_session(Bundle.open(external), "onnxruntime", "fp32", device="cpu")


def test_cut_weights_of_the_right_hash_are_refused_by_the_backend_and_named(external):
    rehash(external, "model.fp32.weights")
    with pytest.raises(SessionError, match="ONNX Runtime refuses .*model.fp32.onnx"):
        open_session(Bundle.open(external), "onnxruntime", "fp32", device="cpu")
    fault = find_file_fault(Bundle.open(external), "fp32")
    assert fault.startswith("model.fp32.onnx: its weights cannot be read")


# --------------------------------------------------------------------------------------- precision


def leave_in_float32(graph: GRAPH) -> None:
    """One convolution of the half trunk, its weights and bias in float32 between two casts."""
    name = "model.backbone.layer2.0.conv2.weight.half"
    conv = next(n for n in graph.node if n.op_type == "Conv" and n.input[1] == name)
    for place in (1, 2):
        value = value_of(graph, conv.input[place])
        conv.input[place] = add_constant(graph, f"wide{place}", value)
    result = conv.output[0]
    narrow = helper.make_node("Cast", ["wide"], [result], "narrow", to=TensorProto.FLOAT16)
    widen = helper.make_node("Cast", [conv.input[0]], ["wide0"], "widen", to=TensorProto.FLOAT)
    conv.input[0], conv.output[0], conv.name = "wide0", "wide", "left_over"
    place = next(i for i, n in enumerate(graph.node) if n.name == "left_over")
    graph.node.insert(place + 1, narrow)
    graph.node.insert(place, widen)
    kept = [info for info in graph.value_info if info.name != result]
    del graph.value_info[:]
    graph.value_info.extend(kept)


@pytest.mark.parametrize("name", ["model.fp16.onnx", "model.fp16.plugin.onnx"])
def test_layer_left_in_float32_is_named(name, both_to_change):
    replace_graph(both_to_change, leave_in_float32, name)
    fault = find_file_fault(Bundle.open(both_to_change), "fp16")
    assert fault.startswith(f"{name}: left_over computes in float32 although half holds")


def test_half_files_that_are_right_have_no_fault(both):
    assert find_file_fault(Bundle.open(both), "fp16") == ""


def test_float32_file_under_the_name_of_fp16_fails_the_proof(
    both_to_change, tiny_checkpoint, discs, one_backend
):
    wrong = both_to_change / "model.fp16.onnx"
    wrong.write_bytes((both_to_change / FILES[0]).read_bytes())
    rehash(both_to_change, wrong.name)
    assert verify(both_to_change, tiny_checkpoint, discs).returncode == FAILED
    exact, half = artifacts(both_to_change)
    assert exact["verdict"] == "pass"
    assert half["reasons"] == [
        "model.fp16.onnx: 0% of its weights are half, expected 50% to 100% of fp16. Export again."
    ]


# ----------------------------------------------------------------------------------------- samples


def tamper(folder: Path, **changes: Callable[[np.ndarray], np.ndarray]) -> Samples:
    """Change arrays of samples.npz by their names."""
    samples = Bundle.open(folder).samples()
    for arrays in (samples.feeds, samples.results):
        for name in arrays.keys() & changes.keys():
            arrays[name] = changes[name](arrays[name])
    write_samples(folder / SAMPLES_NAME, {"model": samples})
    return samples


IN_SAMPLES = {
    "boxes": ({"boxes_xyxy": lambda a: a + np.float32(0.2)}, "box error 0.2 px (max) > 0.05 px"),
    "scores": ({"scores": lambda a: a * np.float32(0.9)}, "score error"),
    "thresholds": ({"iou_threshold": lambda a: np.full_like(a, 0.3)}, "results unmatched"),
}


@pytest.mark.parametrize("fault", IN_SAMPLES)
def test_tampered_samples_are_seen_by_the_proof_and_by_the_check_of_an_engine(
    fault, tiny_exported, tiny_checkpoint, discs, one_backend
):
    changes, says = IN_SAMPLES[fault]
    samples = tamper(tiny_exported, **changes)
    session = open_session(Bundle.open(tiny_exported), "onnxruntime", "fp32", device="cpu")
    assert any(says in reason for reason in find_faults(session, "model", samples))
    session.close()
    reasons = reasons_of(tiny_exported, tiny_checkpoint, discs)
    assert all(r.startswith("the samples are not PyTorch's results: ") for r in reasons), reasons
    assert any(says in reason for reason in reasons), reasons


def test_samples_of_another_bundle_are_seen_by_the_proof(
    tiny_exported, tiny_checkpoint, discs, one_backend
):
    tamper(tiny_exported, score_threshold=lambda a: a[:, :2])
    (reason,) = reasons_of(tiny_exported, tiny_checkpoint, discs)
    assert reason.startswith("the samples' score_threshold is float32 (")


def test_samples_of_damaged_bytes_are_refused(tiny_exported):
    path = tiny_exported / SAMPLES_NAME
    data = bytearray(path.read_bytes())
    draw = np.random.default_rng(0)
    for place in draw.integers(200, len(data) - 200, 20):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"samples.npz is damaged.*Export the bundle again"):
        Bundle.open(tiny_exported).samples()


# ----------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize("ending", [".engine", ".json"])
def test_tampered_engine_is_built_anew_and_the_log_says_so(ending, tmp_path, caplog):
    bundle = colour_bundle(tmp_path)
    flavour = make_flavour("tensorrt", FakeTensorRT(FakeCuda(), {"model": COLOURS}))

    def build():
        return find_or_build(bundle, "model", "fp32", flavour, device=Device("Orin", "8.7"))

    path = build().path.with_suffix(ending)
    text = path.read_bytes()
    path.write_bytes(text.replace(b"Orin", b"Thor") if ending == ".json" else text + b"\0")
    assert build().is_new
    says = {".engine": "is not what was built", ".json": "was built for something else"}
    assert says[ending] in caplog.text
    assert not build().is_new
