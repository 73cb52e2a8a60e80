"""Where Q/DQ pairs stand: found by data flow, the same for every network.

* A product (convolution, Gemm with a fixed matrix) before the tail is int8: its data and its
  weights come out of a DequantizeLinear.
* A pair stands right behind the node that makes a tensor, so behind the activation where there is
  one: in front of it, CPUs could not fuse the two and 58 of 86 convolutions of a ResNet-50 with
  pyramid ran in float32.
* Both inputs of an Add that feeds an int8 product are quantised, so that no float32 lies between.
* Operators that only move values, or take the largest, keep a scale: a pair moves up over them, and
  all tensors that one of them ties together share a scale.
* The last product of each head stays float32 unless asked for: nothing behind it averages its
  error out. So does what gives the places that GridSample reads.

A node is known by the name of its first output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from export.graph.shapes import STANDARD, infer_shapes
from export.graph.walking import attribute, reads
from export.precision.half import element_types, float_constants
from export.precision.regions import PRODUCTS, find_tail

# Every value they give is one of those they take, or 0.
KEEPS_SCALE = {
    *("MaxPool", "Concat", "Reshape", "Transpose", "Slice", "Split", "Flatten", "Squeeze"),
    *("Unsqueeze", "Identity", "DepthToSpace", "SpaceToDepth", "Expand", "Tile"),
}
# What may stand between a residual Add and the product that it feeds.
POINTWISE = {
    *("Add", "Mul", "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "HardSwish", "Sigmoid"),
    *("HardSigmoid", "Tanh", "Softplus", "Softsign", "Gelu", "Mish", "Erf", "Min", "Max"),
}


@dataclass(frozen=True)
class Placement:
    """What is int8.

    Attributes:
        products: first outputs of the int8 products, in the graph's order.
        tensors: that carry a Q/DQ pair, in the order they are made.
        observed: those of them whose values decide on the scales: what a product, an Add or a
            float32 node reads.
        groups: tensor -> the first of those that it shares its scale with.
    """

    products: tuple[str, ...]
    tensors: tuple[str, ...]
    observed: tuple[str, ...]
    groups: dict[str, str]


class Network:
    """A float32 graph as the placement looks at it.

    Attributes:
        nodes: of the main graph, in order.
        constants: float32 initialisers and Constants by name.
        activations: float32 tensors that are no constants, with the graph's inputs among them.
        makers: tensor -> the node that makes it; graph inputs have none.
        is_tail: by node, in order; the tail reads and gives float32.
    """

    def __init__(self, base: onnx.ModelProto) -> None:
        graph = base.graph
        types = element_types(infer_shapes(base))
        floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        self.nodes = list(graph.node)
        self.constants = float_constants(graph)
        self.activations = floats - self.constants.keys()
        self.makers = {name: node for node in graph.node for name in node.output}
        self.is_tail = find_tail(graph, floats)
        self._types = types

    def body(self) -> list[onnx.NodeProto]:
        """The nodes before the tail."""
        return [node for node, tail in zip(self.nodes, self.is_tail, strict=True) if not tail]

    def moved(self, node: onnx.NodeProto) -> list[str]:
        """The activations that a node that keeps the scale moves; of others none."""
        if not keeps_scale(node):
            return []
        names = node.input if node.op_type == "Concat" else node.input[:1]
        return [name for name in names if name in self.activations]

    def is_quantisable(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a product of an activation with a fixed matrix per output channel."""
        if node.domain not in STANDARD or len(node.input) < 2:
            return False
        if node.input[0] not in self.activations or node.input[1] not in self.constants:
            return False
        if node.op_type == "ConvTranspose":  # of groups, axis 1 is not the output channel
            return attribute(node, "group", 1) == 1
        if node.op_type == "Gemm":
            return not attribute(node, "transA", 0)
        return node.op_type == "Conv"

    def reaching(self, ends: Iterable[str]) -> set[str]:
        """Tensors from which one of `ends` is reached over pointwise and moving nodes only."""
        found = {*ends}
        for node in reversed(self.body()):
            if found.isdisjoint(node.output):
                continue
            if node.op_type in POINTWISE or keeps_scale(node):
                found |= reads(node) & self.activations
        return found


def keeps_scale(node: onnx.NodeProto) -> bool:
    """Whether every value that a node gives is one that it takes, or 0."""
    if node.domain not in STANDARD:
        return False
    if node.op_type == "Resize":
        return attribute(node, "mode", "nearest") == "nearest"
    return node.op_type in KEEPS_SCALE


