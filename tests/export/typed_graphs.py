"""Small graphs written as text, and what types their nodes have."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import TensorProto, numpy_helper

from export.graph.shapes import infer_shapes

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

HEAD = '<ir_version: 9, opset_import: ["" : 18, "kestrel" : 1]>\n'


def parse(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD + text)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def weight(*shape: int, scale: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(len(shape) + shape[0]).normal(size=shape)
    return (scale * values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = infer_shapes(model).graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def kinds_of(model: onnx.ModelProto, op_type: str) -> list[int]:
    """Element types that the nodes of an operator read first."""
    types = types_of(model)
    return [types[node.input[0]] for node in model.graph.node if node.op_type == op_type]


def casts_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Cast"]


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)
