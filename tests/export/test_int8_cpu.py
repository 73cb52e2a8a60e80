"""The int8 file for CPUs: same scales and results, uint8 activations."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from int8_graphs import constants_of, pairs_of, quantised, run_plainly
from test_int8_placement import CASES, FEEDS, case_net, net
from typed_graphs import parse, run, weight

from export.graph.lint import lint
from export.graph.types_audit import audit_types
from export.precision.int8.for_cpu import find_non_negative, to_cpu
from runtime.engines.openvino_layers import audit_openvino

CPU_NOISE = 0.02  # one-step differences of int8 kernels, of a result's norm


def zeros_of(cpu: onnx.ModelProto) -> dict[str, int]:
    """Quantised tensor -> its zero point."""
    constants = constants_of(cpu)
    nodes = cpu.graph.node
    return {n.input[0]: int(constants[n.input[2]]) for n in nodes if n.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("lines", [case[1] for case in CASES], ids=[case[0] for case in CASES])
def test_results_are_those_of_the_symmetric_graph_to_the_bit(lines):
    int8 = quantised(case_net(lines), FEEDS, quantise_heads=True)  # ranges from the maximum
    cpu = to_cpu(int8)
    onnx.checker.check_model(cpu, full_check=True)
    assert pairs_of(cpu) == pairs_of(int8)
    for ours, theirs in zip(run_plainly(int8, FEEDS), run_plainly(cpu, FEEDS), strict=True):
        np.testing.assert_array_equal(ours, theirs)


ZEROS = [
    ("relu", "z = Relu(a)", 0),
    ("relu6", "z = Clip(a, low, high)", 0),
    ("clip_below_zero", "z = Clip(a, below, high)", 128),
    ("sigmoid", "z = Sigmoid(a)", 0),
    ("softmax", "z = Softmax <axis = 1> (a)", 0),
    ("hard_swish", "z = HardSwish(a)", 128),
    ("silu", "g = Sigmoid(a)\nz = Mul(a, g)", 128),
    ("gated_relu", "g = Sigmoid(a)\nr = Relu(a)\nz = Mul(r, g)", 0),
    ("none", "z = Identity(a)", 128),
    ("difference", "r = Relu(a)\ng = Sigmoid(a)\nz = Sub(r, g)", 128),
    ("sum", "r = Relu(a)\ng = Sigmoid(a)\nz = Add(r, g)", 0),
    ("scaled_down", "r = Relu(a)\nz = Mul(r, below)", 128),
    ("pooled", "r = Relu(a)\nz = MaxPool <kernel_shape = [1,1]> (r)", 0),
    ("padded_pool",
     "r = Relu(a)\nz = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (r)", 0),
    ("capped", "r = Relu(a)\nz = Clip(r, none, high)", 0),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "zero"), [c[1:] for c in ZEROS], ids=[c[0] for c in ZEROS])
def test_zero_point_is_0_only_where_a_tensor_cannot_be_negative(lines, zero):
    values = {"low": 0, "high": 6, "below": -1}
    used = {name: np.float32(value) for name, value in values.items() if name in lines}
    lines = lines.replace("none", "")
    model = net("a = c(x, w3)", lines, "y = c(z, w5)", **used)
    cpu = to_cpu(quantised(model, FEEDS, quantise_heads=True))
    assert zeros_of(cpu)["z"] == zero


def test_tensors_that_share_a_scale_share_a_zero_point():
    lines = next(case[1] for case in CASES if case[0] == "concat")
    zeros = zeros_of(to_cpu(quantised(case_net(lines), FEEDS, quantise_heads=True)))
    assert {zeros[name] for name in ("r", "b", "z2")} == {128}
    lines = next(case[1] for case in CASES if case[0] == "max_pool")
    zeros = zeros_of(to_cpu(quantised(case_net(lines), FEEDS, quantise_heads=True)))
    assert {zeros[name] for name in ("r", "z")} == {0}


def test_pixels_are_non_negative_and_pixels_less_their_mean_are_not():
    text = """
    net (uint8[B,8,8,3] image) => (float[B,4,8,8] y, float[B,4,8,8] y2) {
        f = Cast <to = 1> (image)
        p = Transpose <perm = [0,3,1,2]> (f)
        y = Conv <pads = [1,1,1,1]> (p, w)
        s = Sub(p, mean)
        y2 = Conv <pads = [1,1,1,1]> (s, w)
    }
    """
    mean = np.full((1, 3, 1, 1), 100, np.float32)
    model = parse(text, w=weight(4, 3, 3, 3), mean=mean)
    assert {"f", "p"} <= find_non_negative(model)
    assert "s" not in find_non_negative(model)


def test_weights_keep_their_symmetric_levels():
    cpu = to_cpu(quantised(net("z = c(x, w3)", "y = c(z, w5)"), FEEDS))
    assert constants_of(cpu)["w3.int8_0"].dtype == np.int8
    assert not constants_of(cpu)["w3.zero0"].any()


def test_lint_allows_it_as_the_file_for_cpus_only():
    cpu = to_cpu(quantised(net("a = c(x, w3)", "z = Relu(a)", "y = c(z, w5)"), FEEDS))
    rules = {finding.rule for finding in lint(cpu, target="portable")}
    assert {"zero-point", "uint8"} <= rules
    rules = {finding.rule for finding in lint(cpu, target="portable", is_cpu_int8=True)}
    assert rules.isdisjoint({"zero-point", "uint8", "scale"})


@pytest.mark.parametrize("name", ["relu", "concat", "residual", "pyramid", "silu", "depthwise"])
def test_onnx_runtime_s_int8_kernels_find_the_same(name):
    lines = next(case[1] for case in CASES if case[0] == name)
    cpu = to_cpu(quantised(case_net(lines), FEEDS, quantise_heads=True))
    (plain,), (fused,) = run_plainly(cpu, FEEDS), run(cpu, **FEEDS)
    assert np.linalg.norm(fused - plain) <= CPU_NOISE * np.linalg.norm(plain)


@pytest.mark.parametrize("name", ["relu", "concat", "residual", "max_pool", "pyramid"])
def test_openvino_runs_every_product_in_int8_and_finds_the_same(name):
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO")
    lines = next(case[1] for case in CASES if case[0] == name)
    cpu = to_cpu(quantised(case_net(lines), FEEDS, quantise_heads=True))
    core = openvino.Core()
    model = core.read_model(cpu.SerializeToString())
    model.reshape([1, 3, 8, 8])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    shares = audit_types(cpu, "int8").shares
    assert shares == {"int8": 1.0}
    assert audit_openvino(compiled, "int8", file_shares=shares).shares == {"int8": 1.0}
    found = compiled(FEEDS["x"])[0]
    (plain,) = run_plainly(cpu, FEEDS)
    assert np.linalg.norm(found - plain) <= CPU_NOISE * np.linalg.norm(plain)
