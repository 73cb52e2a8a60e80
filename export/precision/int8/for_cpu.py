"""The Q/DQ graph for CPUs: the same scales, activations as uint8.

CPUs multiply uint8 by int8. From symmetric int8 activations OpenVINO computes a convolution behind
a Concat wrongly on CPUs without AMX (5 dB in place of 35), and ONNX Runtime does not fuse what
stands behind a ReLU. With a zero point of 0 where a tensor cannot be negative, and 128 elsewhere,
both are right and fast, and give what the int8 file gives: the same levels, but that tensors which
cannot be negative go up to 255 of them before they are cut, not 127.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.helper
from onnx import TensorProto, numpy_helper

from export.graph.shapes import infer_shapes
from export.precision.half import element_types, float_constants
from export.precision.int8.placement import keeps_scale, tie
from export.precision.int8.rewriting import ZERO

LOW, MIDDLE = "uint8.zero", "uint8.middle"
NON_NEGATIVE = {"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp"}
# Give nothing negative where they take nothing negative.
KEEPS_SIGN = {
    *("Add", "Mul", "Max", "Sum", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    *("HardSwish", "ReduceMean", "ReduceMax", "QuantizeLinear", "DequantizeLinear", "Cast"),
}


def to_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give a symmetric Q/DQ graph's twin for CPUs.

    Args:
        model: as `to_int8` gives it, with pairs of one zero point for all activations; it is not
            changed.

    Returns:
        A new model with the same inputs, outputs and scales.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    low = find_non_negative(model)
    pairs = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[2] == ZERO]
    groups = _group(graph, pairs)
    is_low: dict[str, bool] = {}
    for node in pairs:
        group = groups[node.input[0]]
        is_low[group] = is_low.get(group, True) and node.input[0] in low
    zeros = {node.output[0]: LOW if is_low[groups[node.input[0]]] else MIDDLE for node in pairs}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] in zeros:
            node.input[2] = zeros[node.output[0]]
        elif node.op_type == "DequantizeLinear" and node.input[0] in zeros:
            node.input[2] = zeros[node.input[0]]
    _replace_zeros(graph, {*zeros.values()})
    return infer_shapes(twin)


def _group(graph: onnx.GraphProto, pairs: list[onnx.NodeProto]) -> dict[str, str]:
    """Tensors in front of pairs, grouped by the nodes that keep a scale: one zero point each."""
    given = {node.output[0]: node.input[0] for node in pairs}  # quantised -> the float before it
    before = {
        node.output[0]: given[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in given
    }
    joined = []
    for node in graph.node:
        if keeps_scale(node):
            names = [before.get(name, name) for name in node.input]
            joined.append(onnx.helper.make_node(node.op_type, names, node.output))
            joined[-1].attribute.extend(node.attribute)
    return tie(joined, list(given.values()))


def _replace_zeros(graph: onnx.GraphProto, used: set[str]) -> None:
    kept = [tensor for tensor in graph.initializer if tensor.name != ZERO]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for name, value in ((LOW, 0), (MIDDLE, 128)):
        if name in used:
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.uint8), name))


def find_non_negative(model: onnx.ModelProto) -> set[str]:
    """Tensors that cannot be negative, whatever the image."""
    types = element_types(infer_shapes(model))
    constants = float_constants(model.graph)
    found = {name for name, kind in types.items() if kind == TensorProto.UINT8}
    found |= {name for name, value in constants.items() if (value >= 0).all()}
    for node in model.graph.node:
        if _is_non_negative(node, found, constants):
            found.update(name for name in node.output if name)
    return found


def _is_non_negative(
    node: onnx.NodeProto, found: set[str], constants: Mapping[str, np.ndarray]
) -> bool:
    if node.op_type in NON_NEGATIVE:
        return True
    if node.op_type == "Clip":
        has_floor = len(node.input) > 1 and node.input[1] in constants
        if has_floor and float(constants[node.input[1]]) >= 0:
            return True
        return node.input[0] in found and (
            len(node.input) < 3 or not node.input[2] or node.input[2] in found
        )
    if keeps_scale(node):
        names = node.input if node.op_type == "Concat" else node.input[:1]
        return found.issuperset(names)
    if node.op_type in KEEPS_SIGN:
        names = node.input[:1] if "Linear" in node.op_type else node.input
        return found.issuperset(name for name in names if name)
    return False
