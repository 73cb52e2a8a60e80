"""Folding batch normalisation: the same answers in ONNX Runtime, and hands off what is shared."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from export.graph.batch_norm import fold_batch_norms

SAME = 1e-5
CHANNELS = 4

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\nnet (float[B, 4, 6, 6] x)'


def parse(body: str, outputs: str = "float[B, 4, 6, 6] y") -> onnx.ModelProto:
    """A graph with random weights w0 ... and statistics s0 ... (gain, shift, mean, variance)."""
    model = onnx.parser.parse_model(f"{HEADER} => ({outputs})\n{{\n{body}\n}}")
    rng = np.random.default_rng(0)
    used = {name for node in model.graph.node for name in node.input}
    shapes = {"w": (CHANNELS, CHANNELS, 3, 3), "g": (CHANNELS, 1, 3, 3), "v": (CHANNELS,)}
    for name in sorted(used):
        shape = shapes.get(name[0], (CHANNELS,))
        if name[0] in "wgbpqmv" and name[1:].isdigit():
            value = rng.uniform(0.2, 3, shape) if name[0] == "v" else rng.normal(0, 1, shape)
            model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def norm(index: int, source: str, target: str, epsilon: float = 1e-3) -> str:
    statistics = ", ".join(f"{letter}{index}" for letter in "pqmv")
    return f"{target} = BatchNormalization<epsilon = {epsilon}>({source}, {statistics})"


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    x = np.random.default_rng(1).normal(0, 1, (2, CHANNELS, 6, 6)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


def folded(model: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    count = fold_batch_norms(copy)
    onnx.checker.check_model(copy, full_check=True)
    return count, copy


CONV = "c = Conv<pads = [1, 1, 1, 1]>(x, w0)"
FOLDABLE = {
    "no-bias": (f"{CONV}\n{norm(0, 'c', 'y')}", 1),
    "bias": (f"c = Conv<pads = [1, 1, 1, 1]>(x, w0, b0)\n{norm(0, 'c', 'y')}", 1),
    "large-epsilon": (f"{CONV}\n{norm(0, 'c', 'y', 0.5)}", 1),
    "depthwise": (f"c = Conv<group = 4, pads = [1, 1, 1, 1]>(x, g0)\n{norm(0, 'c', 'y')}", 1),
    "weights-shared-by-two-levels": (
        f"""c = Conv<pads = [1, 1, 1, 1]>(x, w0, b0)
        {norm(0, "c", "d")}
        e = Conv<pads = [1, 1, 1, 1]>(d, w0, b0)
        {norm(1, "e", "f")}
        z = Conv<pads = [1, 1, 1, 1]>(f, w0, b0)
        y = Relu(z)""",
        2,
    ),
}
KEPT = {
    "convolution-read-twice": f"{CONV}\n{norm(0, 'c', 'd')}\ny = Add(c, d)",
    "one-convolution-two-norms": f"{CONV}\n{norm(0, 'c', 'd')}\n{norm(1, 'c', 'e')}\ny = Add(d, e)",
    "no-convolution-before": f"r = Relu(x)\n{norm(0, 'r', 'y')}",
    "weights-made-in-the-graph": (
        f"h = Identity(w0)\nc = Conv<pads = [1, 1, 1, 1]>(x, h)\n{norm(0, 'c', 'y')}"
    ),
}


@pytest.mark.parametrize(("body", "count"), FOLDABLE.values(), ids=FOLDABLE)
def test_folded_graph_answers_the_same(body, count):
    model = parse(body)
    found, changed = folded(model)
    assert found == count
    assert "BatchNormalization" not in {node.op_type for node in changed.graph.node}
    expected = run(model)[0]
    assert np.abs(run(changed)[0] - expected).max() <= SAME * max(1, np.abs(expected).max())


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_what_cannot_be_folded_stays_as_it_is(body):
    model = parse(body)
    found, changed = folded(model)
    assert found == 0
    assert [n.op_type for n in changed.graph.node] == [n.op_type for n in model.graph.node]
    assert np.array_equal(run(changed)[0], run(model)[0])


def test_convolution_whose_output_is_the_graphs_is_not_folded():
    model = parse(f"{CONV}\n{norm(0, 'c', 'y')}", "float[B, 4, 6, 6] y, float[B, 4, 6, 6] c")
    assert folded(model)[0] == 0


def test_shared_weights_stay_for_the_convolution_that_has_no_norm():
    _, changed = folded(parse(FOLDABLE["weights-shared-by-two-levels"][0]))
    names = {tensor.name for tensor in changed.graph.initializer}
    assert {"w0", "b0", "d.weight", "d.bias", "f.weight", "f.bias"} == names


def test_statistics_that_nothing_reads_any_more_are_dropped():
    _, changed = folded(parse(FOLDABLE["no-bias"][0]))
    assert {tensor.name for tensor in changed.graph.initializer} == {"y.weight", "y.bias"}


def test_weight_that_only_a_subgraph_reads_is_kept():
    model = with_branch()
    count, changed = folded(model)
    assert count == 1
    assert "w9" in {tensor.name for tensor in changed.graph.initializer}
    assert np.abs(run(changed)[0] - run(model)[0]).max() <= SAME * np.abs(run(model)[0]).max()


def with_branch() -> onnx.ModelProto:
    text = f"""{HEADER} => (float[B, 4, 6, 6] y)
<float[4] p0 = {{1, 2, 3, 4}}, float[4] q0 = {{1, 1, 1, 1}}, float[4] m0 = {{0, 1, 0, 1}},
 float[4] v0 = {{1, 2, 1, 2}}, bool yes = {{1}}, float[4, 4, 1, 1] w0 = {{{", ".join("1" * 16)}}},
 float[4, 4, 1, 1] w9 = {{{", ".join("2" * 16)}}}>
{{
    c = Conv(x, w0)
    {norm(0, "c", "d")}
    y = If (yes) <
        then_branch = a () => (float[B, 4, 6, 6] t) {{ t = Conv(d, w9) }},
        else_branch = b () => (float[B, 4, 6, 6] e) {{ e = Identity(d) }}
    >
}}"""
    return onnx.parser.parse_model(text)
