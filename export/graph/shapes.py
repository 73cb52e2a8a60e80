"""Type the tensors of a graph: fold the arithmetic on shapes, infer with a named batch.

A local function reads the sizes of its inputs with Shape, because one body serves every model.
After inlining most of them are known numbers; folded, they let shape inference type every tensor
and let a reader see TopK's K.
"""

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference
from onnx import TensorProto, TensorShapeProto
from onnx.reference import ReferenceEvaluator

from export.graph.walking import attribute, reads, subgraphs

ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Min", "Max", "Mod"}
ARITHMETIC |= {"Concat", "Squeeze", "Unsqueeze", "Slice", "Gather", "Identity"}
MAX_SIZE = 64  # numbers in a folded tensor: shapes and pads, never data
MAX_ROUNDS = 10  # a round types more of the graph, which makes more of it foldable; we need 4

STANDARD = ("", "ai.onnx")
STAND_IN = 1_000_003  # a prime that no real size equals: the batch while shapes are inferred


def known_integers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Give the value of every small int64 tensor of the main graph that is fixed.

    Args:
        model: with shapes inferred: Shape of a tensor is known as far as the model says its sizes.
    """
    graph = model.graph
    shapes = _known_shapes(graph)
    values = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.INT64 and math.prod(tensor.dims) <= MAX_SIZE
    }
    for node in graph.node:
        value = _evaluate(node, values, shapes)
        if value is not None and value.dtype == np.int64 and value.size <= MAX_SIZE:
            values[node.output[0]] = value
    return values


def fold_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace integer arithmetic whose result is fixed by constants; returns a new model."""
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    for _ in range(MAX_ROUNDS):
        folded = onnx.shape_inference.infer_shapes(folded, data_prop=True)
        values = known_integers(folded)
        arithmetic = [
            node
            for node in folded.graph.node
            if node.op_type != "Constant" and len(node.output) == 1 and node.output[0] in values
        ]
        for node in arithmetic:
            tensor = onnx.numpy_helper.from_array(values[node.output[0]])
            constant = onnx.helper.make_node("Constant", [], node.output, node.name, value=tensor)
            node.CopyFrom(constant)
        if not arithmetic:
            break
    return folded


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes none of whose outputs is read, last ones first."""
    read = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in read for name in node.output):
            kept.append(node)
            read.update(reads(node))
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    infos = [info for info in graph.value_info if info.name in read]
    del graph.value_info[:]
    graph.value_info.extend(infos)


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Infer the shape of every tensor in terms of the batch; returns a new model.

    onnx's inference forgets a symbolic batch at TopK, Slice and Pad, and every shape at a Loop. So
    the batch is a number while it runs, and what a Loop carries keeps its shape (a Loop for which
    that is not so is refused by onnx). What nodes of other domains give is taken from the model:
    inference through a local function finds hardly more than types.

    Args:
        model: whose only symbolic size, if any, is the first one of its inputs.
    """
    name = batch_name(model.graph)
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    del typed.graph.value_info[:]
    called = {
        output for node in model.graph.node if node.domain not in STANDARD for output in node.output
    }
    typed.graph.value_info.extend(info for info in model.graph.value_info if info.name in called)
    _rename_batch(
        typed.graph,
        lambda dim: bool(name) and dim.dim_param == name,
        lambda dim: setattr(dim, "dim_value", STAND_IN),
    )
    typed = onnx.shape_inference.infer_shapes(typed, strict_mode=True, data_prop=True)
    while _type_one_loop(typed.graph):
        typed = onnx.shape_inference.infer_shapes(typed, strict_mode=True, data_prop=True)
    _rename_batch(
        typed.graph,
        lambda dim: dim.dim_value == STAND_IN,
        lambda dim: setattr(dim, "dim_param", name),
    )
    # What is left is the batch times something, which has no name.
    _rename_batch(typed.graph, lambda dim: dim.dim_value > STAND_IN, lambda dim: dim.Clear())
    return typed


