"""Groups of the search: what shares a scale or lies in one residual block goes together."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto, numpy_helper

from export.adding import float_graph
from export.precision.int8.placement import find_quantisable, plan_placement
from export.precision.search.grouping import group_products
from runtime.contract.bundle import Bundle


def network(*nodes: onnx.NodeProto, weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A graph over x (1, 4, 8, 8); the last node gives y."""
    rng = np.random.default_rng(0)
    values = [
        numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name)
        for name, shape in weights.items()
    ]
    graph = oh.make_graph(
        list(nodes),
        "g",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 8, 8))],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        values,
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=9)


def conv(x: str, weight: str, y: str) -> onnx.NodeProto:
    return oh.make_node("Conv", [x, weight], [y], y, pads=[0, 0, 0, 0])


def test_residual_block_with_its_shortcut_is_one_group():
    model = network(
        conv("x", "stem", "a"),
        conv("a", "one", "b"),
        oh.make_node("Relu", ["b"], ["c"]),
        conv("c", "two", "d"),
        conv("a", "short", "e"),
        oh.make_node("Add", ["d", "e"], ["f"]),
        conv("f", "next", "g"),
        conv("g", "end", "y"),
        weights=dict.fromkeys(("stem", "one", "two", "short", "next", "end"), (4, 4, 1, 1)),
    )
    groups = group_products(model)
    assert [group.products for group in groups] == [("a",), ("b", "d", "e"), ("g",)]
    assert [group.name for group in groups] == ["stem", "one", "next"]


def test_identity_shortcut_makes_a_block_too():
    model = network(
        conv("x", "stem", "a"),
        conv("a", "one", "b"),
        conv("b", "two", "c"),
        oh.make_node("Add", ["c", "a"], ["d"]),
        conv("d", "next", "e"),
        conv("e", "end", "y"),
        weights=dict.fromkeys(("stem", "one", "two", "next", "end"), (4, 4, 1, 1)),
    )
    assert [group.products for group in group_products(model)] == [("a",), ("b", "c"), ("e",)]


def test_sum_of_a_pyramid_is_no_block():
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    model = network(
        conv("x", "stem", "a"),
        oh.make_node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        conv("p", "deep", "b"),
        conv("b", "top", "c"),
        oh.make_node("Resize", ["c", "", "scales"], ["u"], mode="nearest"),
        conv("a", "lateral", "d"),
        oh.make_node("Add", ["d", "u"], ["e"]),
        conv("e", "out", "f"),
        conv("f", "end", "y"),
        weights=dict.fromkeys(("stem", "deep", "top", "lateral", "out", "end"), (4, 4, 1, 1)),
    )
    model.graph.initializer.append(scales)
    groups = {group.products for group in group_products(model)}
    assert ("c",) in groups
    assert ("f",) in groups
    assert ("b", "d") in groups  # both read what MaxPool ties to one scale


def test_multiply_adds_are_counted_at_one_frame():
    model = network(
        conv("x", "stem", "a"),
        conv("a", "wide", "b"),
        conv("b", "end", "y"),
        weights={"stem": (4, 4, 3, 3), "wide": (16, 4, 1, 1), "end": (4, 16, 1, 1)},
    )
    assert [group.macs for group in group_products(model)] == [6 * 6 * 4 * 4 * 9, 6 * 6 * 16 * 4]


@pytest.mark.parametrize("quantise_heads", [False, True])
def test_every_product_is_in_one_group(written_bundle, quantise_heads):
    base = float_graph(Bundle.open(written_bundle))
    groups = group_products(base, quantise_heads=quantise_heads)
    grouped = [name for group in groups for name in group.products]
    expected = plan_placement(base, quantise_heads=quantise_heads).products
    assert sorted(grouped) == sorted(expected)
    assert len({group.name for group in groups}) == len(groups)
    assert all(group.macs > 0 for group in groups)
    if quantise_heads:
        assert sorted(grouped) == sorted(find_quantisable(base))
