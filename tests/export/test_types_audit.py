"""What ONNX files and ONNX Runtime compute in, by types; and the audit as a part of the proof."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from audited import CLASSES, DETECTIONS, MASKS, SIZE, make_detector, make_product, make_quantised
from onnx import TensorProto, helper, numpy_helper
from test_audit_openvino import PRODUCTS
from tiny_bundle import write_tiny_bundle

from export.graph.types_audit import audit_onnxruntime, audit_types
from export.proof.auditing import audit_artifact, audit_backend
from runtime.contract.bundle import Bundle
from runtime.sessions import open_session

PLACES = (SIZE // 4) ** 2
DETECTOR_MACS = PLACES * (16 * 3 * 25 + (CLASSES + 4) * 16 * 9)
LEAST_TAIL_NODES = 60  # selection, decode and suppression of the small detector, before fusion
LEAST_INT8 = 0.9  # all but the first, narrow convolution


def make_half() -> onnx.ModelProto:
    """Two convolutions in half between casts."""
    random = np.random.default_rng(1)
    weights = {
        "w0": random.normal(0, 0.1, (8, 3, 3, 3)).astype(np.float16),
        "w1": random.normal(0, 0.1, (8, 8, 3, 3)).astype(np.float16),
    }
    text = (
        "g (float[1,3,16,16] x) => (float[1,8,16,16] y) { h = Cast <to = 10> (x) "
        "a = Conv <pads = [1, 1, 1, 1]> (h, w0) r = Relu (a) "
        "b = Conv <pads = [1, 1, 1, 1]> (r, w1) y = Cast <to = 1> (b) }"
    )
    return make_product(text, **weights)


def save(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("inline", [True, False], ids=["inlined", "functions"])
def test_float32_file_is_float32_in_trunk_and_tail(inline: bool):
    audit = audit_types(make_detector(inline=inline), "fp32")
    assert audit.verdict == "pass", audit.reasons
    assert audit.macs == {"fp32": DETECTOR_MACS}
    assert audit.tail["fp32"] >= LEAST_TAIL_NODES


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_float32_file_is_not_what_its_name_may_say(precision: str):
    audit = audit_types(make_detector(), precision)
    assert audit.verdict == "fail"
    assert f"asked for {precision}, not built: 0.0 % of multiply-adds" in audit.reasons[0]


@pytest.mark.parametrize("inline", [True, False], ids=["inlined", "functions"])
def test_exported_half_file_has_a_half_trunk_and_a_float32_tail(inline: bool):
    audit = audit_types(make_detector(inline=inline, is_half=True), "fp16")
    assert audit.verdict == "pass", audit.reasons
    assert audit.macs == {"fp16": DETECTOR_MACS}
    assert set(audit.tail) == {"fp32"}
    assert audit.tail["fp32"] >= LEAST_TAIL_NODES


def test_half_file_is_not_float32():
    assert audit_types(make_detector(is_half=True), "fp32").verdict == "fail"


def test_decode_in_half_fails_although_every_product_is_half():
    """Planted: one multiplication between selection and suppression moves to half."""
    model = make_detector()
    far = next(node for node in model.graph.node if "far" in node.output)
    casts = [
        helper.make_node("Cast", [name], [f"{name}.half"], f"half_{name}", to=TensorProto.FLOAT16)
        for name in far.input
    ]
    back = helper.make_node("Cast", ["far.half"], ["far"], "far_back", to=TensorProto.FLOAT)
    product = helper.make_node("Mul", [f"{name}.half" for name in far.input], ["far.half"], "far")
    place = list(model.graph.node).index(far)
    nodes = list(model.graph.node)
    nodes[place : place + 1] = [*casts, product, back]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    audit = audit_types(model, "mixed")
    assert audit.verdict == "fail"
    assert "far (fp16)" in audit.reasons[0]


def test_quantised_file_is_int8_but_for_its_first_convolution():
    audit = audit_types(make_quantised(), "int8")
    assert audit.verdict == "pass", audit.reasons
    assert audit.shares["int8"] > LEAST_INT8


@pytest.mark.parametrize("name", PRODUCTS)
def test_multiply_adds_of_a_product_are_counted_in_a_file(name: str):
    text, shape, macs = PRODUCTS[name]
    audit = audit_types(make_product(text, w=np.ones(shape, np.float32)), "fp32")
    assert audit.macs == {"fp32": macs}


def test_audit_of_types_needs_no_weights():
    model = make_detector()
    for tensor in model.graph.initializer:
        if numpy_helper.to_array(tensor).size > 1000:
            tensor.ClearField("raw_data")
    assert audit_types(model, "fp32").macs == {"fp32": DETECTOR_MACS}


# --------------------------------------------------------------------------------- ONNX Runtime


def test_onnxruntime_computes_the_detector_in_float32(tmp_path: Path):
    audit = audit_onnxruntime(save(make_detector(), tmp_path), "fp32")
    assert audit.verdict == "pass", audit.reasons
    assert audit.macs == {"fp32": DETECTOR_MACS}


def test_onnxruntime_computes_half_in_float32(tmp_path: Path):
    audit = audit_onnxruntime(save(make_half(), tmp_path), "fp16")
    assert audit.verdict == "pass", audit.reasons
    assert audit.macs == {"fp32": 256 * 8 * 9 * (3 + 8)}


def test_onnxruntime_computes_uint8_activations_in_int8(tmp_path: Path):
    audit = audit_onnxruntime(save(make_quantised(is_unsigned=True), tmp_path), "int8")
    assert audit.verdict == "pass", audit.reasons
    assert audit.shares["int8"] > LEAST_INT8


def test_int8_that_onnxruntime_computes_in_float32_fails(tmp_path: Path):
    """The form for TensorRT (int8, zero point 0, behind a ReLU) is not fused on a CPU."""
    model = make_quantised()
    shares = audit_types(model, "int8").shares
    audit = audit_onnxruntime(save(model, tmp_path), "int8", file_shares=shares)
    assert audit.verdict == "fail"
    assert "asked for int8, not built" in audit.reasons[0]


# ------------------------------------------------------------------------------------- the proof


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_proof_audits_file_and_session(tmp_path: Path, backend: str):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny"))
    options = {"device": "cpu"} if backend == "onnxruntime" else {}
    session = open_session(bundle, backend, "fp32", threads=1, **options)
    document = audit_artifact(bundle, session)
    session.close()
    assert (document["verdict"], document["reasons"]) == ("pass", [])
    assert document["graphs"]["model"]["file"]["backend"] == "onnx"
    assert document["graphs"]["model"]["runs"]["backend"].startswith(backend)


def test_proof_fails_where_a_file_is_not_what_the_bundle_says(tmp_path: Path):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny", precisions=("fp16",)))
    session = open_session(bundle, "openvino", "fp16", threads=1)
    document = audit_artifact(bundle, session)
    session.close()
    assert document["verdict"] == "fail"
    assert document["reasons"][0].startswith("model.fp16.onnx: asked for fp16, not built")


def test_backend_that_refuses_a_file_is_not_audited(tmp_path: Path):
    path = save(make_detector(DETECTIONS, inline=False), tmp_path)
    audit = audit_backend(path, "openvino", "fp32", {})  # it knows no Kestrel nodes
    assert audit.verdict == "not run"
    assert audit_backend(path, "openvino", "fp32", {}, "it is absent").reasons == ("it is absent",)


def test_masks_alone_still_count_their_selection_as_tail():
    audit = audit_types(make_detector(MASKS), "fp32")
    assert audit.tail["fp32"] >= LEAST_TAIL_NODES // 2
