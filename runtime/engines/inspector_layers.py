"""What TensorRT built, from the JSON of its engine inspector.

TensorRT up to 10.x writes a tensor's type as the last words of "Format/Datatype" ("Row major
linear FP32", "Half", "Thirty-two wide channel vectorized row major Int8 format"), 11.x as
"Datatype" beside "Format". Engines must be built with layer details
(`BuildOptions.has_layer_details`), else the document holds names only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.contract.errors import EngineError
from runtime.engines.audit import SELECTION, Audit, Layer, judge, not_run
from runtime.engines.flavour import Flavour
from runtime.sessions.gpu import why_no_gpu

# The first that stands in a tensor's description is its type.
_TYPES = (
    (re.compile(r"\b(bf16|bfloat16)\b", re.I), "bf16"),
    (re.compile(r"\b(fp16|half|float16)\b", re.I), "fp16"),
    (re.compile(r"\b(fp32|float|float32)\b", re.I), "fp32"),
    (re.compile(r"\b(int8|uint8)\b", re.I), "int8"),
)
_TF32 = re.compile(r"tf32", re.I)
_PRODUCT = re.compile(r"conv|gemm|matrix_?multiply|matmul|fully_?connected", re.I)
_MOVES = re.compile(
    r"reformat|shuffle|constant|noop|identity|signal|wait|copy|slice|gather|concat|reshape|"
    r"transpose|cast|shape_call|memcpy|memset|myelinreformat",
    re.I,
)
_TOPK = re.compile(r"top_?k", re.I)


def audit_engine(
    engine: Any,
    flavour: Flavour,
    precision: str,
    *,
    context: Any = None,
    file_shares: Mapping[str, float] | None = None,
) -> Audit:
    """Look at a loaded engine.

    Args:
        engine: of the flavour's.
        flavour: whose engine it is.
        precision: what was asked for, one of the manifest's.
        context: of the engine, with its input shapes set; without it TensorRT leaves out the
            types and sizes of engines with optimisation profiles.
        file_shares: `Audit.shares` of the ONNX file.
    """
    trt = flavour.module
    if not hasattr(engine, "create_engine_inspector") or not hasattr(trt, "LayerInformationFormat"):
        return not_run(flavour.name, precision, f"{flavour} has no engine inspector")
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return not_run(flavour.name, precision, f"{flavour} gave no engine inspector")
    if context is not None:
        inspector.execution_context = context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return audit_document(text, flavour.name, precision, file_shares=file_shares)


def audit_plan(
    plan: bytes,
    flavour: Flavour,
    precision: str,
    *,
    file_shares: Mapping[str, float] | None = None,
) -> Audit:
    """Load a plan and look at it; "not run" where there is no GPU, without which none loads."""
    trt = flavour.module
    reason = why_no_gpu()  # asked first: TensorRT ends the process where there is no driver
    if reason:
        return not_run(flavour.name, precision, f"{reason}, and {flavour} loads no engine without")
    runtime = trt.Runtime(flavour.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        said = "; ".join(flavour.library_log.take()) or "no reason given"
        return not_run(flavour.name, precision, f"{flavour} does not load the engine: {said}")
    return audit_engine(engine, flavour, precision, file_shares=file_shares)


def audit_document(
    document: str | Mapping[str, Any],
    backend: str,
    precision: str,
    *,
    file_shares: Mapping[str, float] | None = None,
) -> Audit:
    """Judge what the inspector wrote (`trtexec --exportLayerInfo` writes the same).

    Raises:
        EngineError: it is no such document.
    """
    entries, outputs = _read_document(document)
    if not entries or any(isinstance(entry, str) for entry in entries):
        return not_run(
            backend, precision, "the engine was built without layer details; build it again"
        )
    layers = [_read_layer(entry) for entry in entries]
    products = [layer for layer in layers if layer.is_product]
    if products and not any(layer.precision for layer in products):
        return not_run(
            backend, precision, "the inspector tells no types without a context and its shapes"
        )
    return judge(layers, outputs, backend=backend, precision=precision, file_shares=file_shares)


def _read_document(document: str | Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    """The layers, and the names of tensors that leave the engine (up to 10.x also enter it)."""
    try:
        parsed = json.loads(document) if isinstance(document, str) else document
        entries = list(parsed["Layers"])
        named = parsed.get("Bindings", parsed.get("I/O Tensors", []))
        outputs = [
            str(each if isinstance(each, str) else each["Name"])
            for each in named
            if isinstance(each, str) or str(each.get("IOMode", "")).lower() != "input"
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EngineError(
            "this is no document of TensorRT's engine inspector; expected JSON with 'Layers'. "
            "Write it with trtexec --exportLayerInfo."
        ) from None
    return entries, outputs


def _read_layer(entry: Mapping[str, Any]) -> Layer:
    kind = str(entry.get("LayerType", ""))
    parameters = str(entry.get("ParameterType", ""))
    inputs, results = entry.get("Inputs", []), entry.get("Outputs", [])
    is_move = bool(_MOVES.search(parameters or kind)) and not _PRODUCT.search(parameters)
    is_product = not is_move and bool(_PRODUCT.search(f"{kind} {parameters}"))
    names = f"{entry.get('Name', '')} {entry.get('Metadata', '')}"
    return Layer(
        name=str(entry.get("Name", "")),
        kind=kind,
        precision="" if is_move else _precision_of(entry, inputs, results, is_product),
        macs=_count_macs(entry, inputs, results) if is_product else 0,
        reads=tuple(str(each.get("Name", "")) for each in inputs),
        writes=tuple(str(each.get("Name", "")) for each in results),
        is_selection=any(each in names for each in SELECTION)
        or bool(_TOPK.search(f"{kind} {parameters}")),
    )


def _precision_of(
    entry: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    is_product: bool,
) -> str:
    """Of products what they multiply, of others the first float that they give."""
    if is_product:
        found = next((kind for kind in map(_type_of, inputs) if kind), "")
        is_tf32 = found == "fp32" and bool(_TF32.search(str(entry.get("TacticName", ""))))
        return "tf32" if is_tf32 else found
    return next((kind for kind in map(_type_of, results) if kind not in ("", "int8")), "")


def _type_of(tensor: Mapping[str, Any]) -> str:
    text = str(tensor.get("Datatype", tensor.get("DataType", tensor.get("Format/Datatype", ""))))
    return next((name for pattern, name in _TYPES if pattern.search(text)), "")


def _count_macs(
    entry: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
) -> int | None:
    """Multiply-adds at batch 1 where the batch is open; None where the entry does not tell."""
    if not inputs or not results:
        return None
    first, result = _sides(inputs[0]), _sides(results[0])
    weights, maps = entry.get("Weights"), entry.get("OutMaps")
    if isinstance(weights, Mapping) and weights.get("Count") and maps:
        is_deconvolution = "deconv" in str(entry.get("ParameterType", "")).lower()
        places = math.prod(first) // first[1] if is_deconvolution else math.prod(result) // maps
        return places * int(weights["Count"])
    if "conv" in f"{entry.get('LayerType', '')}{entry.get('ParameterType', '')}".lower():
        return _count_from_weights(inputs, result)
    if len(first) < 2 or len(result) < 2:
        return None
    return math.prod(result) * (math.prod(first[-2:]) // max(1, result[-2]))


def _count_from_weights(inputs: Sequence[Mapping[str, Any]], result: list[int]) -> int | None:
    """Of a convolution whose weights are its second input (O, I / groups, height, width)."""
    weights = _sides(inputs[1]) if len(inputs) > 1 else []
    if len(weights) != len(result) or len(weights) < 3:
        return None
    return math.prod(result) * math.prod(weights[1:])


def _sides(tensor: Mapping[str, Any]) -> list[int]:
    return [abs(int(side)) for side in tensor.get("Dimensions", [])]  # -1 is the open batch
