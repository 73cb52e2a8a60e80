"""One body of tests over every registered model and each of its variants."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_models import frames_of, shrunk, tiny_model

from export.graph.batch_norm import fold_batch_norms
from export.graph.end_to_end import inputs_of_model, trace
from export.graph.lint import lint
from export.graph.operators import attach_functions
from export.precision.int8.for_cpu import to_cpu
from export.precision.int8.observing import observe
from export.precision.int8.placement import (
    find_last_products,
    find_quantisable,
    plan_placement,
)
from export.precision.int8.rewriting import to_int8
from export.tasks import task_module
from runtime.contract.matching import Comparison, compare_detections
from runtime.contract.outputs import outputs_of
from training.errors import CheckpointError, TrainingError
from training.loop.checkpoint import load_release, save_release
from training.models import REGISTRY, build_model, model_class, model_variant
from training.models.base import Candidates, Model, Targets, TemporalModel

BOX_PX = 0.01  # float32 sums in another order, at boxes of up to 96 px
JOINT_PX = 0.1
SCORE = 1e-5
FOUND = (20, 60)  # detections asked for: enough to compare, fewer than max_detections
CASES = [
    (name, variant)
    for name, place in REGISTRY.items()
    for variant in importlib.import_module(place.split(":")[0]).VARIANTS
]
every_variant = pytest.mark.parametrize(
    ("name", "variant"), CASES, ids=["-".join(case) for case in CASES]
)


class Made(NamedTuple):
    """A lively model, its portable graph, and the same with Kestrel's nodes."""

    model: Model
    portable: onnx.ModelProto
    plugin: onnx.ModelProto


_made: dict[tuple[str, str], Made] = {}


@pytest.fixture
def made(name: str, variant: str) -> Made:
    if (name, variant) not in _made:
        with torch.random.fork_rng():  # biases are drawn from it: the same in every order of tests
            torch.manual_seed(0)
            model = tiny_model(name, shrunk(model_variant(name, variant).spec))
        graph = trace(model)
        fold_batch_norms(graph)
        portable = attach_functions(graph, early_exit=True, inline=True)
        plugin = attach_functions(graph, early_exit=False, inline=False)
        _made[(name, variant)] = Made(model, portable, plugin)
    return _made[(name, variant)]


# ------------------------------------------------------------------------------ spec and checkpoint


@every_variant
def test_variant_is_listed_under_the_name_it_bears(name, variant):
    assert model_variant(name, variant).spec.variant == variant


@every_variant
def test_spec_survives_json(name, variant):
    spec = shrunk(model_variant(name, variant).spec)
    again = model_class(name).spec_type.from_json(json.dumps(json.loads(spec.to_json())))
    assert again == spec


@pytest.mark.parametrize("name", REGISTRY)
def test_unknown_field_of_a_spec_is_refused_with_the_nearest_one(name):
    document = json.loads(model_variant(name).spec.to_json())
    document["bakbone"] = document.pop("backbone")
    with pytest.raises(CheckpointError, match=r"'bakbone'.*did you mean 'backbone'"):
        model_class(name).spec_type.from_json(json.dumps(document))


def test_first_variant_is_the_one_meant_where_none_is_named():
    for name in REGISTRY:
        first = next(variant for model, variant in CASES if model == name)
        assert model_variant(name) is model_variant(name, first)


def test_unknown_variant_is_refused_with_those_there_are():
    name, variant = CASES[0]
    with pytest.raises(TrainingError, match=rf"no variant 'huge'.*{variant}"):
        model_variant(name, "huge")


def test_unknown_model_is_refused_with_the_nearest_name():
    name = CASES[0][0]
    with pytest.raises(TrainingError, match=rf"Did you mean '{name}'"):
        model_variant(name[:-1] + "x")


