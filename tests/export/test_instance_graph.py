"""The graph of an instance model: masks of the kept rows, in float32, beside exact detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from tiny_instance import make_feeds, tiny_instances, write_instance_bundle

from export.graph.end_to_end import end_to_end, trace
from export.graph.lint import lint
from export.graph.masks import make_masks, to_bytes
from export.graph.operators import attach_functions
from export.graph.types_audit import audit_onnxruntime, audit_types
from export.graph.walking import walk
from export.precision.half import to_half
from runtime.contract.bundle import Bundle
from runtime.contract.outputs import OUTPUTS
from runtime.engines.openvino_layers import audit_openvino
from training.layers.prototypes import assemble_masks

Arrays = dict[str, np.ndarray]

NAMES = [spec.name for spec in OUTPUTS["instance"]]
BOX_PX, SCORE = 1e-3, 1e-5  # convolutions of two engines differ in the last bits
ONE_STEP = 1  # of 255: a value that lies between two bytes may be rounded to either


@pytest.fixture(scope="module")
def model():
    return tiny_instances()


@pytest.fixture(scope="module")
def traced(model) -> onnx.ModelProto:
    return trace(model)


@pytest.fixture(scope="module")
def portable(traced) -> onnx.ModelProto:
    return attach_functions(traced, early_exit=True, inline=True)


def run_torch(model, feeds: Arrays) -> Arrays:
    with torch.no_grad():
        outputs = end_to_end(model)(*(torch.from_numpy(value) for value in feeds.values()))
    return {name: value.numpy() for name, value in zip(NAMES, outputs, strict=True)}


def run_onnxruntime(graph: onnx.ModelProto, feeds: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return dict(zip(NAMES, session.run(NAMES, feeds), strict=True))


def compile_openvino(graph: onnx.ModelProto, feeds: Arrays, hint: str) -> openvino.CompiledModel:
    core = openvino.Core()
    network = core.read_model(graph.SerializeToString())
    network.reshape({name: list(array.shape) for name, array in feeds.items()})
    return core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": hint})


def assert_same(got: Arrays, expected: Arrays, mask_steps: int = ONE_STEP) -> None:
    assert np.array_equal(got["num_detections"], expected["num_detections"])
    assert np.array_equal(got["classes"], expected["classes"])
    np.testing.assert_allclose(got["boxes_xyxy"], expected["boxes_xyxy"], atol=BOX_PX)
    np.testing.assert_allclose(got["scores"], expected["scores"], atol=SCORE)
    assert got["masks"].dtype == np.uint8
    difference = np.abs(got["masks"].astype(int) - expected["masks"])
    assert difference.max() <= mask_steps


# ------------------------------------------------------------------------------------------- masks


def test_masks_are_those_of_the_kept_rows_in_their_order(model):
    """Each row on its own: the anchor found again by its box, then YOLACT's assembly in torch."""
    feeds = make_feeds(model, 3)
    found = run_torch(model, feeds)
    with torch.no_grad():
        raw = model(model.prepare(torch.from_numpy(feeds["image"])))
        candidates = model.candidates(raw)
        num_anchors = candidates.logits.shape[1]
        boxes = candidates.decode(torch.arange(num_anchors).expand(3, -1))
    assert (found["num_detections"] > 2).all()
    assert (found["num_detections"] < model.spec.max_detections).all()
    for row, count in enumerate(found["num_detections"]):
        kept = torch.from_numpy(found["boxes_xyxy"][row, :count])
        distances = (kept[:, None] - boxes[row]).abs().amax(dim=2)
        anchors = distances.argmin(dim=1)
        assert float(distances.amin(dim=1).max()) <= BOX_PX
        masks = assemble_masks(
            candidates.extras["coefficients"][row, anchors],
            candidates.maps["prototypes"][row],
            kept,
            model.spec.size_hw,
        )
        steps = np.abs(found["masks"][row, :count] - masks.numpy() * 255)
        assert steps.max() <= 0.5 + 1e-2
        is_inside = masks.numpy() >= 0.5
        assert 0.05 < is_inside.mean() < 0.95


def test_rows_of_padding_have_empty_masks(model):
    found = run_torch(model, make_feeds(model, 2))
    for row, count in enumerate(found["num_detections"]):
        assert count < model.spec.max_detections
        assert found["masks"][row, :count].any(axis=(1, 2)).all()
        assert not found["masks"][row, count:].any()


