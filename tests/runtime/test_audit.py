"""What really computes: the judgement, and TensorRT's inspector."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from audited import make_document, tensor

from runtime.contract.errors import EngineError
from runtime.contract.manifest import PRECISIONS
from runtime.engines import inspector_layers
from runtime.engines.audit import EXPECTED, Layer, expectation, judge
from runtime.engines.inspector_layers import audit_document, audit_engine, audit_plan
from runtime.sessions import BACKENDS
from runtime.sessions.openvino_session import _INFERENCE_PRECISIONS

WIDE_MACS = 20 * 20 * 190 * 16 * 9
NARROW_MACS = 20 * 20 * 190 * 7


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


@pytest.mark.parametrize(
    ("asked", "mask_kind", "verdict"),
    [
        ("fp16", "fp32", "pass"),
        ("fp16", "fp16", "pass"),
        ("fp16", "tf32", "fail"),
        ("fp32", "fp32", "fail"),
    ],
)
def test_a_float32_product_behind_the_selection_does_not_count_against_half(
    asked: str, mask_kind: str, verdict: str
):
    layers = [
        Layer("conv", "Conv", "fp16", macs=1000, writes=("logits",)),
        Layer("pick", "TopK", "fp32", reads=("logits",), writes=("boxes",), is_selection=True),
        Layer("masks", "MatMul", mask_kind, macs=500, reads=("boxes",), writes=("masks",)),
    ]
    audit = judge(layers, ["boxes", "masks"], backend="tensorrt", precision=asked)
    assert (audit.verdict, audit.behind) == (verdict, {1, 2})
    layers[2] = Layer("conv2", "Conv", "fp32", macs=500, reads=("image",))
    assert judge(layers, ["boxes"], backend="tensorrt", precision="fp16").verdict == "fail"


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
