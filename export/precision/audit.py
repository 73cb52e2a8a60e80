"""What a file computes in, read from the file: a name is no proof."""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto, numpy_helper

from export.graph.select import DOMAIN
from export.graph.walking import label, reads, walk
from export.precision.regions import PRODUCTS, fits_half

# Of an fp16 file; the rest are nodes whose constants half cannot hold, and products after a
# selection. A layer that half could hold is found by itself; how much of the work is done in half
# is what `runtime/engines/audit.py` judges.
MIN_HALF = 0.5
HALF_SHARES = {"fp32": (0.0, 0.0), "fp16": (MIN_HALF, 1.0)}


def share_of_half(model: onnx.ModelProto) -> float:
    """Say which share (0..1) of the weights of convolutions and matrix products is half.

    A weight that a Cast or DequantizeLinear reads does not count as half: it is stored small and
    computed with in another type. External weights need not be loaded.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    read = {
        name
        for node in walk(model.graph.node)
        if node.op_type in PRODUCTS
        for name in node.input
        if name in weights
    }
    sizes = {name: math.prod(weights[name].dims) for name in read}
    halves = [name for name in read if weights[name].data_type == TensorProto.FLOAT16]
    total: int = sum(sizes.values())
    return sum(sizes[name] for name in halves) / max(1, total)


def find_type_fault(model: onnx.ModelProto, precision: str) -> str:
    """Say why a graph is not of the precision it is said to be; empty where it is.

    Args:
        model: standard operators or with our nodes.
        precision: "fp32" or "fp16"; of others nothing is known here.
    """
    if precision not in HALF_SHARES:
        return ""
    low, high = HALF_SHARES[precision]
    share = share_of_half(model)
    if not low <= share <= high:
        return (
            f"{share:.0%} of its weights are half, expected {low:.0%} to {high:.0%} of "
            f"{precision}. Export again."
        )
    left = find_left_in_float32(model) if high else ""
    if left:
        return f"{left} computes in float32 although half holds its weights. Export again."
    return ""


def find_left_in_float32(model: onnx.ModelProto) -> str:
    """Name a product before the selection that could be half and is not; empty without one.

    External weights that are not loaded are taken for ones that half cannot hold.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    selected: set[str] = set()
    for node in model.graph.node:
        read = reads(node)
        if node.op_type == "TopK" or node.domain == DOMAIN or not selected.isdisjoint(read):
            selected.update(node.output)
            continue
        held = [weights[name] for name in node.input if name in weights]
        if node.op_type in PRODUCTS and held and all(map(_could_be_half, held)):
            return label(node)
    return ""


def _could_be_half(tensor: TensorProto) -> bool:
    is_here = tensor.data_location != TensorProto.EXTERNAL
    return (
        is_here
        and tensor.data_type == TensorProto.FLOAT
        and fits_half(numpy_helper.to_array(tensor))
    )
