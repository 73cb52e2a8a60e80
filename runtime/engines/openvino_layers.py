"""What OpenVINO compiled, from its runtime model: the layers after fusion, as they are executed.

The body of a Loop is one layer there (TensorIterator) and is not seen: it is a graph of its own,
and stays float32 as long as it holds no convolution or matrix product, which the lint sees to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from runtime.engines.audit import SELECTION, Audit, Layer, judge

_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}
_PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_MOVES = {
    *("Input", "Output", "Const", "Reorder", "Reshape", "Transpose", "Concatenation", "Split"),
    *("StridedSlice", "Gather", "GatherND", "GatherElements", "Pad", "Broadcast", "Tile"),
    *("Convert", "ShapeOf", "ScatterUpdate", "ScatterElementsUpdate", "DepthToSpace"),
}


def audit_openvino(
    compiled: Any,
    precision: str,
    *,
    inference_precision: str = "f32",
    file_shares: Mapping[str, float] | None = None,
) -> Audit:
    """Look at a compiled model.

    Args:
        compiled: openvino.CompiledModel.
        precision: what was asked for, one of the manifest's.
        inference_precision: the session's option: "f32", "bf16" or "auto".
        file_shares: `Audit.shares` of the ONNX file.

    Raises:
        EngineError: an unknown precision.
    """
    layers, outputs = read_layers(compiled.get_runtime_model())
    return judge(
        layers,
        outputs,
        backend=f"openvino {inference_precision}",
        precision=precision,
        file_shares=file_shares,
    )


def read_layers(runtime_model: Any) -> tuple[list[Layer], list[str]]:
    """All layers in order of execution, and the names of the tensors that are outputs."""
    nodes = [(node, _read_info(node)) for node in runtime_model.get_ordered_ops()]
    nodes.sort(key=lambda pair: int(pair[1].get("execOrder", "0")))
    layers: list[Layer] = []
    outputs: list[str] = []
    for node, info in nodes:
        kind = info.get("layerType", node.get_type_name())
        sources = [port.get_source_output() for port in node.inputs()]
        reads = tuple(
            f"{source.get_node().get_friendly_name()}:{source.get_index()}" for source in sources
        )
        name = node.get_friendly_name()
        macs = _count_macs(kind, node) if kind in _PRODUCTS else 0
        if kind == "Output":
            outputs.extend(reads)
        layers.append(
            Layer(
                name=name,
                kind=kind,
                precision=_precision_of(kind, info, is_product=macs != 0),
                macs=macs,
                reads=reads,
                writes=tuple(f"{name}:{index}" for index in range(node.get_output_size())),
                is_selection=kind == "TopK"
                or any(each in info.get("originalLayersNames", "") for each in SELECTION),
            )
        )
    return layers, outputs


def _read_info(node: Any) -> dict[str, str]:
    return {
        key: str(value.value if hasattr(value, "value") else value)
        for key, value in node.get_rt_info().items()
    }


def _precision_of(kind: str, info: Mapping[str, str], *, is_product: bool) -> str:
    """Of products what they multiply (the first input's type), of others what they give.

    8-bit tensors elsewhere are truth values, or int8 data on its way.
    """
    if kind in _MOVES:
        return ""
    asked = info.get("runtimePrecision", "")
    if is_product:
        return _TYPES.get(asked, "")
    given = [*info.get("outputPrecisions", "").split(","), asked]
    floats = [_TYPES[each] for each in given if each in _TYPES and _TYPES[each] != "int8"]
    return floats[0] if floats else ""


def _count_macs(kind: str, node: Any) -> int | None:
    """Multiply-adds of a convolution or matrix product; None where a shape is not known."""
    ports = [port.get_partial_shape() for port in (*node.inputs()[:2], node.output(0))]
    if len(ports) < 3 or any(shape.is_dynamic for shape in ports):
        return None
    first, weights, result = ([int(side) for side in shape.to_shape()] for shape in ports)
    if kind == "Convolution":  # weights hold (O, I / groups, ...), or the groups apart
        return math.prod(result) * math.prod(weights) // result[1]
    if kind == "Deconvolution":
        return math.prod(first) * math.prod(weights) // first[1]
    if kind == "FullyConnected":
        return math.prod(result) * first[-1]
    rows = result[-2] if len(result) > 1 else 1
    inner = math.prod(first[-2:]) // max(1, rows)  # whichever of the two is transposed
    return math.prod(result) * inner
