"""What really computes: the judgement, TensorRT's inspector, OpenVINO's compiled graphs."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace
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
    make_document,
    make_feeds,
    make_product,
    make_quantised,
    tensor,
)

from export.graph.nms import nms_function
from runtime.contract.errors import EngineError
from runtime.contract.manifest import PRECISIONS
from runtime.engines import inspector_layers
from runtime.engines.audit import EXPECTED, Audit, Layer, expectation, judge
from runtime.engines.inspector_layers import audit_document, audit_engine, audit_plan
from runtime.engines.openvino_layers import audit_openvino, read_layers
from runtime.sessions import BACKENDS
from runtime.sessions.openvino_session import _INFERENCE_PRECISIONS

WIDE_MACS = 20 * 20 * 190 * 16 * 9
NARROW_MACS = 20 * 20 * 190 * 7
LEAST_TAIL_LAYERS = 30  # selection, decode and suppression of the small detector, after fusion
NUM_IMAGES = 12
LEAST_INT8 = 0.9  # all but the first, narrow convolution


# ----------------------------------------------------------------------------------- the judgement


def test_table_says_what_every_precision_means_on_every_backend():
    names = {backend.name for backend in BACKENDS} - {"openvino"}
    names |= {f"openvino {option}" for option in _INFERENCE_PRECISIONS}
    assert set(EXPECTED) == names | {"onnx"}
    assert all(set(entries) == set(PRECISIONS) for entries in EXPECTED.values())
    assert all(each.meaning for entries in EXPECTED.values() for each in entries.values())


@pytest.mark.parametrize(("backend", "precision"), [("tensorrt", "fp8"), ("tensorflow", "fp16")])
def test_unknown_backend_or_precision_is_refused(backend: str, precision: str):
    with pytest.raises(EngineError, match="no expectation for precision"):
        expectation(backend, precision)


def test_what_was_asked_for_and_not_built_fails_with_share_and_expectation():
    audit = audit_document(make_document("FP32"), "tensorrt", "fp16")
    assert audit.verdict == "fail"
    assert "0.0 % of multiply-adds in fp16, expected at least 95 %" in audit.reasons[0]
    assert "found 100.0 % fp32" in audit.reasons[0]


@pytest.mark.parametrize(("classes", "verdict"), [(7, "pass"), (8, "fail")])
def test_fp16_wants_95_percent_of_the_multiply_adds(classes: int, verdict: str):
    audit = audit_document(make_document(head="FP32", classes=classes), "tensorrt", "fp16")
    assert audit.verdict == verdict
    assert audit.shares["fp16"] == pytest.approx(0.95, abs=0.005)


def test_a_half_layer_behind_the_selection_fails_and_is_named():
    audit = audit_document(make_document(tail="FP16"), "tensorrt", "fp16")
    assert audit.verdict == "fail"
    assert "__myl_MulAdd_myl0_2 (fp16)" in audit.reasons[0]
    assert audit.tail == {"fp32": 1, "fp16": 1}


def test_a_tf32_kernel_fails_fp32():
    document = make_document("FP32")
    document["Layers"][1]["TacticName"] = "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32"
    audit = audit_document(document, "tensorrt", "fp32")
    assert audit.verdict == "fail"
    assert audit.macs == {"tf32": WIDE_MACS, "fp32": NARROW_MACS}


@pytest.mark.parametrize(
    ("backend", "built", "planned", "verdict"),
    [
        ("tensorrt", 0.90, 0.94, "pass"),
        ("tensorrt", 0.80, 0.94, "fail"),
        ("openvino f32", 0.80, 0.94, "fail"),
        ("onnxruntime", 0.80, 0.94, "pass"),
        ("onnxruntime", 0.45, 0.94, "fail"),
        ("tensorrt_rtx", 0.00, 0.94, "pass"),
    ],
)
def test_int8_follows_the_file_as_far_as_the_backend_promises(
    backend: str, built: float, planned: float, verdict: str
):
    layers = [
        Layer("quantised", "Conv", "int8", round(1000 * built)),
        Layer("float", "Conv", "fp32", round(1000 * (1 - built))),
    ]
    audit = judge(layers, [], backend=backend, precision="int8", file_shares={"int8": planned})
    assert audit.verdict == verdict


def test_a_product_without_a_size_makes_shares_a_count_of_products():
    layers = [Layer("a", "conv", "fp16", 10**9), Layer("b", "conv", "fp32", None)]
    audit = judge(layers, [], backend="tensorrt", precision="fp16")
    assert audit.shares == {"fp16": 0.5, "fp32": 0.5}
    assert "50.0 % of convolutions and matrix products in fp16" in audit.reasons[0]


def test_products_behind_the_selection_and_what_only_they_read_are_no_tail():
    """Masks are products of gathered rows: they may be half, and so may what feeds them."""
    layers = [
        Layer("top", "TopK", "fp32", 0, ("logits",), ("rows",), is_selection=True),
        Layer("tanh", "Tanh", "fp16", 0, ("rows",), ("coefficients",)),
        Layer("masks", "MatMul", "fp16", 99, ("coefficients",), ("masks",)),
        Layer("decode", "Mul", "fp32", 0, ("rows",), ("boxes",)),
    ]
    audit = judge(layers, ["masks", "boxes"], backend="tensorrt", precision="fp16")
    assert (audit.verdict, audit.tail) == ("pass", {"fp32": 2})


def test_a_tensor_name_that_is_written_again_does_not_carry_the_tail_on():
    """Myelin and loops use names twice; what reads the second has nothing of the first."""
    layers = [
        Layer("top", "TopK", "fp32", 0, ("logits",), ("scratch",), is_selection=True),
        Layer("decode", "Mul", "fp32", 0, ("scratch",), ("boxes",)),
        Layer("other", "Mul", "fp16", 0, ("image",), ("scratch",)),
        Layer("blur", "Mul", "fp16", 0, ("scratch",), ("picture",)),
        Layer("trunk", "Conv", "fp16", 99, ("image",), ("logits",)),
    ]
    audit = judge(layers, ["boxes", "picture"], backend="tensorrt", precision="fp16")
    assert (audit.verdict, audit.tail) == ("pass", {"fp32": 2})


def test_a_graph_without_a_computing_layer_is_not_judged():
    audit = judge([Layer("copy", "Reshape", "")], [], backend="onnx", precision="fp32")
    assert audit.verdict == "not run"


def test_json_holds_every_layer_where_asked_and_none_where_not():
    audit = audit_document(make_document(), "tensorrt", "fp16")
    short = json.loads(json.dumps(audit.to_json(), allow_nan=False))
    assert short["macs"] == {"fp16": WIDE_MACS + NARROW_MACS}
    assert "all_layers" not in short
    rows = audit.to_json(with_layers=True)["all_layers"]
    assert [row["name"] for row in rows if row["is_tail"]] == [
        "__myl_TopK_myl0_1",
        "__myl_MulAdd_myl0_2",
    ]


# ------------------------------------------------------------------------------------- TensorRT


def test_both_schemas_of_the_inspector_read_the_same():
    """11.x splits "Format/Datatype" in two and says Half where 10.x says FP16."""
    old = audit_document(make_document(), "tensorrt", "fp16")
    new = audit_document(json.dumps(make_document(schema=11)), "tensorrt", "fp16")
    assert (old.shares, old.macs, old.in_tail) == (new.shares, new.macs, new.in_tail)
    assert (old.verdict, old.num_layers, old.tail) == ("pass", {"fp16": 2, "fp32": 2}, {"fp32": 2})


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Half", "fp16"),
        ("Row major linear BFloat16 format", "bf16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
    ],
)
def test_the_words_of_the_inspector_for_a_type_are_understood(text: str, precision: str):
    document = make_document()
    for each in document["Layers"][1]["Inputs"]:
        each["Format/Datatype"] = text
    assert audit_document(document, "tensorrt", "mixed").macs[precision] >= WIDE_MACS


def _layer(kind: str, parameters: str, inputs: list[Any], output: Any, **more: Any) -> Any:
    entry = {"Name": kind, "LayerType": kind, "Inputs": inputs, "Outputs": [output], **more}
    return entry | ({"ParameterType": parameters} if parameters else {})


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        pytest.param(
            _layer(
                "CaskDeconvolution",
                "Deconvolution",
                [tensor("x", "FP16", -1, 8, 5, 5)],
                tensor("y", "FP16", -1, 4, 10, 10),
                OutMaps=4,
                Weights={"Type": "Half", "Count": 8 * 4 * 2 * 2},
            ),
            25 * 8 * 4 * 4,
            id="deconvolution",
        ),
        pytest.param(
            _layer(
                "gemm",
                "",
                [tensor("x", "FP16", 2, 7, 16), tensor("w", "FP16", 2, 16, 5)],
                tensor("y", "FP16", 2, 7, 5),
            ),
            2 * 7 * 16 * 5,
            id="gemm",
        ),
        pytest.param(
            _layer(
                "conv",
                "",
                [tensor("x", "FP16", 1, 8, 6, 6), tensor("w", "FP16", 12, 4, 3, 3)],
                tensor("y", "FP16", 1, 12, 6, 6),
            ),
            36 * 12 * 4 * 9,
            id="convolution of Myelin, two groups",
        ),
    ],
)
def test_multiply_adds_of_an_engine_layer_are_counted(layer: Any, macs: int):
    audit = audit_document({"Layers": [layer], "Bindings": ["y"]}, "tensorrt", "fp16")
    assert audit.macs == {"fp16": macs}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda d: {**d, "Layers": [each["Name"] for each in d["Layers"]]},
            "without layer details",
        ),
        (lambda d: {**d, "Layers": []}, "without layer details"),
        (
            lambda d: json.loads(
                json.dumps(d)
                .replace("Row major linear FP16", "N/A due to dynamic shapes")
                .replace("linear FP32", "N/A")
            ),
            "without a context",
        ),
    ],
    ids=["names only", "nothing", "dynamic shapes without a context"],
)
def test_a_document_that_tells_no_types_is_not_judged(change: Any, reason: str):
    audit = audit_document(change(make_document()), "tensorrt", "fp16")
    assert audit.verdict == "not run"
    assert reason in audit.reasons[0]


@pytest.mark.parametrize("document", ["", "{}", "[]", '{"Layers": 3}', {"Bindings": []}])
def test_what_is_no_inspector_document_is_refused(document: Any):
    with pytest.raises(EngineError, match="no document of TensorRT's engine inspector"):
        audit_document(document, "tensorrt", "fp16")


class FakeInspector:
    """Tells types only once it was given a context, as TensorRT does for open batches."""

    execution_context: Any = None

    def get_engine_information(self, format_: str) -> str:
        assert format_ == "json"
        text = json.dumps(make_document())
        return text if self.execution_context else text.replace("FP16", "N/A").replace("FP32", "")


def _fake_flavour(**attributes: Any) -> Any:
    return SimpleNamespace(name="tensorrt", module=SimpleNamespace(**attributes))


def test_engine_is_inspected_with_the_context_that_knows_its_shapes():
    flavour = _fake_flavour(LayerInformationFormat=SimpleNamespace(JSON="json"))
    engine = SimpleNamespace(create_engine_inspector=FakeInspector)
    assert audit_engine(engine, flavour, "fp16", context=object()).verdict == "pass"
    assert audit_engine(engine, flavour, "fp16").verdict == "not run"


def test_engine_without_an_inspector_is_not_judged():
    assert audit_engine(SimpleNamespace(), _fake_flavour(), "fp16").verdict == "not run"


def test_plan_is_not_loaded_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch):
    """TensorRT ends the process where there is no driver: it must not even be asked."""
    monkeypatch.setattr(inspector_layers, "why_no_gpu", lambda: "no NVIDIA driver here")
    audit = audit_plan(b"plan", _fake_flavour(), "fp16")
    assert audit.verdict == "not run"
    assert audit.reasons[0].startswith("no NVIDIA driver here")


# ------------------------------------------------------------------------------------- OpenVINO


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
    """The trap of facts/nms.md section 6, planted: masks are the only output."""
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