def batch_name(graph: onnx.GraphProto) -> str:
    """Give the symbolic first size of the inputs, empty if the batch is fixed."""
    weights = {tensor.name for tensor in graph.initializer}
    names = {
        info.type.tensor_type.shape.dim[0].dim_param
        for info in graph.input
        if info.name not in weights and info.type.tensor_type.shape.dim
    } - {""}
    if len(names) > 1:
        raise ValueError(
            f"the inputs have the batch names {', '.join(sorted(names))}, expected one. "
            "Export with the same torch.export.Dim for the first size of every input."
        )
    return names.pop() if names else ""


def _rename_batch(
    graph: onnx.GraphProto,
    matches: Callable[[TensorShapeProto.Dimension], bool],
    change: Callable[[TensorShapeProto.Dimension], None],
) -> None:
    """Change the sizes that match, in a graph and in the graphs inside its nodes."""
    for info in (*graph.input, *graph.value_info, *graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if matches(dim):
                change(dim)
    for node in graph.node:
        for inner in subgraphs(node):
            _rename_batch(inner, matches, change)


def _type_one_loop(graph: onnx.GraphProto) -> bool:
    """Give what the first untyped Loop carries the shape it starts with; False if none is left."""
    infos = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
    typed = {name for name, info in infos.items() if info.type.tensor_type.HasField("shape")}
    for node in graph.node:
        starts = node.input[2:]
        if node.op_type != "Loop" or node.output[0] in typed or not typed.issuperset(starts):
            continue
        body = subgraphs(node)[0]
        for place, start in enumerate(starts):
            kind = infos[start].type
            body.input[2 + place].type.CopyFrom(kind)
            body.output[1 + place].type.CopyFrom(kind)
            if node.output[place] in infos:
                infos[node.output[place]].type.CopyFrom(kind)
            else:
                graph.value_info.append(onnx.helper.make_value_info(node.output[place], kind))
        del body.value_info[:]
        return True
    return False


def _known_shapes(graph: onnx.GraphProto) -> dict[str, list[int | None]]:
    """Give the sizes of every tensor whose rank is known, None where a size is not."""
    shapes: dict[str, list[int | None]] = {
        tensor.name: list(tensor.dims) for tensor in graph.initializer
    }
    for info in (*graph.input, *graph.value_info, *graph.output):
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            shapes[info.name] = [
                dim.dim_value if dim.HasField("dim_value") else None for dim in dims
            ]
    return shapes


def _evaluate(
    node: onnx.NodeProto, values: dict[str, np.ndarray], shapes: dict[str, list[int | None]]
) -> np.ndarray | None:
    """Give the value of a node's only output, None if it is not fixed or no integer arithmetic."""
    if node.domain not in STANDARD or len(node.output) != 1:
        return None
    if node.op_type == "Shape":
        return _sizes(node, shapes.get(node.input[0], [None]))
    is_known = node.op_type in ARITHMETIC and all(name in values for name in node.input)
    if not is_known and not (node.op_type == "Constant" and _is_small_integer(node)):
        return None
    feeds = {name: values[name] for name in node.input}
    if node.op_type in ("Div", "Mod") and any((value < 0).any() for value in feeds.values()):
        return None  # ONNX rounds towards 0, the reference evaluator down
    try:
        return np.asarray(ReferenceEvaluator(node).run(None, feeds)[0])
    except (ValueError, IndexError):
        return None  # a graph that contradicts itself: onnx.checker says where


def _sizes(node: onnx.NodeProto, shape: list[int | None]) -> np.ndarray | None:
    """Give what a Shape node gives for a tensor of this shape, None if a size is not known."""
    start, end = attribute(node, "start", 0), attribute(node, "end", len(shape))
    part = shape[int(start) : int(end)]
    return None if None in part else np.array(part, dtype=np.int64)


def _is_small_integer(node: onnx.NodeProto) -> bool:
    value = node.attribute[0]
    if value.type == onnx.AttributeProto.TENSOR:
        return value.t.data_type == TensorProto.INT64 and math.prod(value.t.dims) <= MAX_SIZE
    return value.name in ("value_int", "value_ints") and len(value.ints) <= MAX_SIZE
