"""Folding BatchNormalization into the convolution before it, in float32, before any other pass.

A head that is shared by several levels keeps its own statistics on each: the convolution's weight
is then copied per level. Names end in the normalisation's own.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from export.graph.walking import reads


def fold_batch_norms(proto: onnx.ModelProto) -> int:
    """Fold every BatchNormalization that follows a Conv alone; the model is changed in place.

    Returns:
        How many were folded.
    """
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses = _count_uses(graph)
    folded = []
    for node in graph.node:
        conv = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or uses[node.input[0]] != 1:
            continue
        if any(name not in weights for name in (conv.input[1], *node.input[1:])):
            continue
        _fold(graph, conv, node, weights)
        folded.append(node)
    for node in folded:
        graph.node.remove(node)
    _drop_unused(graph)
    return len(folded)


def _fold(
    graph: onnx.GraphProto,
    conv: onnx.NodeProto,
    norm: onnx.NodeProto,
    weights: dict[str, onnx.TensorProto],
) -> None:
    gain, shift, mean, variance = (
        numpy_helper.to_array(weights[name]).astype(np.float64) for name in norm.input[1:]
    )
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    scale = gain / np.sqrt(variance + epsilon)  # (C,)
    weight = numpy_helper.to_array(weights[conv.input[1]]).astype(np.float64)
    bias = np.zeros(len(scale))
    if len(conv.input) > 2 and conv.input[2]:
        bias = numpy_helper.to_array(weights[conv.input[2]]).astype(np.float64)
    weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    bias = (bias - mean) * scale + shift
    stem = norm.output[0]
    for kind, value in (("weight", weight), ("bias", bias)):
        graph.initializer.append(
            numpy_helper.from_array(value.astype(np.float32), f"{stem}.{kind}")
        )
    inputs = [conv.input[0], f"{stem}.weight", f"{stem}.bias"]
    del conv.input[:]
    conv.input.extend(inputs)
    conv.output[0] = norm.output[0]


def _count_uses(graph: onnx.GraphProto) -> dict[str, int]:
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in reads(node):
            uses[name] = uses.get(name, 0) + 1
    for value in graph.output:
        uses[value.name] = uses.get(value.name, 0) + 1
    return uses


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = _count_uses(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    made = {name for node in graph.node for name in node.output}
    infos = [value for value in graph.value_info if value.name in made]
    del graph.value_info[:]
    graph.value_info.extend(infos)
