"""Which nodes of a graph compute in half: found by data flow alone, not by name.

Half is everything between the first convolution or matrix product and the last one, with what
moves its results on. Float32 is

* what comes before the first one: the image, its mean and scale;
* the tail: what reaches selection or suppression without crossing one of these, and what no
  further one follows;
* all that depends on a selection: decoding, overlaps, gathered rows, their products;
* the coordinates of GridSample, and the operators that torch.autocast computes in float32;
* a node with a constant that half cannot hold (`fits_half`).

The border to the tail is moved down over operators that only move values, which changes no number
and leaves one Cast after the heads' Concat in place of one after each head.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.defs
from numpy.typing import NDArray

from export.graph.select import DOMAIN
from export.graph.shapes import STANDARD
from export.graph.walking import reads, subgraphs

# What half is for. The tail begins after the last of these.
PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"}
# torch.autocast's list, and GridSample: its coordinates need more than half has, and its two
# inputs are of one type for TensorRT.
FLOAT32_OPS = {
    *("Softmax", "LogSoftmax", "LayerNormalization", "GroupNormalization", "GridSample"),
    *("InstanceNormalization", "MeanVarianceNormalization", "LpNormalization", "CumSum"),
    *("Exp", "Log", "Pow", "Reciprocal", "Sqrt", "Softplus", "ReduceSum", "ReduceProd", "ReduceL1"),
    *("ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
}
# Move values and compute nothing; Shape does not even look at them.
MOVES = {
    *("Shape", "Transpose", "Reshape", "Concat", "Flatten", "Squeeze", "Unsqueeze", "Slice"),
    *("Split", "Gather", "GatherElements", "GatherND", "Identity", "DepthToSpace", "SpaceToDepth"),
}
# Rounding normal numbers to half costs 2^-11 of a tensor's norm at most; more than twice that
# means that subnormal or vanishing values carry the tensor.
MAX_ROUNDING = 2.0**-10


def choose_half(
    graph: onnx.GraphProto,
    *,
    floats: set[str],
    constants: dict[str, NDArray[np.float32]],
    opset: int,
) -> list[bool]:
    """Say of each node of the graph, in order, whether it computes in half.

    Args:
        graph: sorted, KestrelSelect and KestrelNms as nodes.
        floats: names of its float32 tensors.
        constants: the fixed ones among them.
        opset: of the standard operators.
    """
    kinds = _trace_forward(graph, floats)
    is_tail = _trace_backward(graph, floats, kinds)
    fits = {name: fits_half(value) for name, value in constants.items()}
    is_half: list[bool] = []
    made: set[str] = set()  # tensors that half nodes give
    for node, (is_fed, is_selected), in_tail in zip(graph.node, kinds, is_tail, strict=True):
        able = is_fed and not is_selected and _can_be_half(node, floats, fits, opset)
        only_moves = node.op_type in MOVES and all(
            name in made for name in node.input if name in floats
        )
        is_half.append(able and (not in_tail or only_moves))
        if is_half[-1]:
            made.update(node.output)
    return is_half


def find_tail(graph: onnx.GraphProto, floats: set[str]) -> list[bool]:
    """Say of each node of the graph, in order, whether it is of the tail or behind a selection."""
    kinds = _trace_forward(graph, floats)
    is_tail = _trace_backward(graph, floats, kinds)
    return [tail or chosen for tail, (_, chosen) in zip(is_tail, kinds, strict=True)]


def _trace_forward(graph: onnx.GraphProto, floats: set[str]) -> list[tuple[bool, bool]]:
    """Of each node: does it depend on a product (or is it one), does it depend on a selection."""
    fed: set[str] = set()
    selected: set[str] = set()
    kinds = []
    for node in graph.node:
        read = reads(node)
        is_fed = node.op_type in PRODUCTS or not fed.isdisjoint(read)
        is_selected = node.domain == DOMAIN or not selected.isdisjoint(read)
        if is_fed:
            fed.update(name for name in node.output if name in floats)
        if is_selected:
            selected.update(node.output)
        kinds.append((is_fed, is_selected))
    return kinds


def _trace_backward(
    graph: onnx.GraphProto, floats: set[str], kinds: list[tuple[bool, bool]]
) -> list[bool]:
    """Of each node: is it of the tail."""
    leading: set[str] = set()  # a product that depends on no selection lies ahead
    critical: set[str] = set()  # selection or coordinates lie ahead, and no product before them
    is_tail = []
    for node, (_, is_selected) in zip(reversed(graph.node), reversed(kinds), strict=True):
        outputs = set(node.output)
        if node.op_type in PRODUCTS and not is_selected:
            leading |= reads(node) & floats
            is_tail.append(False)
            continue
        is_critical = not critical.isdisjoint(outputs)
        is_leading = not leading.isdisjoint(outputs)
        if is_critical or node.domain == DOMAIN:
            critical |= reads(node) & floats
        elif node.op_type == "GridSample":
            critical.add(node.input[1])
        if is_leading:
            leading |= reads(node) & floats
        is_tail.append(is_critical or not is_leading)
    return is_tail[::-1]


def _can_be_half(node: onnx.NodeProto, floats: set[str], fits: dict[str, bool], opset: int) -> bool:
    """Whether the operator exists in half and half holds its constants."""
    if node.domain not in STANDARD or node.op_type in FLOAT32_OPS or subgraphs(node):
        return False
    takes = zip(node.input, halvable_inputs(node, opset), strict=True)
    halvable = [name for name, able in takes if able and name in floats]
    return bool(halvable) and all(fits.get(name, True) for name in halvable)


def halvable_inputs(node: onnx.NodeProto, opset: int) -> list[bool]:
    """Say of each input of a standard node whether it may be half; Resize's scales may not."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    return [_allows_half(schema, place) for place in range(len(node.input))]


def _allows_half(schema: onnx.defs.OpSchema, place: int) -> bool:
    formal = schema.inputs[min(place, len(schema.inputs) - 1)]  # the last one may be variadic
    return "tensor(float16)" in formal.types


def fits_half(value: NDArray[np.float32]) -> bool:
    """Whether half holds a constant: nothing overflows, little of its norm is lost.

    Infinities stay what they are. A 0.001 among ones may lose bits; a tensor of 1e-7 may not.
    """
    finite = value[np.isfinite(value)]
    if not finite.size:
        return True
    with np.errstate(over="ignore"):
        rounded = finite.astype(np.float16)
    if not np.isfinite(rounded).all():
        return False
    exact = finite.astype(np.float64)
    lost = np.linalg.norm(exact - rounded)
    return bool(lost <= MAX_ROUNDING * np.linalg.norm(exact))
