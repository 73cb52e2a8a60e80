"""What a graph computes in, by its own types: an ONNX file, and what ONNX Runtime makes of it.

A product (convolution, matrix product) counts as int8 where both its inputs come out of a
DequantizeLinear, as TensorRT and OpenVINO take it. What ONNX Runtime makes of a file is another
matter: it is asked for the graph after its optimisations, in which fp16 stands between casts and
int8 that it did not fuse is computed in float32.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx.helper
import onnxruntime
from onnx import TensorProto

from export.graph.subject import Subject
from export.graph.walking import attribute, label, reads, subgraphs, walk
from runtime.contract.errors import SessionError
from runtime.engines.audit import SELECTION, Audit, Layer, judge

Sides = list[int]

FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
BYTES = (TensorProto.INT8, TensorProto.UINT8)
# Operator -> places of its data and its weights among the inputs.
PRODUCTS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "MatMul", "Gemm"), (0, 1)),
    **dict.fromkeys(("FusedConv", "FusedMatMul", "FusedGemm", "NhwcFusedConv"), (0, 1)),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), (0, 1)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (0, 3)),
}
MOVES = {
    *("Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherND"),
    *("GatherElements", "Identity", "Pad", "Reshape", "Shape", "Slice", "Split", "Squeeze"),
    *("Tile", "Transpose", "Unsqueeze", "QuantizeLinear", "DequantizeLinear", "ScatterElements"),
    *("ScatterND", "DepthToSpace", "SpaceToDepth", "Loop", "If", "ReorderInput", "ReorderOutput"),
}
TRUTHS = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Not", "Xor"}
KEEPS_SHAPE = {"Cast", "Identity", "QuantizeLinear", "DequantizeLinear"}
CAST_PREFIX = "InsertedPrecisionFreeCast_"  # ONNX Runtime's, before a tensor's name


def audit_types(
    model: onnx.ModelProto, precision: str, *, file_shares: Mapping[str, float] | None = None
) -> Audit:
    """Judge the types that a file's own nodes have; weights need not be loaded.

    Args:
        model: is not changed.
        precision: what the file is meant to be.
        file_shares: as of `runtime.engines.audit.judge`.
    """
    subject = Subject(model, "portable", False)
    types = {name: kind.elem_type for name, kind in subject.types.items()}
    shapes = {name: _sides(kind) for name, kind in subject.types.items()}
    return _judge(subject.inlined, types, shapes, "onnx", precision, file_shares)


def audit_onnxruntime(
    path: Path, precision: str, *, file_shares: Mapping[str, float] | None = None
) -> Audit:
    """Judge what ONNX Runtime's CPU provider computes of a file.

    Layout changes are left out: they rename tensors and alter no type.

    Raises:
        SessionError: ONNX Runtime refuses the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        options.intra_op_num_threads = 1
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            text = " ".join(str(error).split())
            raise SessionError(f"ONNX Runtime refuses {path}: {text}. Export again.") from None
        optimised = onnx.load(options.optimized_model_filepath, load_external_data=False)
    subject = Subject(onnx.load(path, load_external_data=False), "portable", False)
    known = {name: kind.elem_type for name, kind in subject.types.items()}
    shapes = {name: _sides(kind) for name, kind in subject.types.items()}
    types = _propagate(optimised.graph, known)
    shapes |= {tensor.name: list(tensor.dims) for tensor in optimised.graph.initializer}
    return _judge(optimised, types, shapes, "onnxruntime", precision, file_shares)


def _judge(
    model: onnx.ModelProto,
    types: Mapping[str, int],
    shapes: Mapping[str, Sides],
    backend: str,
    precision: str,
    file_shares: Mapping[str, float] | None,
) -> Audit:
    made_by = {name: node for node in walk(model.graph.node) for name in node.output if name}
    layers = []
    for outer in model.graph.node:
        outer_reads = tuple(sorted(reads(outer)))
        for node in walk([outer]):
            layers.append(
                Layer(
                    name=label(node),
                    kind=node.op_type,
                    precision=_precision_of(node, types, made_by),
                    macs=count_macs(node, shapes, made_by) if node.op_type in PRODUCTS else 0,
                    reads=outer_reads,  # what is inside a Loop lies where the Loop lies
                    writes=tuple(outer.output),
                    is_selection=_is_selection(node),
                )
            )
    outputs = [info.name for info in model.graph.output]
    return judge(layers, outputs, backend=backend, precision=precision, file_shares=file_shares)