@pytest.mark.parametrize(
    ("box", "columns", "rows"),
    [
        ((8.0, 8.0, 16.0, 12.0), range(1, 5), range(1, 4)),
        ((9.0, 9.0, 15.0, 11.0), range(2, 5), range(2, 4)),
        ((0.0, 0.0, 24.0, 16.0), range(6), range(4)),
        ((6.0, 3.0, 6.0, 3.0), range(1, 3), range(2)),
        ((0.0, 0.0, 0.0, 0.0), range(1), range(1)),
    ],
    ids=["on-pixels", "between-pixels", "whole-frame", "point", "corner"],
)
def test_crop_reaches_one_prototype_pixel_beyond_the_box(box, columns, rows):
    """A frame of 16x24 pixels and prototypes of 4x6: column c is inside from x1 - 1 to x2 + 1."""
    ones = torch.ones(1, 1, 1), torch.full((1, 1, 4, 6), 20.0)
    boxes = torch.tensor([[box]])
    masks = to_bytes(make_masks(*ones, boxes, torch.ones(1, 1, dtype=torch.bool), (16, 24)))
    expected = np.zeros((4, 6), np.uint8)
    expected[np.ix_(list(rows), list(columns))] = 255
    assert np.array_equal(masks[0, 0].numpy(), expected)


def test_half_is_128_and_inside():
    zero = torch.zeros(1, 1, 1), torch.ones(1, 1, 2, 2)
    boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]])
    masks = to_bytes(make_masks(*zero, boxes, torch.ones(1, 1, dtype=torch.bool), (8, 8)))
    assert (masks == 128).all()


# ----------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("early_exit", [True, False], ids=["early_exit", "fixed_trips"])
def test_onnxruntime_and_openvino_find_what_torch_finds(model, traced, early_exit, batch):
    feeds = make_feeds(model, batch)
    expected = run_torch(model, feeds)
    graph = attach_functions(traced, early_exit=early_exit, inline=True)
    assert_same(run_onnxruntime(graph, feeds), expected)
    found = compile_openvino(graph, feeds, "f32")(feeds)
    assert_same(dict(zip(NAMES, map(np.array, found.values()), strict=True)), expected)


@pytest.mark.parametrize(("activation", "nms"), [("none", "fast"), ("sigmoid", "greedy")])
def test_suppression_and_activation_are_those_of_the_spec(activation, nms):
    model = tiny_instances(activation=activation, nms=nms)
    graph = trace(model)
    nodes = {node.op_type: node for node in graph.graph.node if node.domain == "kestrel"}
    values = {
        (kind, entry.name): onnx.helper.get_attribute_value(entry)
        for kind, node in nodes.items()
        for entry in node.attribute
    }
    assert values["KestrelSelect", "activation"] == activation.encode()
    assert values["KestrelNms", "method"] == nms.encode()
    feeds = make_feeds(model, 2)
    expected = run_torch(model, feeds)
    assert expected["num_detections"].min() > 2
    graph = attach_functions(graph, early_exit=True, inline=True)
    assert_same(run_onnxruntime(graph, feeds), expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("inline", [True, False], ids=["portable", "plugin"])
def test_graph_keeps_every_rule_of_the_lint(traced, precision, inline):
    base = to_half(traced) if precision == "fp16" else traced
    graph = attach_functions(base, early_exit=inline, inline=inline)
    assert lint(graph, target="portable" if inline else "plugin") == []
    masks = next(value for value in graph.graph.output if value.name == "masks")
    sides = [side.dim_param or side.dim_value for side in masks.type.tensor_type.shape.dim]
    assert sides == ["B", 30, 16, 24]


# --------------------------------------------------------------------------------------- precision


def types_of(graph: onnx.ModelProto) -> dict[str, int]:
    infos = (*graph.graph.value_info, *graph.graph.input, *graph.graph.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    return types | {tensor.name: tensor.data_type for tensor in graph.graph.initializer}


def test_product_of_the_masks_is_float32_in_a_half_graph_and_prototypes_are_half(traced):
    graph = to_half(traced)
    types = types_of(graph)
    (product,) = (node for node in graph.graph.node if node.op_type == "MatMul")
    assert {types[name] for name in (*product.input, *product.output)} == {onnx.TensorProto.FLOAT}
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 6
    assert {types[node.output[0]] for node in convolutions} == {onnx.TensorProto.FLOAT16}


def test_masks_in_half_are_a_finding_of_the_lint(traced):
    graph = to_half(traced)
    (product,) = (node for node in graph.graph.node if node.op_type == "MatMul")
    place = list(graph.graph.node).index(product)
    halves = [
        onnx.helper.make_node("Cast", [name], [f"{name}.h"], to=onnx.TensorProto.FLOAT16)
        for name in product.input
    ]
    back = onnx.helper.make_node(
        "Cast", ["product.h"], [product.output[0]], to=onnx.TensorProto.FLOAT
    )
    product.input[:] = [node.output[0] for node in halves]
    product.output[:] = ["product.h"]
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes[:place], *halves, nodes[place], back, *nodes[place + 1 :]])
    broken = lint(attach_functions(graph, early_exit=True, inline=True), target="portable")
    assert "float32-path" in {finding.rule for finding in broken}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_file_and_what_the_cpu_engines_make_of_it_pass_the_audit(
    model, traced, precision, tmp_path: Path
):
    base = to_half(traced) if precision == "fp16" else traced
    graph = attach_functions(base, early_exit=True, inline=True)
    path = tmp_path / "model.onnx"
    onnx.save(graph, path)
    file = audit_types(graph, precision)
    runs = audit_onnxruntime(path, precision, file_shares=file.shares)
    compiled = compile_openvino(graph, make_feeds(model, 1), "f32")
    built = audit_openvino(compiled, precision, file_shares=file.shares)
    assert [(each.verdict, each.reasons) for each in (file, runs, built)] == [("pass", ())] * 3
    assert all(set(each.tail) == {"fp32"} for each in (file, runs, built))


