"""State between two graphs: its type in half, and what is never int8 on the way to a warp."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from tiny_state import write_tiny_state_bundle

from export.precision.half import to_half
from export.precision.int8.leaning import AGES, leaning_feeds, look_back
from export.precision.int8.observing import observe
from export.precision.int8.placement import find_last_products, plan_placement
from export.precision.state import halve_state
from runtime.contract.bundle import Bundle
from runtime.contract.errors import ManifestError
from runtime.contract.manifest import MANIFEST_NAME
from runtime.contract.outputs import CHANGE, KEY, NONKEY

STATE = {"features": "features_key", "source": "source_key"}
HALF_ERROR = 0.02  # of numbers around 1, over four convolutions
HEAD = '<ir_version: 9, opset_import: ["" : 18]>\n'
KEY_TEXT = """key (float[B,3,8,8] image) => (float[B,4,8,8] features, float[B,4,8,8] source)
{
  first = Conv<pads = [1, 1, 1, 1]>(image, w_first)
  features = Relu(first)
  second = Conv<pads = [1, 1, 1, 1]>(features, w_second)
  source = Tanh(second)
}"""
# The flow is where features are read, and a convolution reads it as well.
NONKEY_TEXT = """nonkey (float[B,3,8,8] image, float[B,4,8,8] features_key,
  float[B,4,8,8] source_key) => (float[B,4,8,8] answer, float[B,1,1,1] change)
{
  now = Conv<pads = [1, 1, 1, 1]>(image, w_first)
  joint = Add(now, source_key)
  flow = Conv<pads = [1, 1, 1, 1]>(joint, w_flow)
  seen = Conv<pads = [1, 1, 1, 1]>(flow, w_seen)
  grid = Transpose<perm = [0, 2, 3, 1]>(flow)
  warped = GridSample<align_corners = 1, mode = "bilinear">(features_key, grid)
  both = Add(warped, seen)
  fused = Conv<pads = [1, 1, 1, 1]>(both, w_second)
  answer = Conv<pads = [1, 1, 1, 1]>(fused, w_second)
  size = Abs(flow)
  change = ReduceMean<keepdims = 1>(size, axes)
}"""
SHAPES = {
    "w_first": (4, 3, 3, 3),
    "w_second": (4, 4, 3, 3),
    "w_flow": (2, 4, 3, 3),
    "w_seen": (4, 2, 3, 3),
}


def read(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD + text)
    rng = np.random.default_rng(1)
    for name, shape in SHAPES.items():
        fan_in = np.prod(shape[1:])
        value = (rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    if "axes" in text:
        axes = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")
        model.graph.initializer.append(axes)
    return model


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [info.name for info in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def image() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(2, 3, 8, 8)).astype(np.float32)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    infos = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    return {info.name: info.type.tensor_type.elem_type for info in infos}


# -------------------------------------------------------------------------------------- half state


def test_graphs_in_half_pass_half_state_and_answer_as_in_float32():
    wholes = [read(KEY_TEXT), read(NONKEY_TEXT)]
    halves = [halve_state(to_half(each), STATE) for each in wholes]
    answers = []
    for key, nonkey in (wholes, halves):
        left = run(key, {"image": image()})
        given = {STATE[name]: value for name, value in left.items()}
        answers.append(left | run(nonkey, {"image": image() * 0.5, **given}))
    ours, theirs = answers
    assert {theirs[name].dtype for name in STATE} == {np.dtype(np.float16)}
    assert theirs["answer"].dtype == theirs["change"].dtype == np.float32
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, atol=HALF_ERROR)
    assert np.abs(ours["answer"]).max() > 10 * HALF_ERROR


def test_state_that_half_convolutions_read_is_not_cast():
    nonkey = halve_state(to_half(read(NONKEY_TEXT)), STATE)
    readers = [node.op_type for node in nonkey.graph.node if "source_key" in node.input]
    assert readers == ["Add"]


def test_state_is_sampled_in_float32():
    nonkey = halve_state(to_half(read(NONKEY_TEXT)), STATE)
    (node,) = [each for each in nonkey.graph.node if each.op_type == "GridSample"]
    types = types_of(nonkey)
    assert [types[name] for name in node.input] == [TensorProto.FLOAT] * 2


def test_state_that_was_made_in_float32_is_cast_once_at_the_end():
    key = halve_state(to_half(read(KEY_TEXT)), STATE)  # Tanh follows the last product
    makers = {name: node for node in key.graph.node for name in node.output}
    assert makers["source"].op_type == "Cast"
    assert makers[makers["source"].input[0]].op_type == "Tanh"
    assert makers["features"].op_type == "Relu"  # was made in half


def test_graph_without_state_stays_as_it_is():
    half = to_half(read(KEY_TEXT))
    assert halve_state(half, {"other": "other_key"}) == half


# -------------------------------------------------------------------------------------------- int8


def test_product_whose_result_is_where_features_are_read_stays_float_whoever_reads_it_too():
    base = read(NONKEY_TEXT)
    assert find_last_products(base) == {"flow", "answer"}
    assert {*plan_placement(base).products} == {"now", "seen", "fused"}


def test_state_that_enters_an_int8_sum_is_observed_as_it_is_fed():
    base = read(NONKEY_TEXT)
    tensors = plan_placement(base, quantise_heads=True).tensors  # the flow's convolution, too
    assert "source_key" in tensors
    feeds = {"image": image()[:1]}
    feeds |= {name: np.full((1, 4, 8, 8), -3, np.float32) for name in STATE.values()}
    assert observe(base, tensors, [feeds])["source_key"].largest == 3


# ------------------------------------------------------------------------------------- calibration


def test_frames_between_key_frames_are_fed_the_state_of_what_they_were_before():
    frames = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3), np.uint8)
    key = read(KEY_TEXT)
    cast = onnx.parser.parse_model(
        HEAD
        + """front (uint8[B,8,8,3] image) => (float[B,3,8,8] planar)
        { whole = Cast<to = 1>(image) planar = Transpose<perm = [0, 3, 1, 2]>(whole) }"""
    )
    key = onnx.compose.merge_models(
        cast, onnx.compose.add_prefix(key, "k_"), io_map=[("planar", "k_image")]
    )
    state = {f"k_{name}": value for name, value in STATE.items()}
    fed = list(leaning_feeds(key, state, frames))
    assert len(fed) == 2
    for turn, (frame, each) in enumerate(zip(frames, fed, strict=True)):
        assert np.array_equal(each["image"], frame[None])
        expected = run(key, {"image": look_back(frame, turn)[None]})
        for name, given in state.items():
            np.testing.assert_allclose(each[given], expected[name], atol=1e-5)


@pytest.mark.parametrize("turn", range(4))
def test_frame_as_it_was_has_moved_with_its_age(turn):
    height, width = 120, 200
    frame = np.zeros((height, width, 3), np.uint8)
    cv2.circle(frame, (100, 60), 6, (255, 255, 255), -1)
    rows, columns = np.nonzero(look_back(frame, turn)[..., 0] > 127)
    shift = np.array([columns.mean() - 100, rows.mean() - 60])
    expected = np.array(((1, 0), (0, 1), (-1, 0), (0, -1))[turn]) * AGES[turn] * 0.01 * width
    np.testing.assert_allclose(shift, expected, atol=0.6)


# ---------------------------------------------------------------------------------------- contract


def test_change_is_an_output_of_nonkey_alone(tmp_path):
    manifest = write_tiny_state_bundle(tmp_path).manifest
    assert CHANGE in manifest.outputs_of_graph(NONKEY)
    assert CHANGE not in manifest.outputs_of_graph(KEY)
    assert len(manifest.outputs_of_graph(KEY)) == len(manifest.outputs) - 1


@pytest.mark.parametrize("lacking", ["key", "state"])
def test_nonkey_without_key_or_state_is_refused(tmp_path, lacking):
    manifest = write_tiny_state_bundle(tmp_path).manifest
    graphs = {NONKEY: manifest.graphs[NONKEY]} if lacking == "key" else manifest.graphs
    state = {} if lacking == "state" else manifest.state
    wrong = dataclasses.replace(manifest, graphs=graphs, state=state)
    (tmp_path / MANIFEST_NAME).write_text(wrong.to_json())
    with pytest.raises(ManifestError, match="expected 'key' beside 'nonkey'"):
        Bundle.open(tmp_path)