def _is_selection(node: onnx.NodeProto) -> bool:
    return node.op_type in ("TopK", *SELECTION) or any(each in node.name for each in SELECTION)


def _precision_of(
    node: onnx.NodeProto, types: Mapping[str, int], made_by: Mapping[str, onnx.NodeProto]
) -> str:
    if node.op_type in PRODUCTS:
        data, weights = (node.input[place] for place in PRODUCTS[node.op_type])
        is_quantised = all(
            name in made_by and made_by[name].op_type == "DequantizeLinear"
            for name in (data, weights)
        )
        if types.get(data) in BYTES or (is_quantised and not _is_fused(node)):
            return "int8"
        return FLOATS.get(types.get(data, 0), "")
    if node.op_type in MOVES or not node.output:
        return ""
    if node.op_type in TRUTHS:
        return FLOATS.get(types.get(node.input[0], 0), "")
    return FLOATS.get(types.get(node.output[0], 0), "")


def _is_fused(node: onnx.NodeProto) -> bool:
    """ONNX Runtime's own float operators, which compute what a DequantizeLinear gives as floats."""
    return node.domain.startswith("com.microsoft")


def count_macs(
    node: onnx.NodeProto, shapes: Mapping[str, Sides], made_by: Mapping[str, onnx.NodeProto]
) -> int | None:
    """Multiply-adds of a product (a key of PRODUCTS); None where a shape is not known.

    Args:
        shapes: tensor -> sides, those that are open as 1.
        made_by: tensor -> the node that gives it.
    """
    first_place, weights_place = PRODUCTS[node.op_type]
    first = _shape_of(node.input[first_place], shapes, made_by)
    weights = _shape_of(node.input[weights_place], shapes, made_by)
    result = _shape_of(node.output[0], shapes, made_by)
    if "Conv" not in node.op_type:
        if not first or not result:
            return None
        turned = bool(attribute(node, "transA", 0))
        return math.prod(result) * first[-2 if turned and len(first) > 1 else -1]
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(weights[1:]) if first and weights else None
    if not weights or not result:
        return None
    return math.prod(result) * math.prod(weights[1:])


def _shape_of(
    name: str, shapes: Mapping[str, Sides], made_by: Mapping[str, onnx.NodeProto]
) -> Sides | None:
    """Sides, an open one as 1; None where they are not known."""
    for each in (name, name.removeprefix(CAST_PREFIX)):
        if shapes.get(each):
            return shapes[each]
    node = made_by.get(name)
    if node is not None and node.op_type in KEEPS_SHAPE:
        return _shape_of(node.input[0], shapes, made_by)
    return None


def _sides(kind: onnx.TypeProto.Tensor) -> Sides:
    """The batch, which is open, counts as one; empty where the rank is not known."""
    return [dim.dim_value or 1 for dim in kind.shape.dim] if kind.HasField("shape") else []


def _propagate(graph: onnx.GraphProto, known: Mapping[str, int]) -> dict[str, int]:
    """Element types of an optimised graph, which says those of inputs, weights and casts only.

    `known` are types of the graph as it was; a tensor that was a float may be another float now.
    """
    infos = (*graph.input, *graph.output, *graph.value_info)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    _propagate_into(types, graph.node, graph.initializer, known)
    return types


def _propagate_into(
    types: dict[str, int],
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[TensorProto],
    known: Mapping[str, int],
) -> None:
    types.update({tensor.name: tensor.data_type for tensor in weights})
    for node in nodes:
        for graph in subgraphs(node):
            infos = (*graph.input, *graph.value_info)
            types.update({info.name: info.type.tensor_type.elem_type for info in infos})
            _propagate_into(types, graph.node, graph.initializer, known)
        for name in node.output:
            types.setdefault(name, _type_given(node, name, types, known))


def _type_given(
    node: onnx.NodeProto, name: str, types: Mapping[str, int], known: Mapping[str, int]
) -> int:
    if node.op_type == "Cast":
        return int(attribute(node, "to", 0))
    if node.op_type == "DequantizeLinear":
        return types.get(node.input[1], TensorProto.FLOAT)
    if node.op_type == "QuantizeLinear":
        return types.get(node.input[2], TensorProto.UINT8) if len(node.input) > 2 else BYTES[1]
    if name in known and known[name] not in FLOATS:
        return known[name]
    given = [types.get(each, TensorProto.UNDEFINED) for each in node.input]
    floats = [kind for kind in given if kind in FLOATS]
    if floats and not node.op_type.startswith("QLinear"):
        return floats[0]
    return known.get(name, given[0] if given else TensorProto.UNDEFINED)