@pytest.mark.parametrize("name", REGISTRY)
def test_release_answers_as_the_model_whose_matrices_were_halved(name, tmp_path: Path):
    model = tiny_model(name, shrunk(model_variant(name).spec))
    path = tmp_path / "release.safetensors"
    save_release(path, name, model, training={"data": "x"}, scores={"AP": 0.5})
    loaded, header = load_release(path, name)
    for parameter in (*model.parameters(), *model.buffers()):
        if parameter.is_floating_point() and parameter.ndim >= 2:
            parameter.data = parameter.data.half().float()
    model.mean, model.std = loaded.mean, loaded.std  # not weights: they come from the spec
    frames = frames_of(2)
    with torch.no_grad():
        ours, theirs = (answer_of(each, frames) for each in (model, loaded))
    assert torch.equal(ours, theirs)
    assert not loaded.training
    assert loaded.spec == model.spec
    assert header["scores"] == {"AP": 0.5}


# ----------------------------------------------------------------------------------------- network


@every_variant
def test_candidates_end_in_the_common_form(name, variant, made: Made):
    model = made.model
    num_joints = len(getattr(model.spec, "joints", ()))
    with torch.no_grad():
        found = model.candidates(model(model.prepare(frames_of(2))))
        if model.task == "pose_crop":
            assert found.shape == (2, num_joints, 3)
            assert found.dtype == torch.float32
            return
        assert isinstance(found, Candidates)
        if model.task == "keypoints":
            joints = found.decode_keypoints(torch.zeros(2, 5, dtype=torch.int64))
            assert joints.shape == (2, 5, num_joints, 3)
            assert ((joints[..., 2] >= 0) & (joints[..., 2] <= 1)).all()
        batch, anchors, classes = found.logits.shape
        assert (batch, classes) == (2, len(model.spec.classes))
        assert found.logits.dtype == torch.float32
        boxes = found.decode(torch.zeros(2, 5, dtype=torch.int64))
    assert boxes.shape == (2, 5, 4)
    assert boxes.dtype == torch.float32
    assert all(extra.shape[:2] == (2, anchors) for extra in found.extras.values())


@every_variant
def test_losses_are_finite_scalars_and_reach_every_weight(name, variant):
    torch.manual_seed(0)
    model = build_model(name, shrunk(model_variant(name, variant).spec)).train()
    targets = Targets(
        torch.tensor([[[10.0, 10, 40, 40]], [[30.0, 5, 90, 60]]]),
        torch.tensor([[0], [2]]),
        torch.zeros(2, 1, dtype=torch.bool),
        torch.ones(2, 1, 64, 96, dtype=torch.uint8),
        keypoints_of(model),
    )
    images = model.prepare(frames_of(2))
    losses = model.loss(model(images), targets)
    torch.stack(list(losses.values())).sum().backward()
    if isinstance(model, TemporalModel):  # what only later frames run
        later, _ = model.nonkey(images, model.key(images)[1])
        torch.stack(list(model.loss(later, targets).values())).sum().backward()
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@every_variant
def test_answer_of_a_frame_does_not_depend_on_its_batch(name, variant, made: Made):
    model, frames = made.model, frames_of(3)
    with torch.no_grad():
        together = answer_of(model, frames)
        alone = answer_of(model, frames[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------- graph


@every_variant
def test_graph_has_the_inputs_and_outputs_of_its_task(name, variant, made: Made):
    graph = made.portable.graph
    task = made.model.task
    assert [i.name for i in graph.input] == [spec.name for spec in inputs_of_model(made.model)]
    wanted = outputs_of(task, made.model.optional_outputs)
    assert [o.name for o in graph.output] == [spec.name for spec in wanted]
    assert all(v.type.tensor_type.shape.dim[0].dim_param == "B" for v in graph.input)


@every_variant
def test_graph_keeps_every_rule_of_the_lint(name, variant, made: Made):
    assert lint(made.portable, target="portable") == []
    assert lint(made.plugin, target="plugin") == []


@every_variant
def test_graph_has_no_batch_normalisation_left_behind_a_convolution(name, variant, made: Made):
    """One before a convolution (pre-activation) cannot be folded; backends take it as a scale."""
    nodes = made.portable.graph.node
    convs = {node.output[0] for node in nodes if node.op_type == "Conv"}
    reads = [name for node in nodes for name in node.input]
    norms = [node for node in nodes if node.op_type == "BatchNormalization"]
    assert [n.name for n in norms if n.input[0] in convs and reads.count(n.input[0]) == 1] == []


@every_variant
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["portable", "plugin"])
def test_onnx_runtime_finds_what_torch_finds(name, variant, batch, kind, made: Made):
    feeds = passing_feeds(made.model, batch)
    session = onnxruntime.InferenceSession(
        getattr(made, kind).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    specs = outputs_of(made.model.task, made.model.optional_outputs)
    names = [spec.name for spec in specs]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    module = task_module(made.model.task).EndToEnd(made.model)
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(value) for value in feeds.values()))
    expected = {key: value.numpy() for key, value in zip(names, outputs, strict=True)}
    comparison = Comparison(sigmas=getattr(made.model.spec, "sigmas", ()))
    compare_detections(expected, found, feeds, comparison)
    assert comparison.num_matched >= batch
    assert [u for u in comparison.unmatched if not u.is_explained] == []
    assert comparison.max_box_error_px <= BOX_PX
    assert max(comparison.joint_errors, default=0.0) <= JOINT_PX
    assert bool(comparison.similarities) == hasattr(made.model.spec, "joints")
    assert comparison.max_score_error <= SCORE
    for spec in specs:
        assert found[spec.name].dtype == spec.numpy_dtype


