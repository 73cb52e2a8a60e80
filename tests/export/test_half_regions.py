"""Which nodes of small graphs become half, and that their results stay what they were."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from typed_graphs import FLOAT, HALF, casts_of, kinds_of, parse, run, weight

from export.graph.lint import lint
from export.graph.operators import attach_functions
from export.precision.half import to_half
from export.precision.regions import PRODUCTS, fits_half
from runtime.engines.build import build_plan
from runtime.engines.flavour import load_flavour

# Products of a few numbers near 1, rounded to 11 bits at each step.
ROUNDING = 0.01

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)


def assert_close(model: onnx.ModelProto, **feeds: np.ndarray) -> onnx.ModelProto:
    """Convert, hold the results against float32 in ONNX Runtime, give the mixed graph."""
    mixed = to_half(model)
    for exact, rounded in zip(run(model, **feeds), run(mixed, **feeds), strict=True):
        assert rounded.dtype == exact.dtype
        scale = np.abs(exact).max()
        assert 0 < scale < np.inf
        np.testing.assert_allclose(rounded, exact, rtol=0, atol=ROUNDING * scale)
    return mixed


TWO_CONVS = """
net (float[B,3,8,8] x) => (float[B,4,8,8] y) {
    first = Conv <pads = [1,1,1,1]> (x, w1)
    active = Relu (first)
    y = Conv <pads = [1,1,1,1]> (active, w2)
}
"""


def test_output_of_a_convolution_keeps_its_name_and_type():
    mixed = assert_close(parse(TWO_CONVS, w1=weight(4, 3, 3, 3), w2=weight(4, 4, 3, 3)), x=IMAGES)
    assert kinds_of(mixed, "Conv") == [HALF, HALF]
    assert kinds_of(mixed, "Relu") == [HALF]


def test_weight_beyond_half_leaves_its_convolution_in_float32():
    large = weight(4, 4, 3, 3)
    large[0, 0, 0, 0] = 70_000
    mixed = assert_close(parse(TWO_CONVS, w1=weight(4, 3, 3, 3), w2=large), x=IMAGES)
    assert kinds_of(mixed, "Conv") == [HALF, FLOAT]
    assert "w2" in {tensor.name for tensor in mixed.graph.initializer}


def test_weight_that_half_would_flush_leaves_its_convolution_in_float32():
    tiny = weight(4, 4, 3, 3, scale=1e-7)
    mixed = assert_close(parse(TWO_CONVS, w1=weight(4, 3, 3, 3), w2=tiny), x=IMAGES)
    assert kinds_of(mixed, "Conv") == [HALF, FLOAT]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([65504.0], True),
        ([65520.0], False),
        ([-1e9], False),
        ([-np.inf, 1.0], True),
        ([1.0, 1e-9], True),
        ([1e-12], False),
        ([0.0], True),
        ([], True),
    ],
    ids=str,
)
def test_fits_half_says_whether_a_constant_survives(value, expected):
    assert fits_half(np.array(value, np.float32)) is expected


def test_weight_read_in_both_types_is_stored_in_both():
    text = """
    net (float[B,3,8,8] x) => (float[B,4,8,8] y) {
        shifted = Add (x, shared)
        first = Conv <pads = [1,1,1,1]> (shifted, w1)
        again = Add (first, shared)
        y = Conv <pads = [1,1,1,1]> (again, w2)
    }
    """
    shared = np.array([[[[0.5]]]], np.float32)
    model = parse(text, w1=weight(4, 3, 3, 3), w2=weight(4, 4, 3, 3), shared=shared)
    mixed = assert_close(model, x=IMAGES)
    assert kinds_of(mixed, "Add") == [FLOAT, HALF]
    stored = {tensor.name: tensor.data_type for tensor in mixed.graph.initializer}
    assert stored == {"w1.half": HALF, "w2.half": HALF, "shared": FLOAT, "shared.half": HALF}


def test_weight_read_twice_in_half_is_stored_once():
    text = """
    net (float[B,3,8,8] x) => (float[B,3,8,8] y) {
        first = Conv <pads = [1,1,1,1]> (x, w)
        y = Conv <pads = [1,1,1,1]> (first, w)
    }
    """
    mixed = assert_close(parse(text, w=weight(3, 3, 3, 3)), x=IMAGES)
    assert [tensor.name for tensor in mixed.graph.initializer] == ["w.half"]


def test_what_comes_before_the_first_convolution_is_float32():
    text = """
    net (float[B,3,8,8] x) => (float[B,4,4,4] y) {
        pooled = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x)
        doubled = Add (pooled, pooled)
        y = Conv <pads = [1,1,1,1]> (doubled, w)
    }
    """
    mixed = assert_close(parse(text, w=weight(4, 3, 3, 3)), x=IMAGES)
    assert kinds_of(mixed, "MaxPool") == kinds_of(mixed, "Add") == [FLOAT]
    assert kinds_of(mixed, "Conv") == [HALF]


def test_tensor_that_several_convolutions_read_is_cast_once():
    text = """
    net (float[B,3,8,8] x) => (float[B,8,8,8] y) {
        a = Conv <pads = [1,1,1,1]> (x, w)
        b = Conv <pads = [1,1,1,1]> (x, w)
        y = Concat <axis = 1> (a, b)
    }
    """
    mixed = assert_close(parse(text, w=weight(4, 3, 3, 3)), x=IMAGES)
    assert [list(node.output) for node in casts_of(mixed)] == [["x.half"], ["y"]]


def test_resize_keeps_its_scales_and_works_in_half():
    text = """
    net (float[B,3,8,8] x) => (float[B,4,16,16] y) {
        small = Conv <pads = [1,1,1,1]> (x, w1)
        large = Resize <mode = "nearest"> (small, , scales)
        y = Conv <pads = [1,1,1,1]> (large, w2)
    }
    """
    scales = np.array([1, 1, 2, 2], np.float32)
    model = parse(text, w1=weight(4, 3, 3, 3), w2=weight(4, 4, 3, 3), scales=scales)
    mixed = assert_close(model, x=IMAGES)
    assert kinds_of(mixed, "Resize") == [HALF]
    assert {t.name: t.data_type for t in mixed.graph.initializer}["scales"] == FLOAT


def test_shape_of_a_half_tensor_needs_no_cast():
    text = """
    net (float[B,3,8,8] x) => (float[B,4,8,8] y) {
        small = Conv <pads = [1,1,1,1]> (x, w1)
        sizes = Shape (small)
        same = Reshape (small, sizes)
        y = Conv <pads = [1,1,1,1]> (same, w2)
    }
    """
    model = parse(text, w1=weight(4, 3, 3, 3), w2=weight(4, 4, 3, 3))
    assert len(casts_of(assert_close(model, x=IMAGES))) == 2


def test_softmax_between_products_is_float32():
    text = """
    net (float[B,3,8,8] x) => (float[B,3,8,8] y) {
        near = MatMul (x, w1)
        shares = Softmax <axis = -1> (near)
        y = MatMul (shares, w2)
    }
    """
    mixed = assert_close(parse(text, w1=weight(8, 8), w2=weight(8, 7)[:, [0, *range(7)]]), x=IMAGES)
    assert kinds_of(mixed, "Softmax") == [FLOAT]
    assert kinds_of(mixed, "MatMul") == [HALF, HALF]


def test_output_inside_the_trunk_does_not_take_the_trunk_out_of_half():
    text = """
    net (float[B,3,8,8] x) => (float[B,3,8,8] feature, float[B,3,8,8] y) {
        first = Conv <pads = [1,1,1,1]> (x, w)
        feature = Relu (first)
        second = Conv <pads = [1,1,1,1]> (feature, w)
        sum = Add (feature, second)
        y = Conv <pads = [1,1,1,1]> (sum, w)
    }
    """
    mixed = assert_close(parse(text, w=weight(3, 3, 3, 3)), x=IMAGES)
    assert kinds_of(mixed, "Relu") == kinds_of(mixed, "Add") == [HALF]
    assert kinds_of(mixed, "Conv") == [HALF] * 3


def test_what_follows_the_last_convolution_is_float32():
    text = """
    net (float[B,3,8,8] x) => (float[B,64,4] y) {
        first = Conv <pads = [1,1,1,1]> (x, w)
        rows = Transpose <perm = [0,2,3,1]> (first)
        flat = Reshape (rows, sizes)
        y = Sigmoid (flat)
    }
    """
    model = parse(text, w=weight(4, 3, 3, 3), sizes=np.array([0, 64, 4]))
    mixed = assert_close(model, x=IMAGES)
    assert kinds_of(mixed, "Transpose") == kinds_of(mixed, "Reshape") == [HALF]
    assert kinds_of(mixed, "Sigmoid") == [FLOAT]


def test_coordinates_are_float32_though_a_convolution_reads_them_too():
    text = """
    net (float[B,3,8,8] x) => (float[B,2,8,8] y) {
        flow = Conv <pads = [1,1,1,1]> (x, w)
        small = Tanh (flow)
        grid = Transpose <perm = [0,2,3,1]> (small)
        warped = GridSample <mode = "bilinear"> (flow, grid)
        sum = Add (warped, small)
        y = Conv <pads = [1,1,1,1]> (sum, w2)
    }
    """
    mixed = assert_close(parse(text, w=weight(2, 3, 3, 3), w2=weight(2, 2, 3, 3)), x=IMAGES)
    assert kinds_of(mixed, "Tanh") == kinds_of(mixed, "GridSample") == [FLOAT]
    assert kinds_of(mixed, "Add") == [HALF]


def test_cast_of_truth_values_goes_to_half_directly():
    text = """
    net (float[B,3,8,8] x) => (float[B,3,8,8] y) {
        first = Conv <pads = [1,1,1,1]> (x, w)
        is_large = Greater (x, x)
        is_small = Not (is_large)
        gate = Cast <to = 1> (is_small)
        gated = Mul (first, gate)
        y = Conv <pads = [1,1,1,1]> (gated, w)
    }
    """
    mixed = assert_close(parse(text, w=weight(3, 3, 3, 3)), x=IMAGES)
    assert kinds_of(mixed, "Mul") == [HALF]
    assert {node.input[0] for node in casts_of(mixed)} == {"x", "is_small", "y.half"}


SELECTING = """
net (float[B,3,8,8] x, float[B,4] limit) => (float[B,8] scores, float[B,8,5] products) {
    first = Conv <pads = [1,1,1,1]> (x, w)
    logits = Reshape (first, rows)
    scores, anchors, classes = kestrel.KestrelSelect <candidates = 8, activation = "sigmoid">
        (logits, limit)
    at = Unsqueeze (anchors, last)
    wide = Expand (at, wide_shape)
    chosen = GatherElements <axis = 1> (logits, wide)
    products = MatMul (chosen, mix)
}
"""


def test_product_that_depends_on_a_selection_is_float32():
    model = parse(
        SELECTING,
        w=weight(4, 3, 3, 3),
        rows=np.array([0, 64, 4]),
        last=np.array([-1]),
        wide_shape=np.array([1, 1, 4]),
        mix=weight(4, 5),
    )
    kinds = {"scores": (FLOAT, ["B", 8]), "anchors": (7, ["B", 8]), "classes": (7, ["B", 8])}
    for name, (kind, shape) in kinds.items():
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    mixed = to_half(model)
    assert kinds_of(mixed, "Conv") == kinds_of(mixed, "Reshape") == [HALF]
    assert kinds_of(mixed, "KestrelSelect") == kinds_of(mixed, "MatMul") == [FLOAT]
    assert kinds_of(mixed, "GatherElements") == [FLOAT]
    assert lint(attach_functions(mixed, early_exit=True, inline=True), target="portable")[
        0
    ].rule in ("image-input",)


def test_graph_that_is_half_already_is_refused():
    mixed = to_half(parse(TWO_CONVS, w1=weight(4, 3, 3, 3), w2=weight(4, 4, 3, 3)))
    with pytest.raises(ValueError, match="is half already, expected a float32 graph"):
        to_half(mixed)


def test_every_product_is_known_to_onnx():
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert known >= PRODUCTS


# Blocks that networks are made of: squeeze and excite, upsampling, warping, attention, norms.
BLOCKS = """
net (float[B,3,8,8] x) => (float[B,4,8,8] y, float[B,8,8,8] up, float[B,4,8,8] taps) {
    c1 = Conv <pads = [1,1,1,1]> (x, w1)
    b1 = BatchNormalization (c1, g, s, m, v)
    h1 = HardSwish (b1)
    i1 = InstanceNormalization (h1, g, s)
    c2 = Conv <pads = [1,1,1,1]> (i1, w2)
    p = GlobalAveragePool (c2)
    q = Sigmoid (p)
    se = Mul (c2, q)
    half = Conv <pads = [1,1,1,1], strides=[2,2]> (se, w2)
    ct = ConvTranspose <strides=[2,2], kernel_shape=[2,2]> (half, wt)
    sw = Sigmoid (ct)
    silu = Mul (ct, sw)
    down = MaxPool <kernel_shape = [2,2], strides = [2,2]> (silu)
    rs = Resize <mode="linear", coordinate_transformation_mode="half_pixel"> (down, , scales)
    flow = Conv <pads = [1,1,1,1]> (rs, wf)
    flowt = Transpose <perm=[0,2,3,1]> (flow)
    grid = Add (flowt, base)
    warped = GridSample <mode="bilinear", padding_mode="border", align_corners=0> (rs, grid)
    y = Conv <pads = [1,1,1,1]> (warped, w2)
    cl = Clip (silu, zero, six)
    pd = Pad (cl, pads, zero)
    sl = Slice (pd, st, en, ax)
    cat = Concat <axis=1> (sl, c2)
    mm = MatMul (cat, wm)
    sm = Softmax <axis=-1> (mm)
    up = MatMul (sm, wm)
    r1 = ReduceMean <keepdims=1> (silu, axes)
    d1 = Sub (silu, r1)
    sq = Mul (d1, d1)
    va = ReduceMean <keepdims=1> (sq, axes)
    ve = Add (va, eps)
    sd = Sqrt (ve)
    nn = Div (d1, sd)
    taps = Conv <pads = [1,1,1,1]> (nn, w2)
}
"""


def test_blocks_of_many_networks_agree_and_build(tmp_path):
    ones = np.ones(4, np.float32)
    ys, xs = np.meshgrid(np.linspace(-0.8, 0.8, 8), np.linspace(-0.8, 0.8, 8), indexing="ij")
    model = parse(
        BLOCKS,
        w1=weight(4, 3, 3, 3), w2=weight(4, 4, 3, 3), wt=weight(4, 4, 2, 2),
        wf=weight(2, 4, 3, 3, scale=0.1), wm=weight(8, 8),
        g=ones * 0.9, s=ones * 0.1, m=ones * 0.05, v=ones * 0.7,
        scales=np.array([1, 1, 2, 2], np.float32),
        base=np.stack([xs, ys], -1)[None].astype(np.float32),
        zero=np.array(0, np.float32), six=np.array(6, np.float32), eps=np.array(1e-6, np.float32),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        st=np.array([1, 1]), en=np.array([9, 9]), ax=np.array([2, 3]), axes=np.array([1]),
    )  # fmt: skip
    mixed = assert_close(model, x=IMAGES)
    assert set(kinds_of(mixed, "Conv")) == {HALF}
    assert kinds_of(mixed, "GridSample") == kinds_of(mixed, "InstanceNormalization") == [FLOAT]
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build real engines")
    path = tmp_path / "blocks.onnx"
    onnx.save(mixed, path)
    shapes = {batch: {"x": (batch, 3, 8, 8)} for batch in (1, 4)}
    rtx = load_flavour("tensorrt_rtx")
    assert build_plan(path, flavour=rtx, precision="fp16", shapes=shapes).data
