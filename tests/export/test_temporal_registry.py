"""Every registered model for video: both graphs keep the rules and find what PyTorch finds."""

from __future__ import annotations

import importlib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_models import shrunk, tiny_model
from tiny_temporal import clips_of

from export.graph.batch_norm import fold_batch_norms
from export.graph.end_to_end import outputs_of_model, state_of, trace_frames
from export.graph.lint import lint
from export.graph.operators import attach_functions
from export.precision.half import to_half
from export.precision.int8.leaning import leaning_feeds
from export.precision.int8.observing import observe
from export.precision.int8.placement import plan_placement
from export.precision.int8.rewriting import to_int8
from export.precision.state import halve_state
from export.proof.clips import TorchStream
from runtime.contract.limits import limits_of
from runtime.contract.matching import Comparison, compare_detections
from runtime.contract.outputs import KEY, NONKEY
from training.models import REGISTRY, model_class, model_variant
from training.models.base import TemporalModel

FOUND = (20, 60)  # detections asked for: enough to compare, fewer than max_detections
BOX_PX, SCORE = 0.02, 1e-4  # float32 sums in another order, at boxes of up to 96 px
CASES = [
    pytest.param(name, variant, id=f"{name}-{variant}", marks=[pytest.mark.slow][:place])
    for name in REGISTRY
    if issubclass(model_class(name), TemporalModel)
    for place, variant in enumerate(importlib.import_module(model_class(name).__module__).VARIANTS)
]
_made: dict[tuple[str, str], tuple[TemporalModel, dict[str, onnx.ModelProto]]] = {}


@pytest.fixture
def made(request: pytest.FixtureRequest) -> tuple[TemporalModel, dict[str, onnx.ModelProto]]:
    """A lively model and its float32 graphs."""
    name, variant = request.param
    if (name, variant) not in _made:
        model = tiny_model(name, shrunk(model_variant(name, variant).spec))
        bases = trace_frames(model)
        for base in bases.values():
            fold_batch_norms(base)
        _made[(name, variant)] = model, bases
    return _made[(name, variant)]


every_variant = pytest.mark.parametrize(
    "made",
    [pytest.param(case.values, id=case.id, marks=case.marks) for case in CASES],
    indirect=True,
)


def finished(base: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    is_portable = kind == "portable"
    return attach_functions(base, early_exit=is_portable, inline=is_portable)


def test_models_for_video_are_registered():
    assert CASES


@every_variant
def test_graphs_of_every_precision_keep_the_rules_of_the_lint(made):
    model, bases = made
    frame = clips_of(1, 2, model.spec.size_hw)[0]
    for graph, base in bases.items():
        tensors = plan_placement(base, quantise_heads=True).tensors
        feeds = [{"image": frame[:1]}]
        if graph == NONKEY:
            feeds = leaning_feeds(bases[KEY], state_of(model), frame[1:])
        ranges = {name: each.largest for name, each in observe(base, tensors, feeds).items()}
        half = halve_state(to_half(base), state_of(model))
        for typed in (base, half, to_int8(base, ranges)):
            for kind in ("portable", "plugin"):
                assert lint(finished(typed, kind), target=kind) == []


@every_variant
def test_onnx_runtime_finds_what_torch_finds_in_a_clip(made):
    model, bases = made
    frames = clips_of(1, 3, model.spec.size_hw)[0]
    state, names = state_of(model), [spec.name for spec in outputs_of_model(model)]
    stream = TorchStream(model)
    limits = {
        "score_threshold": np.full((1, len(model.spec.classes)), model.spec.score_threshold),
        "iou_threshold": np.full(1, 0.5),
    }
    limits = {name: value.astype(np.float32) for name, value in limits.items()}
    limits["score_threshold"][:] = passing_threshold(model, frames)
    sessions = {
        graph: onnxruntime.InferenceSession(finished(base, "portable").SerializeToString())
        for graph, base in bases.items()
    }
    comparison, kept = Comparison(), {}
    for place, frame in enumerate(frames):
        graph = NONKEY if place else KEY
        feeds = {"image": frame[None], **limits}
        given = feeds | (kept if place else {})
        outputs = [info.name for info in sessions[graph].get_outputs()]
        found = dict(zip(outputs, sessions[graph].run(outputs, given), strict=True))
        assert [name for name in outputs if name not in state] == names[: len(names) - (not place)]
        if not place:
            kept = {state[name]: found[name] for name in state}
        compare_detections(stream.run(feeds, graph), found, feeds, comparison, place)
    figures = comparison.summary()
    assert figures["matched"] >= len(frames)
    assert figures["unexplained"] == 0
    assert figures["max_box_error_px"] <= BOX_PX
    assert figures["max_score_error"] <= SCORE
    assert figures.get("min_mask_iou", 1.0) >= limits_of("fp32").mask_iou
    assert figures["max_change_error_px"] <= limits_of("fp32").change_px


def passing_threshold(model: TemporalModel, frames: np.ndarray) -> float:
    """In the widest gap of a key frame's scores that lets some results pass."""
    with torch.no_grad():
        found = model.candidates(model(model.prepare(torch.from_numpy(frames[:1]))))
    scores = found.logits.sigmoid() if found.activation == "sigmoid" else found.logits
    top = scores.flatten().sort(descending=True).values[FOUND[0] : FOUND[1]]
    place = int((top[:-1] - top[1:]).argmax())
    return float(top[place] + top[place + 1]) / 2
