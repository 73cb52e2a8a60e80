"""What OpenVINO really computes, read from its compiled graphs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from audited import (
    CANDIDATE_ROWS,
    CLASSES,
    DETECTIONS,
    KEPT,
    MASKS,
    SIZE,
    make_detector,
    make_feeds,
    make_product,
    make_quantised,
)

from export.graph.nms import nms_function
from runtime.engines.audit import Audit
from runtime.engines.openvino_layers import audit_openvino, read_layers

LEAST_TAIL_LAYERS = 30  # selection, decode and suppression of the small detector, after fusion
NUM_IMAGES = 12
LEAST_INT8 = 0.9  # all but the first, narrow convolution


def compile_openvino(model: onnx.ModelProto, hint: str) -> Any:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    core = openvino.Core()
    if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    network = core.read_model(model.SerializeToString())
    fixed = {}
    for port in network.inputs:
        sides = port.get_partial_shape()
        sides[0] = 1 if sides[0].is_dynamic else sides[0]
        fixed[port.get_any_name()] = sides
    network.reshape(fixed)
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1}
    return core.compile_model(network, "CPU", options)


@functools.cache
def compile_detector(hint: str, outputs: str = DETECTIONS) -> Any:
    return compile_openvino(make_detector(outputs), hint)


def audit_detector(hint: str, outputs: str = DETECTIONS) -> Audit:
    return audit_openvino(compile_detector(hint, outputs), "fp32", inference_precision=hint)


def test_openvino_computes_everything_in_float32_under_the_f32_hint():
    audit = audit_detector("f32")
    assert audit.verdict == "pass", audit.reasons
    assert audit.shares == {"fp32": 1.0}
    assert set(audit.num_layers) == {"fp32"}


def test_openvino_keeps_the_tail_in_float32_under_the_bf16_hint():
    audit = audit_detector("bf16")
    assert audit.verdict == "pass", audit.reasons
    assert audit.shares == {"bf16": 1.0}
    assert set(audit.tail) == {"fp32"}
    assert audit.tail["fp32"] >= LEAST_TAIL_LAYERS


def test_bf16_that_was_not_asked_for_fails_fp32():
    """OpenVINO's own choice on a CPU with bf16, were the session to leave the hint out."""
    audit = audit_openvino(compile_detector("bf16"), "fp32")
    assert audit.verdict == "fail"
    assert "0.0 % of multiply-adds in fp32, expected at least 100 %" in audit.reasons[0]


def test_selection_that_only_feeds_a_product_runs_in_bf16_and_fails():
    """OpenVINO's trap under a bf16 hint, planted: masks are the only output."""
    audit = audit_detector(outputs=MASKS, hint="bf16")
    assert audit.verdict == "fail"
    assert "layers of selection and what follows it are not fp32" in audit.reasons[-1]


@pytest.fixture(scope="module")
def nms_body() -> onnxruntime.InferenceSession:
    """KestrelNms alone, in ONNX Runtime; gives the rows that are kept, and how many."""
    graph = onnx.parser.parse_graph(
        "g (float[1,T,4] b, float[1,T] s, int64[1,T] c, float[1] i) => "
        f"(int32[1] n, int64[1,{KEPT}] rows) "
        f"{{ n, db, ds, dc, rows = kestrel.KestrelNms<max_detections = {KEPT}>(b, s, c, i) }}"
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("kestrel", 1)]
    model = onnx.helper.make_model(
        graph, opset_imports=opsets, functions=[nms_function(early_exit=True)], ir_version=9
    )
    return onnxruntime.InferenceSession(model.SerializeToString())


def keep(body: onnxruntime.InferenceSession, boxes: np.ndarray, rest: dict[str, Any]) -> list[int]:
    count, rows = body.run(None, {"b": boxes, **rest})
    return rows[0, : count[0]].tolist()


def round_to_bf16(array: np.ndarray) -> np.ndarray:
    bits = array.view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to the nearest, ties to even
    return (rounded & 0xFFFF0000).astype(np.uint32).view(np.float32)


def test_loop_that_the_runtime_model_hides_computes_its_iou_in_float32_under_the_bf16_hint(
    nms_body: onnxruntime.InferenceSession,
):
    """OpenVINO keeps the rows that float32 keeps of its candidates; bf16 boxes would not."""
    compiled = compile_detector("bf16", f"{DETECTIONS}, {CANDIDATE_ROWS}")
    num_flips = 0
    for seed in range(NUM_IMAGES):
        feeds = make_feeds(seed)
        got = {next(iter(port.get_names())): each.copy() for port, each in compiled(feeds).items()}
        rest = {"s": got["scores_t"], "c": got["classes_t"], "i": feeds["iou_threshold"]}
        expected = keep(nms_body, got["boxes_t"], rest)
        assert 0 < len(expected) < KEPT  # some were suppressed
        assert got["rows"][0, : got["num_detections"][0]].tolist() == expected
        num_flips += keep(nms_body, round_to_bf16(got["boxes_t"]), rest) != expected
    assert num_flips > 0  # else this test could not see bf16


def test_openvino_computes_quantised_convolutions_in_int8():
    audit = audit_openvino(compile_openvino(make_quantised(is_unsigned=True), "f32"), "int8")
    assert audit.verdict == "pass", audit.reasons
    assert audit.shares["int8"] > LEAST_INT8


@pytest.mark.parametrize("hint", ["f32", "bf16"])
def test_every_product_of_the_detector_is_counted_in_multiply_adds(hint: str):
    places = (SIZE // 4) ** 2
    audit = audit_detector(hint)
    assert sum(audit.macs.values()) == places * (16 * 3 * 25 + (CLASSES + 4) * 16 * 9)


PRODUCTS = {
    "grouped convolution": (
        "g (float[1,8,6,6] x) => (float[1,12,6,6] y) "
        "{ y = Conv <pads = [1, 1, 1, 1], group = 2> (x, w) }",
        (12, 4, 3, 3),
        36 * 12 * 4 * 9,
    ),
    "transposed convolution": (
        "g (float[1,8,5,5] x) => (float[1,4,10,10] y) "
        "{ y = ConvTranspose <strides = [2, 2]> (x, w) }",
        (8, 4, 2, 2),
        25 * 8 * 4 * 4,
    ),
    "matrix product": (
        "g (float[1,7,16] x) => (float[1,7,5] y) { y = MatMul (x, w) }",
        (16, 5),
        7 * 16 * 5,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_multiply_adds_of_a_product_are_counted_in_openvino(name: str):
    text, shape, macs = PRODUCTS[name]
    model = make_product(text, w=np.ones(shape, np.float32))
    layers, outputs = read_layers(compile_openvino(model, "f32").get_runtime_model())
    assert sum(layer.macs or 0 for layer in layers) == macs
    assert len(outputs) == 1
