"""From a float32 graph to a strongly typed one: trunk and heads half, everything else float32.

`export/precision/regions.py` says which nodes are half. Casts stand at the borders of these
regions only, one for each tensor that crosses; constants are stored in the type that reads them,
twice where both do. TensorRT builds such a file as it is; CPUs compute it in float32.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from export.graph.shapes import STANDARD, drop_unread, infer_shapes
from export.graph.walking import reads, subgraphs, walk
from export.precision.regions import choose_half, halvable_inputs

HALF_SUFFIX = ".half"
FLOAT_SUFFIX = ".float32"


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the mixed graph of a float32 one.

    Args:
        model: traced, BatchNormalization folded, KestrelSelect and KestrelNms as nodes without
            bodies, weights inside; it is not changed.

    Returns:
        A new model with the same inputs and outputs, every tensor typed.

    Raises:
        ValueError: the graph has half tensors already.
    """
    types = element_types(infer_shapes(model))
    halved = [name for name, kind in types.items() if kind == TensorProto.FLOAT16]
    if halved:
        raise ValueError(
            f"tensor {halved[0]!r} is half already, expected a float32 graph. "
            "Give what the trace wrote."
        )
    return write_half(model, find_half(model))


def find_half(model: onnx.ModelProto) -> list[bool]:
    """Say of each node of a float32 graph, in order, whether `to_half` computes it in half."""
    floats = _find_floats(model)
    constants = float_constants(model.graph)
    return choose_half(model.graph, floats=floats, constants=constants, opset=_opset(model))


def write_half(model: onnx.ModelProto, is_half: list[bool]) -> onnx.ModelProto:
    """Give a graph with some of its nodes, in order, in half; it may hold Q/DQ pairs."""
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    constants = float_constants(mixed.graph)
    _Rewriting(mixed.graph, _find_floats(model), constants, _opset(model)).run(is_half)
    return infer_shapes(mixed)


def _find_floats(model: onnx.ModelProto) -> set[str]:
    types = element_types(infer_shapes(model))
    return {name for name, kind in types.items() if kind == TensorProto.FLOAT}


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain in STANDARD))


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor of a graph whose shapes were inferred."""
    graph = model.graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def float_constants(graph: onnx.GraphProto) -> dict[str, NDArray[np.float32]]:
    """Values of float32 initialisers and Constant nodes."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in tensors.items()
        if tensor.data_type == TensorProto.FLOAT
    }


class _Rewriting:
    """One graph on its way to mixed types.

    A tensor keeps its name in the type it is made in, its copy in the other type has a suffix. A
    graph output keeps its name in float32, whoever makes it.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        floats: set[str],
        constants: dict[str, NDArray[np.float32]],
        opset: int,
    ) -> None:
        self.graph = graph
        self.floats = floats
        self.constants = constants
        self.opset = opset
        self.outputs = {info.name for info in graph.output}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.made: set[str] = set()  # float tensors that half nodes give
        self.copies: set[str] = set()  # tensors and constants that were added
        self.written: list[onnx.NodeProto] = []

    def run(self, is_half: list[bool]) -> None:
        """Rewrite the graph in place."""
        for node, half in zip(self.graph.node, is_half, strict=True):
            if half:
                self.made.update(name for name in node.output if name in self.floats)
        for node, half in zip(self.graph.node, is_half, strict=True):
            self._connect(node, half)
            self.written.append(node)
        for name in sorted(self.outputs & self.made):
            self._fetch(name, half=False)
        nodes = list(self.written)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        _drop_unread_constants(self.graph)

    def _connect(self, node: onnx.NodeProto, half: bool) -> None:
        """Let a node read and give the types that it computes in."""
        takes = halvable_inputs(node, self.opset) if half else []
        wants = dict(zip(node.input, takes, strict=False))
        names = {
            name: self._fetch(name, half=wants.get(name, False))
            for name in sorted(reads(node) & self.floats)
        }
        for each in walk([node]):
            for place, name in enumerate(each.input):
                each.input[place] = names.get(name, name)
        for graph in (body for each in walk([node]) for body in subgraphs(each)):
            for info in graph.output:
                info.name = names.get(info.name, info.name)
        if half:
            for place, name in enumerate(node.output):
                node.output[place] = self._own_name(name)
            for entry in node.attribute if node.op_type == "Cast" else ():
                if entry.name == "to" and entry.i == TensorProto.FLOAT:
                    entry.i = TensorProto.FLOAT16

    def _own_name(self, name: str) -> str:
        """What a tensor is called in the type it is made in."""
        is_moved = name in self.outputs and name in self.made
        return name + HALF_SUFFIX if is_moved else name

    def _fetch(self, name: str, *, half: bool) -> str:
        """What a float tensor is called in the type that is wanted; casts or stores it once."""
        if half == (name in self.made):
            return self._own_name(name)
        copy = name + (HALF_SUFFIX if half else FLOAT_SUFFIX)
        if not half and name in self.outputs:
            copy = name
        if copy not in self.copies:
            self.copies.add(copy)
            if name in self.constants:
                value = self.constants[name].astype(np.float16)
                self.graph.initializer.append(numpy_helper.from_array(value, copy))
            else:
                self.written.append(self._cast(name, copy, half))
        return copy

    def _cast(self, name: str, copy: str, half: bool) -> onnx.NodeProto:
        """A Cast; what a Cast made of integers or booleans is cast from these, not from it."""
        maker = self.makers.get(name)
        source = self._own_name(name)
        if half and maker is not None and maker.op_type == "Cast":
            source = maker.input[0]
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        return onnx.helper.make_node("Cast", [source], [copy], f"cast_{copy}", to=kind)


def _drop_unread_constants(graph: onnx.GraphProto) -> None:
    """Remove what nothing reads: constants that were stored in half, Casts that were bypassed."""
    drop_unread(graph)
    read = {name for node in graph.node for name in reads(node)}
    read |= {info.name for info in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
