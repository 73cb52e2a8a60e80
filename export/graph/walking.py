"""Reading a graph: its nodes with those inside Loops, their attributes, what they read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
import onnx.helper


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Give the graphs inside a node: a Loop's body, an If's branches."""
    return [entry.g for entry in node.attribute if entry.type == onnx.AttributeProto.GRAPH]


def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Give nodes in order, each followed by the nodes of the graphs inside it."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from walk(graph.node)


def reads(node: onnx.NodeProto) -> set[str]:
    """Give the names a node reads, those inside its subgraphs included."""
    names = {name for inner in walk([node]) for name in inner.input if name}
    bodies = [graph for inner in walk([node]) for graph in subgraphs(inner)]
    return names | {output.name for graph in bodies for output in graph.output}


def attribute(node: onnx.NodeProto, name: str, default: str | int) -> str | int:
    """Give an attribute of a node as text or a number."""
    for entry in node.attribute:
        if entry.name == name:
            value = onnx.helper.get_attribute_value(entry)
            return value.decode() if isinstance(value, bytes) else value
    return default


def label(node: onnx.NodeProto) -> str:
    """Name a node for a reader."""
    return node.name or f"{node.op_type} of {node.output[0] if node.output else 'nothing'}"
