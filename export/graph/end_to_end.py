"""From a trained model to ONNX graphs: raw frame and thresholds in, results out.

A model for images is one graph, MODEL; one for video is two, KEY and NONKEY.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import nn
from torch.export import Dim

from export.graph.operators import translation_table
from export.graph.temporal import FRAMES, state_inputs
from export.tasks import task_module
from runtime.contract.outputs import CHANGE, KEY, NONKEY, TensorSpec, inputs_of, outputs_of
from training.models.base import Model, TemporalModel

OPSET = 18
MODEL = "model"
EXAMPLE_BATCH = 2  # torch.export specialises a side of 1


def example_feeds(model: Model, batch: int = EXAMPLE_BATCH) -> tuple[torch.Tensor, ...]:
    """Inputs of the right shapes, in the order of `inputs_of_model`."""
    height, width = model.spec.size_hw
    thresholds = torch.full((batch, len(model.spec.classes)), model.spec.score_threshold)
    feeds = {
        "image": torch.zeros(batch, height, width, 3, dtype=torch.uint8),
        "score_threshold": thresholds,
        "iou_threshold": torch.full((batch,), model.spec.iou_threshold),
    }
    return tuple(feeds[spec.name] for spec in inputs_of_model(model))


def inputs_of_model(model: Model) -> tuple[TensorSpec, ...]:
    """What a caller feeds the graphs of a model; iou_threshold only where it suppresses rows."""
    return inputs_of(model.task, is_suppressed=model.spec.nms != "none")


def outputs_of_model(model: Model) -> tuple[TensorSpec, ...]:
    """What the graphs of a model give, `change` of NONKEY among them, but no state."""
    optional = (*model.optional_outputs, *([CHANGE.name] if is_temporal(model) else []))
    return outputs_of(model.task, optional)


def is_temporal(model: Model) -> bool:
    """Whether a model is one for video, with the graphs KEY and NONKEY."""
    return isinstance(model, TemporalModel)


def state_of(model: Model) -> dict[str, str]:
    """What a key frame leaves: output of KEY -> input of NONKEY; empty of models for images."""
    return state_inputs(model.state_names) if isinstance(model, TemporalModel) else {}


def end_to_end(model: Model, graph: str = MODEL, *, is_folded: bool = True) -> nn.Module:
    """The module whose forward takes a graph's inputs and gives its outputs, as tensors."""
    module: nn.Module = task_module(model.task).EndToEnd(model, is_folded=is_folded)
    return (FRAMES[graph](module) if graph in FRAMES else module).eval()


def trace(model: Model) -> onnx.ModelProto:
    """Trace a model into ONNX; KestrelSelect and KestrelNms are single nodes without bodies.

    Returns:
        Opset 18, symbolic batch "B", inputs and outputs named as in the contract. Of a model for
        video, a key frame that leaves no state.
    """
    specs = outputs_of(model.task, model.optional_outputs)
    feeds = example_feeds(model)
    inputs = [spec.name for spec in inputs_of_model(model)]
    return _trace(end_to_end(model), feeds, inputs, [spec.name for spec in specs])


def trace_frames(model: TemporalModel) -> dict[str, onnx.ModelProto]:
    """Trace a model for video into the graphs KEY and NONKEY; see `trace`.

    State has the names of `state_of`, and is float32.
    """
    feeds = example_feeds(model)
    state, inputs = state_of(model), [spec.name for spec in inputs_of_model(model)]
    outputs = [spec.name for spec in outputs_of(model.task, model.optional_outputs)]
    key = end_to_end(model, KEY)
    with torch.no_grad():
        left = key(*feeds)[-len(state) :]
    return {
        KEY: _trace(key, feeds, inputs, [*outputs, *state]),
        NONKEY: _trace(
            end_to_end(model, NONKEY),
            (*feeds, tuple(left)),
            [*inputs, *state.values()],
            [*outputs, CHANGE.name],
        ),
    }


def _trace(
    module: nn.Module, feeds: tuple[Any, ...], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    batch = Dim("B", min=1, max=64)
    sides = {0: batch}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            feeds,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple(
                (sides,) * len(each) if isinstance(each, tuple) else sides for each in feeds
            ),
            custom_translation_table=translation_table(),
            verbose=False,
        )
    proto = program.model_proto
    _strip(proto)
    _name_sides(proto, outputs)
    return proto


def _strip(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes: stack traces of this machine are no business of a product."""
    del proto.metadata_props[:]
    graph = proto.graph
    graph.doc_string = ""
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del item.metadata_props[:]
        item.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""


def _name_sides(proto: onnx.ModelProto, outputs: Sequence[str]) -> None:
    """Call the batch "B" wherever the exporter gave it a name of its own."""
    names = {proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param in names:
                side.dim_param = "B"
    for value, name in zip(proto.graph.output, outputs, strict=True):
        value.type.tensor_type.shape.dim[0].dim_param = "B"
        assert value.name == name