@every_variant
def test_int8_graph_keeps_the_lint_s_rules_and_has_int8_products_but_for_the_last(
    name, variant, made: Made
):
    base = onnx.ModelProto()
    base.CopyFrom(made.plugin)
    del base.functions[:]
    tensors = plan_placement(base, quantise_heads=True).tensors
    image = frames_of(1, made.model.spec.size_hw).numpy()
    ranges = {t: h.largest for t, h in observe(base, tensors, [{"image": image}]).items()}
    int8 = to_int8(base, ranges)
    pairs = {name for n in int8.graph.node if n.op_type == "DequantizeLinear" for name in n.output}
    found = {n.output[0] for n in int8.graph.node if len(n.input) > 1 and pairs >= {*n.input[:2]}}
    assert {*find_quantisable(base)} - find_last_products(base) <= found
    for graph, is_cpu in ((int8, False), (to_cpu(int8), True)):
        portable = attach_functions(graph, early_exit=True, inline=True)
        assert lint(portable, target="portable", is_cpu_int8=is_cpu) == []


def answer_of(model: Model, frames: torch.Tensor) -> torch.Tensor:
    """All scores of a model; of one for crops its joints."""
    found = model.candidates(model(model.prepare(frames)))
    return found if isinstance(found, torch.Tensor) else found.logits


def passing_feeds(model: Model, batch: int) -> dict[str, np.ndarray]:
    """Frames, and a threshold in the widest gap of their scores that lets some pass."""
    frames = frames_of(batch, seed=5)
    if model.task == "pose_crop":
        return {"image": frames.numpy()}
    with torch.no_grad():
        found = model.candidates(model(model.prepare(frames)))
    scores = found.logits.sigmoid() if found.activation == "sigmoid" else found.logits
    top = scores.flatten().sort(descending=True).values[FOUND[0] * batch : FOUND[1] * batch]
    place = int((top[:-1] - top[1:]).argmax())
    threshold = float(top[place] + top[place + 1]) / 2
    feeds = {
        "image": frames.numpy(),
        "score_threshold": np.full((batch, len(model.spec.classes)), threshold, np.float32),
        "iou_threshold": np.full(batch, 0.5, np.float32),
    }
    return {spec.name: feeds[spec.name] for spec in inputs_of_model(model)}


def keypoints_of(model: Model) -> torch.Tensor | None:
    """Visible joints (2, 1, J, 3) inside of both boxes, of networks that have joints."""
    num_joints = len(getattr(model.spec, "joints", ()))
    places = torch.linspace(12.0, 38.0, num_joints)
    joints = torch.stack((places + 20, places, torch.full_like(places, 2.0)), 1)
    return joints.expand(2, 1, -1, -1) if num_joints else None
