"""Faults planted in the weights and nodes of a bundle that is right, and what the proof names."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from planting import (
    FAILED,
    FILES,
    FIRST,
    GRAPH,
    Change,
    add_constant,
    layer_is_four_times,
    plant,
    put_before_output,
    put_behind,
    reasons_of,
    set_value,
    value_of,
    verify,
)

import export.proof.files

CELLS = {8: 96, 16: 24, 32: 6, 64: 2, 128: 1}  # of the tiny model's levels, by stride
NOISE = 0.05  # what another checkpoint's weights may differ by, of their size


def fixed(graph: GRAPH, name: str, value: object) -> None:
    """A threshold that is read, and has no effect."""
    zero, wanted = add_constant(graph, "zero.p", 0), add_constant(graph, "wanted.p", value)
    put_behind(
        graph,
        name,
        helper.make_node("Mul", [name, zero], [f"{name}.nothing"], "planted_mul"),
        helper.make_node("Add", [f"{name}.nothing", wanted], [f"{name}.fixed"], "planted_add"),
    )


def of_first_frame(graph: GRAPH, name: str) -> None:
    first = add_constant(graph, f"{name}.first_index", [0], "int64")
    put_behind(graph, name, helper.make_node("Gather", [name, first], [f"{name}.first"], "planted"))


# ----------------------------------------------------------------------------------- in the weights


def channels_are_rgb(graph: GRAPH) -> None:
    set_value(graph, FIRST, value_of(graph, FIRST)[:, ::-1])


def mean_is_of_rgb(graph: GRAPH) -> None:
    set_value(graph, "input.mean_bgr", value_of(graph, "input.mean_bgr")[:, ::-1])


def std_is_wrong(graph: GRAPH) -> None:
    set_value(graph, FIRST, value_of(graph, FIRST) * 1.2)


def classes_are_swapped(graph: GRAPH) -> None:
    for name in ("model.scores.predict.weight", "model.scores.predict.bias"):
        set_value(graph, name, value_of(graph, name)[[1, 0, 2]])


def anchors_are_half_a_cell_off(graph: GRAPH) -> None:
    shift = np.repeat([stride / 2 for stride in CELLS], list(CELLS.values()))[:, None]
    name = next(t.name for t in graph.initializer if list(t.dims) == [len(shift), 4])
    set_value(graph, name, value_of(graph, name) + shift)


def weights_are_of_another_checkpoint(graph: GRAPH) -> None:
    draw = np.random.default_rng(3)
    for tensor in list(graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and tensor.name.endswith("weight"):
            value = value_of(graph, tensor.name)
            set_value(graph, tensor.name, value * draw.normal(1, NOISE, value.shape))


IN_WEIGHTS: dict[str, tuple[Change, str]] = {
    "channels RGB": (channels_are_rgb, f"weight {FIRST} holds the checkpoint's numbers in another"),
    "mean": (mean_is_of_rgb, "weight input.mean_bgr holds the checkpoint's numbers in another"),
    "std": (std_is_wrong, f"weight {FIRST} is 1.2 times the checkpoint's"),
    "layer times four": (layer_is_four_times, "layer2.0.conv2.weight is 4 times the checkpoint's"),
    "half a cell": (anchors_are_half_a_cell_off, "differs from the checkpoint's by up to 64"),
    "classes swapped": (classes_are_swapped, "scores.predict.weight holds the checkpoint's number"),
    "stale weights": (weights_are_of_another_checkpoint, "weights are not the checkpoint's: "),
}


@pytest.mark.parametrize("fault", IN_WEIGHTS)
def test_proof_sees_other_results_and_names_the_weight(
    fault, tiny_exported, tiny_checkpoint, discs, one_backend
):
    change, says = IN_WEIGHTS[fault]
    plant(tiny_exported, change)
    reasons = reasons_of(tiny_exported, tiny_checkpoint, discs)
    parity = [r for r in reasons if "unmatched" in r or "box error" in r or "score error" in r]
    assert parity == reasons[: len(parity)] != []
    assert any(r.startswith("model.fp32.onnx: ") and says in r for r in reasons), reasons


# ------------------------------------------------------------------------------------ in the graph


def iou_is_another(graph: GRAPH) -> None:
    fixed(graph, "iou_threshold", 0.6)


def score_threshold_is_the_default(graph: GRAPH) -> None:
    fixed(graph, "score_threshold", 0.02)


def iou_threshold_is_the_default(graph: GRAPH) -> None:
    fixed(graph, "iou_threshold", 0.5)


def suppression_is_blind_to_classes(graph: GRAPH) -> None:
    name = next(n.input[0] for n in graph.node if n.output[0].startswith("z1__"))
    zero = add_constant(graph, "zero.p", 0)
    put_behind(graph, name, helper.make_node("Mul", [name, zero], ["no_class"], "blind"))


def few_rows_come_out(graph: GRAPH) -> None:
    most = add_constant(graph, "most.p", 5, "int32")
    node = helper.make_node("Min", ["num_detections.own", most], ["num_detections"], "cut_rows")
    put_before_output(graph, "num_detections", node)


def batch_has_first_frames_scores(graph: GRAPH) -> None:
    of_first_frame(graph, "score_threshold")


def batch_has_first_frames_iou(graph: GRAPH) -> None:
    of_first_frame(graph, "iou_threshold")


def batch_has_first_frames_boxes(graph: GRAPH) -> None:
    index = add_constant(graph, "first_index", [0], "int64")
    own = "boxes_xyxy.own"
    put_before_output(
        graph,
        "boxes_xyxy",
        helper.make_node("Gather", [own, index], ["first_boxes"], "planted_gather"),
        helper.make_node("Sub", [own, own], ["no_boxes"], "planted_sub"),
        helper.make_node("Add", ["no_boxes", "first_boxes"], ["boxes_xyxy"], "planted_add"),
    )


BATCH = "of a batch of 4, each with thresholds of its own, differs from the same frame alone"
# Fault -> what the proof says of results, and what it says of the graph.
IN_GRAPH: dict[str, tuple[Change, str, str]] = {
    "score threshold has no effect": (
        score_threshold_is_the_default, "score_threshold 0.", "Clip of (score_threshold.fixed",
    ),
    "iou threshold has no effect": (
        iou_threshold_is_the_default,
        "iou_threshold 0.2 let two boxes of one class overlap by",
        "Unsqueeze of (iou_threshold.fixed",
    ),
    "suppression at another iou": (
        iou_is_another, "results unmatched", "Unsqueeze of (iou_threshold.fixed"
    ),
    "suppression blind to classes": (
        suppression_is_blind_to_classes, "results unmatched", "Unsqueeze of (no_class"
    ),
    "fewer rows": (few_rows_come_out, "results unmatched", "cut_rows is Min of"),
    "batch with the first frame's scores": (
        batch_has_first_frames_scores, BATCH, "Clip of (score_threshold.first"
    ),
    "batch with the first frame's iou": (
        batch_has_first_frames_iou, BATCH, "Unsqueeze of (iou_threshold.first"
    ),
    "batch with the first frame's boxes": (
        batch_has_first_frames_boxes, BATCH, "planted_add is Add of (no_boxes, first_boxes)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", IN_GRAPH)
def test_proof_names_what_is_wrong_and_the_node(
    fault, tiny_exported, tiny_checkpoint, discs, one_backend
):
    change, says, node = IN_GRAPH[fault]
    plant(tiny_exported, change, FILES[:1])
    reasons = reasons_of(tiny_exported, tiny_checkpoint, discs)
    assert any(says in reason for reason in reasons), reasons
    assert any(node in reason for reason in reasons), reasons


@pytest.mark.parametrize("fault", [f for f in IN_GRAPH if f.startswith("batch with")])
def test_one_frame_is_enough_to_prove_a_batch(
    fault, tiny_exported, tiny_checkpoint, discs, one_backend
):
    """It comes again mirrored, and with other thresholds."""
    plant(tiny_exported, IN_GRAPH[fault][0], FILES[:1])
    done = verify(tiny_exported, tiny_checkpoint, discs, "--images", 1)
    assert done.returncode == FAILED, done.stdout
    assert BATCH in done.stdout


def test_plugin_file_that_computes_something_else_is_named(
    tiny_exported, tiny_checkpoint, discs, one_backend
):
    """Its weights are right, and no CPU session ever loads it."""
    plant(tiny_exported, iou_is_another, FILES[1:])
    reasons = reasons_of(tiny_exported, tiny_checkpoint, discs)
    assert reasons[0].startswith("model.fp32.plugin.onnx differs from the portable file: ")
    assert "box error" in reasons[0]


def test_plugin_file_that_does_not_run_is_named(
    tiny_exported, tiny_checkpoint, discs, one_backend, monkeypatch
):
    monkeypatch.setattr(export.proof.files, "find_file_fault", lambda *_: "")
    plant(tiny_exported, operator_is_unknown, FILES[1:])
    reasons = reasons_of(tiny_exported, tiny_checkpoint, discs)
    assert "FancyRelu" in reasons[0]


def operator_is_unknown(graph: GRAPH) -> None:
    next(node for node in graph.node if node.op_type == "Relu").op_type = "FancyRelu"
