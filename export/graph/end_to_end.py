"""From a trained model to one ONNX graph: raw frame and thresholds in, results out."""

from __future__ import annotations

import logging
import warnings

import onnx
import torch
from torch import nn
from torch.export import Dim

from export.graph.operators import translation_table
from export.tasks import task_module
from runtime.contract.outputs import INPUTS, TensorSpec, outputs_of
from training.models.base import Model

OPSET = 18
EXAMPLE_BATCH = 2  # torch.export specialises a side of 1


def example_feeds(model: Model, batch: int = EXAMPLE_BATCH) -> tuple[torch.Tensor, ...]:
    """Inputs of the right shapes, in the order of the task's table."""
    height, width = model.spec.size_hw
    thresholds = torch.full((batch, len(model.spec.classes)), model.spec.score_threshold)
    feeds = {
        "image": torch.zeros(batch, height, width, 3, dtype=torch.uint8),
        "score_threshold": thresholds,
        "iou_threshold": torch.full((batch,), model.spec.iou_threshold),
    }
    return tuple(feeds[spec.name] for spec in INPUTS[model.task])


def end_to_end(model: Model, *, is_folded: bool = True) -> nn.Module:
    """The module whose forward takes the graph's inputs and gives its outputs, as tensors."""
    module: nn.Module = task_module(model.task).EndToEnd(model, is_folded=is_folded)
    return module.eval()


def trace(model: Model) -> onnx.ModelProto:
    """Trace a model into ONNX; KestrelSelect and KestrelNms are single nodes without bodies.

    Returns:
        Opset 18, symbolic batch "B", inputs and outputs named as in the contract.
    """
    module = end_to_end(model)
    batch = Dim("B", min=1, max=64)
    inputs, outputs = INPUTS[model.task], outputs_of(model.task, model.optional_outputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            example_feeds(model),
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
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


def _name_sides(proto: onnx.ModelProto, outputs: tuple[TensorSpec, ...]) -> None:
    """Call the batch "B" wherever the exporter gave it a name of its own."""
    names = {proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param in names:
                side.dim_param = "B"
    for value, spec in zip(proto.graph.output, outputs, strict=True):
        value.type.tensor_type.shape.dim[0].dim_param = "B"
        assert value.name == spec.name