def test_bf16_hint_reaches_the_product_of_the_masks_and_nothing_else_behind_the_selection(
    model, portable
):
    feeds = make_feeds(model, 3)
    compiled = compile_openvino(portable, feeds, "bf16")
    built = audit_openvino(compiled, "fp32", inference_precision="bf16")
    assert (built.verdict, built.reasons) == ("pass", ())
    assert set(built.tail) == {"fp32"}
    (product,) = (layer for layer in built.layers if layer.kind == "MatMul")
    assert product.precision == "bf16"
    found = dict(zip(NAMES, map(np.array, compiled(feeds).values()), strict=True))
    for name in ("boxes_xyxy", "scores"):
        bits = found[name].view(np.uint32)[found["classes"] >= 0]
        assert (bits & 0xFFFF != 0).mean() > 0.5  # bf16 numbers end in sixteen zero bits


# ------------------------------------------------------------------------------- bundle and engines


@pytest.fixture(scope="module")
def folder(model, traced, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return write_instance_bundle(folder, model, traced, ("fp32", "fp16"))


def test_manifest_says_the_size_of_the_masks(folder, model):
    manifest = Bundle.open(folder).manifest
    assert (manifest.task, manifest.mask_hw) == ("instance", (16, 24))
    shapes = [spec.resolved(manifest.sizes(2)) for spec in manifest.outputs]
    assert shapes[-1] == (2, 30, 16, 24)


@pytest.mark.parametrize("kind", ["files", "plugin_files"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_written_files_run(folder, model, kind, precision):
    path = folder / getattr(Bundle.open(folder).manifest.graphs["model"], kind)[precision]
    feeds = make_feeds(model, 2)
    found = run_onnxruntime(onnx.load(path), feeds)
    if precision == "fp32":
        assert_same(found, run_torch(model, feeds))
    assert found["masks"].shape == (2, 30, 16, 24)
    assert not [n for n in walk(onnx.load(path).graph.node) if n.op_type == "NonMaxSuppression"]


def test_rtx_builds_both_precisions(folder, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build real engines")
    from runtime.engines import BuildOptions, build_all

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engines = build_all(folder, flavour="tensorrt_rtx", options=BuildOptions(targets=("SM89",)))
    assert [e.record["identity"]["precision"] for e in engines] == ["fp32", "fp16"]
    assert all(engine.record["size_bytes"] > 0 for engine in engines)