def channel_axis(node: onnx.NodeProto) -> int:
    """The axis of a product's weights that counts its output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return 0
    return 1


def find_quantisable(base: onnx.ModelProto) -> list[str]:
    """All products that could be int8, in order, by their first outputs."""
    network = Network(base)
    return [node.output[0] for node in network.body() if network.is_quantisable(node)]


def find_last_products(base: onnx.ModelProto) -> set[str]:
    """Products that stay float unless asked for, by their first outputs.

    Those before the tail that no other one follows, and those whose results are where GridSample
    reads, whatever else they are.
    """
    return _last_products(Network(base))


def _last_products(network: Network) -> set[str]:
    ahead: set[str] = set()  # tensors from which a product is reached
    places: set[str] = set()  # tensors from which a GridSample's coordinates are, without a product
    last = set()
    for node, is_tail in zip(reversed(network.nodes), reversed(network.is_tail), strict=True):
        is_product = node.op_type in PRODUCTS
        is_followed = not ahead.isdisjoint(node.output)
        is_place = not places.isdisjoint(node.output)
        if node.op_type == "GridSample":
            places.add(node.input[1])
        elif is_place and not is_product:
            places |= reads(node)
        if is_tail:
            continue
        if is_product and (is_place or not is_followed):
            last.add(node.output[0])
        if is_product or is_followed:
            ahead |= reads(node)
    return last


def plan_placement(
    base: onnx.ModelProto,
    *,
    float_nodes: Collection[str] = frozenset(),
    quantise_heads: bool = False,
) -> Placement:
    """Choose what is int8.

    Args:
        base: float32, BatchNormalization folded, no body for Kestrel's nodes; not changed.
        float_nodes: products, by their first outputs, that are to stay float32.
        quantise_heads: the last product of each head is int8 too.

    Raises:
        ValueError: `float_nodes` names what is no product of the graph.
    """
    network = Network(base)
    products = [node for node in network.body() if network.is_quantisable(node)]
    unknown = sorted({*float_nodes} - {node.output[0] for node in products})
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is no product that could be int8; expected names of "
            "find_quantisable. Take these from the graph that is quantised."
        )
    left = {*float_nodes} | (set() if quantise_heads else _last_products(network))
    products = [node for node in products if node.output[0] not in left]
    wanted = _wanted(network, products)
    carried = _pull_up(network, wanted)
    order = {name: place for place, node in enumerate(network.nodes) for name in node.output}
    tensors = sorted(carried, key=lambda name: (order.get(name, -1), name))
    return Placement(
        products=tuple(node.output[0] for node in products),
        tensors=tuple(tensors),
        observed=tuple(name for name in tensors if _is_observed(network, name, wanted, carried)),
        groups=tie(network.nodes, tensors),
    )


def _wanted(network: Network, products: list[onnx.NodeProto]) -> set[str]:
    """What products read, and both sides of the Adds that feed these."""
    wanted = {node.input[0] for node in products}
    feeding = network.reaching(wanted)
    for node in network.body():
        is_sum = node.op_type == "Add" and network.activations.issuperset(node.input)
        if is_sum and node.output[0] in feeding:
            wanted.update(node.input)
    return wanted


def _pull_up(network: Network, wanted: set[str]) -> set[str]:
    carried, todo = set(wanted), list(wanted)
    while todo:
        maker = network.makers.get(todo.pop())
        for name in network.moved(maker) if maker is not None else ():
            if name not in carried:
                carried.add(name)
                todo.append(name)
    return carried


def _is_observed(network: Network, name: str, wanted: set[str], carried: set[str]) -> bool:
    """Whether something reads the tensor but nodes that move it to other carrying tensors."""
    if name in wanted:
        return True
    readers = [node for node in network.body() if name in reads(node)]
    return any(
        name not in network.moved(node) or not carried.issuperset(_moved_to(node))
        for node in readers
        if node.op_type != "Shape"
    )


def _moved_to(node: onnx.NodeProto) -> Iterable[str]:
    return node.output[:1] if node.op_type == "MaxPool" else node.output  # it may give places too


def tie(nodes: Iterable[onnx.NodeProto], tensors: Collection[str]) -> dict[str, str]:
    """Group the tensors that nodes which keep the scale tie together.

    Returns:
        Tensor -> the first of its group, in the order of `tensors`.
    """
    parents = {name: name for name in tensors}
    places = {name: place for place, name in enumerate(tensors)}

    def root(name: str) -> str:
        while parents[name] != name:
            name = parents[name]
        return name

    for node in nodes:
        if not keeps_scale(node):
            continue
        names = node.input if node.op_type == "Concat" else node.input[:1]
        tied = {root(name) for name in (*names, *node.output) if name in parents}
        first = min(tied, key=places.__getitem__, default="")
        for name in tied:
            parents[name] = first
    return {name: root(name) for name in tensors}
