"""Graphs of YOLACT++'s two additions: deformable convolutions, and scores of masks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from tiny_instance import (
    TinyInstances,
    TinySpec,
    make_feeds,
    tiny_instances,
    write_instance_bundle,
)

from export.graph.end_to_end import end_to_end, trace
from export.graph.lint import lint
from export.graph.operators import attach_functions
from export.graph.types_audit import audit_types
from export.precision.half import to_half
from runtime import predictor
from runtime.contract.bundle import Bundle
from runtime.contract.matching import Comparison, compare_detections
from runtime.contract.outputs import outputs_of
from training.layers.deformable import DeformableConv
from training.layers.prototypes import assemble_masks
from training.layers.rescoring import MaskRescoring
from training.models.base import Candidates

SAME = 1e-5
SCORE = 1e-5  # convolutions of two engines differ in the last bits
NAMES = [spec.name for spec in outputs_of("instance", ("mask_scores",))]

Arrays = dict[str, np.ndarray]

# ------------------------------------------------------------------------- deformable convolution


def wandering(stride: int) -> DeformableConv:
    torch.manual_seed(0)
    layer = DeformableConv(6, 5, stride=stride).eval()
    layer.conv_offset_mask.weight.data.normal_(0, 0.2)
    layer.conv_offset_mask.bias.data.normal_(0, 0.7)
    return layer


@pytest.mark.parametrize("size_hw", [(9, 13), (16, 24)], ids=["odd", "even"])
@pytest.mark.parametrize("stride", [1, 2])
def test_exported_deformable_convolution_is_standard_operators_that_agree(stride, size_hw):
    layer, feature = wandering(stride), torch.randn(3, 6, *size_hw)
    batch = torch.export.Dim("B", min=1, max=64)
    graph = torch.onnx.export(
        layer, (feature,), dynamo=True, opset_version=18, verbose=False,
        input_names=["feature"], output_names=["out"], dynamic_shapes=({0: batch},),
    ).model_proto  # fmt: skip
    operators = Counter(node.op_type for node in graph.graph.node)
    assert "DeformConv" not in operators
    assert (operators["GridSample"], operators["Conv"]) == (1, 2)
    constants = {tensor.name for tensor in graph.graph.initializer}
    weights = [node.input[1] for node in graph.graph.node if node.op_type == "Conv"]
    assert {*weights} <= constants  # of which batch normalisation and int8 can be folded
    with torch.no_grad():
        expected = layer(feature).numpy()
    feeds = {"feature": feature.numpy()}
    text = graph.SerializeToString()
    (found,) = onnxruntime.InferenceSession(text).run(None, feeds)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME)
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    found = core.compile_model(core.read_model(text), "CPU", options)(feeds)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME)


# ---------------------------------------------------------------------------------- scores of masks


class Rescored(TinyInstances):
    """The tiny model, and a judge of its masks."""

    optional_outputs = ("mask_scores",)

    def __init__(self, spec: TinySpec) -> None:
        super().__init__(spec)
        self.rescoring = MaskRescoring((4, 8), len(spec.classes))

    def candidates(self, raw) -> Candidates:
        def rescore(masks, classes):
            guesses = self.rescoring(masks.flatten(0, 1)).unflatten(0, classes.shape)
            return guesses.gather(2, classes.clamp(min=0).unsqueeze(2)).squeeze(2).clamp(max=1)

        return super().candidates(raw)._replace(rescore=rescore)


@pytest.fixture(scope="module")
def model() -> Rescored:
    torch.manual_seed(0)
    plain = tiny_instances()
    model = Rescored(plain.spec).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    return model


@pytest.fixture(scope="module")
def traced(model) -> onnx.ModelProto:
    return trace(model)


def run_torch(model, feeds: Arrays) -> Arrays:
    with torch.no_grad():
        outputs = end_to_end(model)(*(torch.from_numpy(value) for value in feeds.values()))
    return {name: value.numpy() for name, value in zip(NAMES, outputs, strict=True)}


def assert_agrees(found: Arrays, expected: Arrays, feeds: Arrays) -> None:
    comparison = Comparison()
    compare_detections(expected, found, feeds, comparison)
    assert comparison.num_matched == expected["num_detections"].sum() > 0
    assert len(comparison.score_errors) == 2 * comparison.num_matched
    assert comparison.max_score_error <= SCORE


def test_mask_scores_are_scores_times_what_the_judge_says_of_each_mask(model):
    feeds = make_feeds(model, 3)
    found = run_torch(model, feeds)
    with torch.no_grad():
        raw = model(model.prepare(torch.from_numpy(feeds["image"])))
        everything = model.candidates(raw)
        every = torch.arange(raw.logits.shape[1]).expand(3, -1)
        boxes = everything.decode(every)
        factors = []
        for row, count in enumerate(found["num_detections"]):
            assert 0 < count < model.spec.max_detections
            for place in range(count):
                box = torch.from_numpy(found["boxes_xyxy"][row, place])
                anchor = (boxes[row] - box).abs().amax(1).argmin()
                coefficients = everything.extras["coefficients"][row, anchor][None]
                soft = assemble_masks(coefficients, raw.prototypes[row], box[None], (64, 96))
                guess = model.rescoring(soft)[0, found["classes"][row, place]]
                factors.append(min(1.0, float(guess)))
                expected = float(found["scores"][row, place]) * factors[-1]
                assert float(found["mask_scores"][row, place]) == pytest.approx(expected, abs=1e-4)
            assert not found["mask_scores"][row, count:].any()
    assert max(factors) - min(factors) > 0.1  # the judge tells masks apart


@pytest.mark.parametrize("batch", [1, 4])
def test_onnxruntime_and_openvino_score_masks_as_torch_does(model, traced, batch):
    feeds = make_feeds(model, batch)
    expected = run_torch(model, feeds)
    graph = attach_functions(traced, early_exit=True, inline=True).SerializeToString()
    session = onnxruntime.InferenceSession(graph)
    assert_agrees(dict(zip(NAMES, session.run(NAMES, feeds), strict=True)), expected, feeds)
    core = openvino.Core()
    network = core.read_model(graph)
    network.reshape({name: list(array.shape) for name, array in feeds.items()})
    found = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feeds)
    found = dict(zip(NAMES, map(np.array, found.values()), strict=True))
    assert_agrees(found, expected, feeds)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_judge_computes_in_float32_and_the_graph_keeps_the_rules(traced, precision):
    base = to_half(traced) if precision == "fp16" else traced
    portable = attach_functions(base, early_exit=True, inline=True)
    plugin = attach_functions(base, early_exit=False, inline=False)
    assert lint(portable, target="portable") == []
    assert lint(plugin, target="plugin") == []
    audit = audit_types(portable, precision)
    assert (audit.verdict, audit.reasons) == ("pass", ())
    weights = {t.name: t.data_type for t in base.graph.initializer if "rescoring" in t.name}
    assert sum(name.endswith("weight") for name in weights) == 3
    assert set(weights.values()) == {onnx.TensorProto.FLOAT}
    scores = next(value for value in base.graph.output if value.name == "mask_scores")
    assert scores.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_bundle_lists_the_scores_of_masks_and_its_results_have_them(
    model, traced, backend, tmp_path: Path
):
    folder = write_instance_bundle(tmp_path, model, traced, ("fp32",))
    bundle = Bundle.open(folder)
    assert [spec.name for spec in bundle.manifest.outputs] == NAMES
    frame = make_feeds(model, 1)["image"][0]
    with predictor.load(folder, backend=backend, allow_unverified=True) as loaded:
        found = loaded(frame)
    assert 2 < len(found) == len(found.mask_scores)
    assert (found.mask_scores <= found.scores).all()
    entries = found.to_coco(1, bundle.manifest.category_ids)
    told = [entry["mask_score"] for entry in entries]
    np.testing.assert_allclose(told, found.mask_scores, atol=1e-6)


def test_rtx_builds_a_graph_that_scores_masks(model, traced, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build real engines")
    from runtime.engines import BuildOptions, build_all

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_instance_bundle(tmp_path, model, traced, ("fp32", "fp16"))
    engines = build_all(folder, flavour="tensorrt_rtx", options=BuildOptions(targets=("SM89",)))
    assert [e.record["identity"]["precision"] for e in engines] == ["fp32", "fp16"]
