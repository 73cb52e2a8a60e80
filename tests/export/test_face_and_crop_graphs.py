"""Faces and single people, exported: OpenVINO and ONNX Runtime give the joints that torch gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from tiny_models import frames_of, shrunk, tiny_model

from export.bundling import torch_results
from export.graph.batch_norm import fold_batch_norms
from export.graph.end_to_end import trace
from export.graph.lint import lint
from export.graph.operators import attach_functions
from runtime.contract.matching import Comparison, compare_detections
from training.models import model_variant
from training.models.base import Model

JOINT_PX = 0.1
SIMILARITY = 0.999  # object keypoint similarity between two backends
CASES = [("retinaface", "small"), ("retinaface", "slim"), ("hourglass", "small")]
_made: dict[tuple[str, str], tuple[Model, onnx.ModelProto]] = {}


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def made(request) -> tuple[Model, onnx.ModelProto]:
    """A lively model of one class, and its portable graph."""
    if request.param not in _made:
        name, variant = request.param
        spec = model_variant(name, variant).spec
        data = {"classes": ("one",), "category_ids": (1,), "num_candidates": 60}
        model = tiny_model(name, dataclasses.replace(shrunk(spec), **data))
        for head in getattr(model, "scores", ()):  # joints of a face that is not sure are not told
            if isinstance(head, torch.nn.Conv2d):
                head.bias.data.zero_()
        graph = trace(model)
        fold_batch_norms(graph)
        portable = attach_functions(graph, early_exit=True, inline=True)
        _made[request.param] = model, portable
    return _made[request.param]


def feeds_of(model: Model, batch: int) -> dict[str, np.ndarray]:
    """Frames, and a threshold that twenty rows pass, or more."""
    frames = frames_of(batch, model.spec.size_hw, seed=5)
    feeds = {"image": frames.numpy()}
    if model.task == "keypoints":
        with torch.no_grad():
            found = model.candidates(model(model.prepare(frames)))
        scores = found.logits.sigmoid() if found.activation == "sigmoid" else found.logits
        top = scores.flatten().sort(descending=True).values
        threshold = float(top[20 * batch] + top[20 * batch + 1]) / 2
        feeds["score_threshold"] = np.full((batch, 1), threshold, np.float32)
        feeds["iou_threshold"] = np.full(batch, 0.5, np.float32)
    return feeds


def answers(graph: onnx.ModelProto, backend: str, feeds: dict[str, np.ndarray]) -> dict:
    names = [output.name for output in graph.graph.output]
    if backend == "onnxruntime":
        session = onnxruntime.InferenceSession(
            graph.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return dict(zip(names, session.run(None, feeds), strict=True))
    core = openvino.Core()
    read = core.read_model(graph.SerializeToString())
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(feeds)
    return {name: np.array(found[name]) for name in names}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_joints_are_torchs_to_a_tenth_of_a_pixel(made, backend):
    model, graph = made
    for batch in (1, 2):
        feeds = feeds_of(model, batch)
        comparison = Comparison(sigmas=model.spec.sigmas)
        found = answers(graph, backend, feeds)
        compare_detections(torch_results(model, feeds), found, feeds, comparison)
        assert comparison.num_matched >= batch
        assert [u for u in comparison.unmatched if not u.is_explained] == []
        assert max(comparison.joint_errors) <= JOINT_PX
        assert min(comparison.similarities) >= SIMILARITY


def test_graph_keeps_the_lint_s_rules(made):
    assert lint(made[1], target="portable") == []


def test_nothing_after_the_last_convolution_is_a_product_that_bf16_could_reach(made):
    nodes = list(made[1].graph.node)
    last = max(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    assert {n.op_type for n in nodes[last:]}.isdisjoint({"MatMul", "Gemm", "Einsum"})
