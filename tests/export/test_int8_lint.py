"""The lint's rule on scales: fixed, positive, one for an activation, along a product's channels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import pytest
from int8_graphs import maker_of, quantised
from onnx import numpy_helper
from test_int8_placement import FEEDS, net
from typed_graphs import parse, weight

from export.graph.lint import lint

UP = weight(4, 4, 3, 3)


@pytest.fixture
def int8() -> onnx.ModelProto:
    lines = ("a = c(x, w3)", "z = ConvTranspose <pads = [1,1,1,1]> (a, up)", "y = c(z, w5)")
    return quantised(net(*lines, up=UP), FEEDS)


def findings(model: onnx.ModelProto) -> list[str]:
    return [each.message for each in lint(model, target="portable") if each.rule == "scale"]


def change(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def test_int8_graph_keeps_the_rule(int8):
    assert findings(int8) == []


@pytest.mark.parametrize("bad", [0.0, -0.5, np.nan, np.inf], ids=str)
@pytest.mark.parametrize("name", ["x.scale", "w3.scale0"])
def test_scale_that_is_no_positive_number_is_found(int8, name, bad):
    old = numpy_helper.to_array(next(t for t in int8.graph.initializer if t.name == name)).copy()
    old[(0,) * old.ndim] = bad
    change(int8, name, old)
    assert any("not above 0" in message for message in findings(int8))


@pytest.mark.parametrize(
    ("product", "axis", "right"), [("a", 1, 0), ("z", 0, 1)], ids=["convolution", "transposed"]
)
def test_scales_along_the_wrong_axis_are_found(int8, product, axis, right):
    node = maker_of(int8, maker_of(int8, product).input[1])
    node.attribute[0].i = axis
    if product == "a":  # three input channels, so that the graph stays valid
        change(int8, "w3.scale0", np.ones(3, np.float32))
        change(int8, "w3.zero0", np.zeros(3, np.int8))
    (message,) = findings(int8)
    assert f"lie along axis {axis}" in message
    assert f"output channels on axis {right}." in message


def test_scale_for_each_channel_of_an_activation_is_found(int8):
    change(int8, "a.scale", np.ones(4, np.float32))
    zeros = numpy_helper.from_array(np.zeros(4, np.int8), "zeros")
    int8.graph.initializer.append(zeros)
    for node in int8.graph.node:
        if node.input[1] == "a.scale":
            node.input[2] = "zeros"
    messages = findings(int8)
    assert len(messages) == 2
    assert all("an activation has a scale for each channel" in message for message in messages)


def test_scale_that_is_computed_is_found():
    text = """
    net (float[B,3,8,8] x) => (float[B,3,8,8] y) {
        widest = ReduceMax <keepdims = 0> (x)
        q = QuantizeLinear(x, widest, zero)
        y = DequantizeLinear(q, widest, zero)
    }
    """
    messages = findings(parse(text, zero=np.int8(0)))
    assert len(messages) == 2
    assert all("its scale is computed" in message for message in messages)
