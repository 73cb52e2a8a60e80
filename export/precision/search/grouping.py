"""Products that are int8 together: they share a scale or weights, or lie in one residual block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from export.graph.shapes import infer_shapes
from export.graph.types_audit import count_macs
from export.graph.walking import reads
from export.precision.int8.placement import Network, plan_placement

_WEIGHT = ".weight"


@dataclass(frozen=True)
class Group:
    """Products that are int8 together.

    Attributes:
        name: of the first one's weights.
        products: their first outputs, in the graph's order.
        macs: multiply-adds of all of them for one frame.
    """

    name: str
    products: tuple[str, ...]
    macs: int


def group_products(base: onnx.ModelProto, *, quantise_heads: bool = False) -> list[Group]:
    """Put every product that could be int8 into a group, in the graph's order.

    Args:
        base, quantise_heads: as of `plan_placement`.
    """
    network = Network(base)
    placement = plan_placement(base, quantise_heads=quantise_heads)
    makers = network.makers
    products = {name: makers[name] for name in placement.products}
    tied = [*_sharing(products, placement.groups), *_blocks(network, {*products})]
    groups: dict[str, list[str]] = {}
    for name, first in _join(list(products), tied).items():
        groups.setdefault(first, []).append(name)
    shapes = _shapes(base)
    return [
        Group(
            name=products[first].input[1].removesuffix(_WEIGHT),
            products=tuple(names),
            macs=sum(count_macs(products[name], shapes, makers) or 0 for name in names),
        )
        for first, names in groups.items()
    ]


def _sharing(
    products: dict[str, onnx.NodeProto], scales: dict[str, str]
) -> Iterable[Sequence[str]]:
    """Products whose data have one scale, and products that have the same weights."""
    sharing: dict[tuple[str, str], list[str]] = {}
    for name, node in products.items():
        sharing.setdefault(("scale", scales[node.input[0]]), []).append(name)
        sharing.setdefault(("weights", node.input[1]), []).append(name)
    return sharing.values()


def _blocks(network: Network, products: set[str]) -> Iterable[Sequence[str]]:
    """Products between a fork and the Add that joins its branches; no other Add lies between.

    A pyramid's sum joins whole stages with a Resize between: that is no block.
    """
    behind: dict[str, frozenset[str]] = {}  # tensor -> tensors it is made of, itself included
    for node in network.body():
        names = [name for name in reads(node) if name in network.activations]
        made_of = frozenset().union(*(behind.get(name, frozenset({name})) for name in names))
        for name in node.output:
            behind[name] = made_of | {name}
        if node.op_type != "Add" or len(names) != 2:
            continue
        first, second = (behind.get(name, frozenset({name})) for name in names)
        between = first ^ second
        inner = [network.makers[name] for name in between if name in network.makers]
        is_block = bool(first & second) and not any(
            each.op_type in ("Add", "Resize") and not _is_constant_add(network, each)
            for each in inner
        )
        if is_block:
            yield sorted(between & products)


def _is_constant_add(network: Network, node: onnx.NodeProto) -> bool:
    return node.op_type == "Add" and not network.activations.issuperset(node.input)


def _join(names: list[str], tied: Iterable[Sequence[str]]) -> dict[str, str]:
    """Each name -> the first of those that it is tied to, over any number of ties."""
    places = {name: place for place, name in enumerate(names)}
    first = {name: name for name in names}
    for tie in tied:
        found = {first[name] for name in tie}
        least = min(found, key=places.__getitem__, default="")
        first = {name: least if root in found else root for name, root in first.items()}
    return first


def _shapes(base: onnx.ModelProto) -> dict[str, list[int]]:
    """Sides of every tensor for one frame."""
    graph = infer_shapes(base).graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    shapes = {
        info.name: [side.dim_value or 1 for side in info.type.tensor_type.shape.dim]
        for info in infos
    }
    return shapes | {tensor.name: list(tensor.dims) for tensor in graph.initializer}
