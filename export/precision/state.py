"""The state of a model for video in half, where the network that makes and takes it is half.

A graph's outputs and inputs are float32 whatever computes them (`half.py`), but state never leaves
the session: between two graphs in half, float32 would be twice the bytes and a Cast on both sides.
Both graphs must say the same, so all state is half in the precisions of HALVED.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx.helper
from onnx import TensorProto

from export.graph.shapes import drop_unread, infer_shapes
from export.graph.walking import walk
from export.precision.half import FLOAT_SUFFIX, HALF_SUFFIX

HALVED = ("fp16",)


def halve_state(model: onnx.ModelProto, state: Mapping[str, str]) -> onnx.ModelProto:
    """Give a graph whose state is half.

    Args:
        model: as `to_half` gives it; its state, under the names it keeps, is float32.
        state: output -> input; a graph has the ones, the others or none of them.

    Returns:
        A new model, every tensor typed.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph = halved.graph
    for info in (*graph.output, *graph.input):
        if info.name in state or info.name in state.values():
            _halve(graph, info.name, is_input=info in graph.input)
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
    drop_unread(graph)
    return infer_shapes(halved)


def _halve(graph: onnx.GraphProto, name: str, *, is_input: bool) -> None:
    """Let a name stand for the half copy of a tensor; the float32 one gets a name of its own."""
    is_there = any(f"{name}{HALF_SUFFIX}" in node.output for node in graph.node)
    _rename(graph, {name: f"{name}{FLOAT_SUFFIX}", f"{name}{HALF_SUFFIX}": name})
    if is_input:  # it is half to begin with: what gave it in half goes, the float32 one is cast
        kept = [node for node in graph.node if name not in node.output]
        cast = _cast(name, f"{name}{FLOAT_SUFFIX}", TensorProto.FLOAT)
        del graph.node[:]
        graph.node.extend([cast, *kept])
    elif not is_there:
        graph.node.append(_cast(f"{name}{FLOAT_SUFFIX}", name, TensorProto.FLOAT16))


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in walk(graph.node):
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
        for place, name in enumerate(node.output):
            node.output[place] = names.get(name, name)


def _cast(source: str, made: str, kind: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [made], f"cast_{made}", to=kind)
