"""Where Q/DQ pairs stand in small graphs, one rule each, and what they compute."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from int8_graphs import (
    constants_of,
    convolve,
    fake_quantise,
    fake_quantise_weights,
    maker_of,
    pairs_of,
    quantised,
    ranges_of,
    run_plainly,
)
from typed_graphs import parse, weight

from export.graph.lint import lint
from export.precision.int8.placement import (
    find_last_products,
    find_quantisable,
    plan_placement,
)
from export.precision.int8.rewriting import quantise_weights, to_int8

IMAGES = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
FEEDS = {"x": IMAGES}
CLOSE = 1e-4  # float32 against float64, of values around 1
W3, W4 = weight(4, 3, 3, 3), weight(4, 4, 3, 3)


def net(*lines: str, side: int = 8, **constants: np.ndarray) -> onnx.ModelProto:
    """A graph from x to y; each line makes tensors, `c(a, w)` is a padded convolution."""
    body = "\n".join(lines).replace("c(", "Conv <pads = [1,1,1,1]> (")
    text = f"net (float[B,3,8,8] x) => (float[B,4,{side},{side}] y) {{\n{body}\n}}"
    return parse(text, **{"w3": W3, "w4": W4, "w5": W4[::-1].copy()} | constants)


LAST = "y = c(z, w5)"

# Name, lines of the graph in front of `y = Conv(z)`, tensors that carry a pair, groups of more
# than one tensor.
CASES = [
    ("relu", ["a = c(x, w3)", "z = Relu(a)"], "x z", []),
    ("relu6", ["a = c(x, w3)", "z = Clip(a, low, high)"], "x z", []),
    ("hard_swish", ["a = c(x, w3)", "z = HardSwish(a)"], "x z", []),
    ("silu", ["a = c(x, w3)", "s = Sigmoid(a)", "z = Mul(a, s)"], "x z", []),
    ("two_readers", ["a = c(x, w3)", "b = c(a, w4)", "d = c(a, w5)", "z = Sub(b, d)"], "x a z", []),
    ("max_pool", ["a = c(x, w3)", "r = Relu(a)",
                  "z = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (r)"],
     "x r z", ["r z"]),
    ("concat", ["a = c(x, w3)", "r = Relu(a)", "b = c(x, w3)", "z2 = Concat <axis = 1> (r, b)",
                "z = Conv(z2, wide)"],
     "x r b z2 z", ["r b z2"]),
    ("residual", ["a = c(x, w3)", "r = Relu(a)", "b = c(r, w4)", "s = Add(b, r)", "z = Relu(s)"],
     "x r b z", []),
    ("residual_without_activation",
     ["a = c(x, w3)", "b = c(a, w4)", "z = Add(a, b)"], "x a b z", []),
    ("residual_then_silu",
     ["a = c(x, w3)", "b = c(x, w3)", "s = Add(a, b)", "g = Sigmoid(s)", "z = Mul(s, g)"],
     "x a b z", []),
    ("add_of_a_constant", ["a = c(x, w3)", "z = Add(a, shift)"], "x z", []),
    ("pyramid", ["a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w3)",
                 "u = Resize <mode = \"nearest\"> (a, none, twice)", "b = c(x, w3)",
                 "z = Add(b, u)"],
     "x a u b z", ["a u"]),
    ("linear_resize", ["a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w3)",
                       "z = Resize <mode = \"linear\"> (a, none, twice)"], "x z", []),
    ("depthwise", ["a = c(x, w3)", "r = Relu(a)",
                   "z = Conv <pads = [1,1,1,1], group = 4> (r, deep)"], "x r z", []),
    ("shuffle", ["a = c(x, w3)", "p = Transpose <perm = [0,1,3,2]> (a)",
                 "z = Slice(p, from0, to8, axis2)"], "x a p z", ["a p z"]),
    ("average_pool", ["a = c(x, w3)",
                      "z = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)"], "x z", []),
]  # fmt: skip
CONSTANTS = {
    "low": np.float32(0), "high": np.float32(6), "shift": np.ones((1, 4, 1, 1), np.float32),
    "wide": weight(4, 8, 1, 1), "deep": weight(4, 1, 3, 3), "none": np.zeros(0, np.float32),
    "twice": np.array([1, 1, 2, 2], np.float32), "from0": np.array([0]), "to8": np.array([8]),
    "axis2": np.array([2]),
}  # fmt: skip
each_case = pytest.mark.parametrize(
    ("lines", "tensors", "groups"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)


def case_net(lines: list[str]) -> onnx.ModelProto:
    text = " ".join(lines)
    used = {name: value for name, value in CONSTANTS.items() if name in text}
    return net(*lines, LAST, **used)


@each_case
def test_pairs_stand_at(lines, tensors, groups):
    placement = plan_placement(case_net(lines), quantise_heads=True)
    assert {*placement.tensors} == {*tensors.split()}
    found: dict[str, set[str]] = {}
    for name, first in placement.groups.items():
        found.setdefault(first, set()).add(name)
    assert sorted(sorted(g) for g in found.values() if len(g) > 1) == sorted(
        sorted(group.split()) for group in groups
    )


@each_case
def test_int8_graph_is_valid_and_close_to_float(lines, tensors, groups):
    model = case_net(lines)
    int8 = quantised(model, FEEDS, quantise_heads=True)
    onnx.checker.check_model(int8, full_check=True)
    assert {finding.rule for finding in lint(int8, target="portable")} <= {"image-input", "domain"}
    (exact,), (rounded,) = run_plainly(model, FEEDS), run_plainly(int8, FEEDS)
    noise = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0 < noise < 0.05  # 255 levels over four layers


@each_case
def test_all_members_of_a_group_read_one_scale(lines, tensors, groups):
    scales = pairs_of(quantised(case_net(lines), FEEDS, quantise_heads=True))
    for group in groups:
        assert len({scales[name] for name in group.split()}) == 1
    assert len({*scales.values()}) == len(scales) - sum(len(g.split()) - 1 for g in groups)


@each_case
def test_every_product_reads_dequantised_data_and_weights(lines, tensors, groups):
    int8 = quantised(case_net(lines), FEEDS, quantise_heads=True)
    products = [node for node in int8.graph.node if node.op_type == "Conv"]
    assert len(products) == len(find_quantisable(case_net(lines)))
    for node in products:
        assert [maker_of(int8, name).op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2


# ------------------------------------------------------------------------------------ the weights


def test_convolution_has_a_scale_for_each_output_channel():
    int8 = quantised(net("z = c(x, w3)", LAST), FEEDS)
    constants = constants_of(int8)
    assert constants["w3.int8_0"].dtype == np.int8
    np.testing.assert_allclose(
        constants["w3.scale0"], np.abs(W3).max(axis=(1, 2, 3)) / 127, rtol=1e-6
    )
    assert "w3" not in constants


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (2, 1, 5, 5), (7, 6)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_off_by_half_a_step_at_most(shape, axis):
    values = weight(*shape)
    levels, scales = quantise_weights(values, axis)
    assert len(scales) == shape[axis]
    steps = np.expand_dims(scales, [place for place in range(len(shape)) if place != axis])
    assert np.abs(levels * steps - values).max() <= scales.max() * 0.5001
    assert np.abs(levels).max() == 127


def test_channel_of_zeros_stays_zero():
    values = weight(4, 3, 3, 3)
    values[1] = 0
    levels, scales = quantise_weights(values, 0)
    assert not levels[1].any()
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_transposed_convolution_has_its_channels_on_axis_1():
    model = net("a = c(x, w3)", "z = ConvTranspose <pads = [1,1,1,1]> (a, up)", LAST,
                up=weight(4, 4, 3, 3))  # fmt: skip
    int8 = quantised(model, FEEDS)
    node = maker_of(int8, maker_of(int8, "z").input[1])
    assert {a.name: a.i for a in node.attribute} == {"axis": 1}
    np.testing.assert_allclose(
        constants_of(int8)["up.scale1"], np.abs(weight(4, 4, 3, 3)).max(axis=(0, 2, 3)) / 127,
        rtol=1e-6,
    )  # fmt: skip


def test_grouped_transposed_convolution_stays_float():
    model = net("a = c(x, w3)", "z = ConvTranspose <pads = [1,1,1,1], group = 4> (a, up)", LAST,
                up=weight(4, 1, 3, 3))  # fmt: skip
    assert find_quantisable(model) == ["a", "y"]


@pytest.mark.parametrize(("turned", "axis"), [(1, 0), (0, 1)], ids=["transposed", "plain"])
def test_gemm_has_its_channels_on_the_axis_of_its_columns(turned, axis):
    text = f"""
    net (float[B,6] x) => (float[B,5] y) {{
        a = Gemm <transB = {turned}> (x, first)
        r = Relu(a)
        y = Gemm(r, last)
    }}
    """
    model = parse(text, first=weight(7, 6) if turned else weight(6, 7), last=weight(7, 5))
    feeds = {"x": np.random.default_rng(1).normal(size=(1, 6)).astype(np.float32)}
    int8 = quantised(model, feeds)
    assert maker_of(int8, maker_of(int8, "a").input[1]).attribute[0].i == axis
    assert constants_of(int8)[f"first.scale{axis}"].shape == (7,)


def test_shared_weights_are_stored_once():
    model = net("a = c(x, w3)", "b = c(a, w4)", "z = c(b, w4)", LAST)
    int8 = quantised(model, FEEDS)
    readers = [node for node in int8.graph.node if "w4.int8_0" in node.input]
    assert len(readers) == 1
    assert "w4" not in constants_of(int8)


def test_weights_that_a_float_node_shares_are_kept_for_it():
    model = net("a = c(x, w3)", "b = c(a, w4)", "z = c(b, w4)", LAST)
    int8 = quantised(model, FEEDS, float_nodes={"z"})
    assert maker_of(int8, "z").input[1] == "w4"
    assert maker_of(int8, "b").input[1] == "w4.dq0"


def test_bias_stays_float32():
    model = net("z = Conv <pads = [1,1,1,1]> (x, w3, bias)", LAST, bias=weight(4))
    int8 = quantised(model, FEEDS)
    assert maker_of(int8, "z").input[2] == "bias"
    assert constants_of(int8)["bias"].dtype == np.float32


# ----------------------------------------------------------------------------------- what stays


def test_last_product_of_a_head_stays_float_unless_asked_for():
    model = net("a = c(x, w3)", "z = Relu(a)", LAST)
    assert find_last_products(model) == {"y"}
    assert plan_placement(model).products == ("a",)
    assert plan_placement(model, quantise_heads=True).products == ("a", "y")
    assert maker_of(quantised(model, FEEDS), "y").input[0] == "z"


def test_named_nodes_stay_float():
    model = net("a = c(x, w3)", "r = Relu(a)", "b = c(r, w4)", "z = Relu(b)", LAST)
    placement = plan_placement(model, float_nodes={"a"}, quantise_heads=True)
    assert placement.products == ("b", "y")
    assert placement.tensors == ("r", "z")


def test_name_that_is_no_product_is_refused():
    with pytest.raises(ValueError, match="'r' is no product that could be int8"):
        plan_placement(net("a = c(x, w3)", "z = Relu(a)", LAST), float_nodes={"r"})


def test_add_that_feeds_no_int8_product_stays_float():
    model = net("a = c(x, w3)", "b = c(x, w3)", "z = Add(a, b)", LAST)
    assert plan_placement(model).tensors == ("x",)


def test_graph_output_is_what_was_not_quantised():
    text = """
    net (float[B,3,8,8] x) => (float[B,4,8,8] a, float[B,4,8,8] y) {
        a = Conv <pads = [1,1,1,1]> (x, w3)
        y = Conv <pads = [1,1,1,1]> (a, w4)
    }
    """
    model = parse(text, w3=W3, w4=W4)
    int8 = quantised(model, FEEDS, quantise_heads=True)
    state, _ = run_plainly(int8, FEEDS)
    quantised_state = state / constants_of(int8)["a.scale"]
    assert np.abs(quantised_state - np.rint(quantised_state)).max() > 0.1


SELECTION = """
net (float[B,3,8,8] x) => (float[B,4,3] top, float[B,4,8,8] y) {
    a = Conv <pads = [1,1,1,1]> (x, w3)
    r = Relu(a)
    flat = Reshape(r, rows)
    top, places = TopK(flat, three)
    y = Conv <pads = [1,1,1,1]> (r, w4)
}
"""


def test_tail_reads_float():
    model = parse(SELECTION, w3=W3, w4=W4, rows=np.array([0, 4, 64]), three=np.array([3]))
    int8 = quantised(model, FEEDS, quantise_heads=True)
    assert maker_of(int8, "flat").input[0] == "r"
    assert maker_of(int8, "y").input[0] == "r.dq"


def test_float_reader_of_a_quantised_tensor_reads_what_is_quantised():
    model = net("a = c(x, w3)", "g = Sigmoid(a)", "b = c(a, w4)", "z = Mul(b, g)", LAST)
    int8 = quantised(model, FEEDS)
    assert maker_of(int8, "g").input[0] == "a.dq"


# ---------------------------------------------------------------------------------- what decides


def test_pooled_tensor_decides_on_the_scale_and_not_what_it_was_pooled_from():
    lines = next(case[1] for case in CASES if case[0] == "max_pool")
    placement = plan_placement(case_net(lines), quantise_heads=True)
    assert placement.observed == ("x", "z")


def test_tensor_of_which_a_float_node_reads_the_other_half_decides_too():
    model = net("a = c(x, w3)", "b, d = Split <axis = 1, num_outputs = 2> (a)", "e = Conv(b, half)",
                "g = Sigmoid(d)", "h = Concat <axis = 1> (g, g)", "z = Mul(e, h)", LAST,
                half=weight(4, 2, 1, 1))  # fmt: skip
    placement = plan_placement(model)
    assert {"a", "b"} <= {*placement.observed}
    assert placement.groups["b"] == placement.groups["a"]


def test_group_gets_the_widest_range_of_its_members():
    lines = next(case[1] for case in CASES if case[0] == "concat")
    model = case_net(lines)
    ranges = ranges_of(model, [FEEDS]) | {"r": 1.0, "b": 3.0, "z2": 2.0}
    placement = plan_placement(model)
    wanted = max(ranges[name] for name in placement.observed if name in ("r", "b", "z2"))
    scale = constants_of(to_int8(model, ranges))["r.scale"]
    assert scale == np.float32(wanted / 127)


def test_tensor_that_was_zero_on_every_frame_gets_a_scale_above_0():
    model = net("a = c(x, w3)", "r = Relu(a)", "z = c(r, w4)", LAST)
    ranges = ranges_of(model, [FEEDS]) | {"r": 0.0}
    assert constants_of(to_int8(model, ranges))["r.scale"] > 0


def test_missing_range_is_refused_by_name():
    with pytest.raises(ValueError, match="range of tensor 'x' is None"):
        to_int8(net("z = c(x, w3)", LAST), {})


def test_quantised_graph_is_refused():
    int8 = quantised(net("z = c(x, w3)", LAST), FEEDS)
    with pytest.raises(ValueError, match="is quantised already"):
        to_int8(int8, {})


def test_float_graph_is_not_changed_and_gives_the_same_int8_graph_again():
    model = net("a = c(x, w3)", "z = Relu(a)", LAST)
    before = model.SerializeToString(deterministic=True)
    first, second = (quantised(model, FEEDS).SerializeToString(deterministic=True) for _ in "ab")
    assert model.SerializeToString(deterministic=True) == before
    assert first == second


# ---------------------------------------------------------------------------------- arithmetic


def test_residual_net_computes_what_a_simulation_in_numpy_gives():
    model = net("a = c(x, w3)", "r = Relu(a)", "b = c(r, w4)", "s = Add(b, r)", "z = Relu(s)", LAST)
    ranges = ranges_of(model, [FEEDS], "mse")
    (found,) = run_plainly(to_int8(model, ranges, quantise_heads=True), FEEDS)
    x = fake_quantise(IMAGES[0].astype(np.float64), ranges["x"])
    r = np.maximum(convolve(x, fake_quantise_weights(W3), 1), 0)
    r = fake_quantise(r, ranges["r"])
    b = fake_quantise(convolve(r, fake_quantise_weights(W4), 1), ranges["b"])
    z = fake_quantise(np.maximum(b + r, 0), ranges["z"])
    expected = convolve(z, fake_quantise_weights(W4[::-1]), 1)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=CLOSE)


def test_concat_computes_what_a_simulation_in_numpy_gives():
    model = net("a = c(x, w3)", "r = Relu(a)", "b = c(x, w3b)",
                "k = Concat <axis = 1> (r, b)", "z = Conv(k, wide)", LAST,
                wide=weight(4, 8, 1, 1), w3b=5 * W3[::-1].copy())  # fmt: skip
    ranges = ranges_of(model, [FEEDS])
    (found,) = run_plainly(to_int8(model, ranges, quantise_heads=True), FEEDS)
    x = fake_quantise(IMAGES[0].astype(np.float64), ranges["x"])
    r = np.maximum(convolve(x, fake_quantise_weights(W3), 1), 0)
    b = convolve(x, fake_quantise_weights(5 * W3[::-1]), 1)
    k = fake_quantise(np.concatenate([r, b]), max(ranges[name] for name in ("r", "b", "k")))
    z = fake_quantise(convolve(k, fake_quantise_weights(weight(4, 8, 1, 1)), 0), ranges["z"])
    expected = convolve(z, fake_quantise_weights(W4[::-1]), 1)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=5 * CLOSE)
