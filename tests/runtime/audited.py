"""Graphs and inspector documents for tests of the precision audit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.parser
from onnx import numpy_helper

from export.graph.operators import attach_functions
from export.precision.half import to_half

SIZE, STRIDE, ACROSS, CLASSES, CANDIDATES, KEPT = 48, 4, 12, 5, 60, 50
ANCHORS = ACROSS * ACROSS

_DETECTOR = f"""
<ir_version: 9, opset_import: ["": 18, "kestrel": 1]>
detector (uint8[B,{SIZE},{SIZE},3] image, float[B,{CLASSES}] score_threshold,
          float[B] iou_threshold) => (OUTPUTS)
{{
  pixels = Cast <to = 1> (image)
  planar = Transpose <perm = [0, 3, 1, 2]> (pixels)
  centred = Sub (planar, middle)
  stem = Conv <strides = [4, 4], pads = [2, 2, 2, 2]> (centred, stem_w)
  features = Relu (stem)
  class_map = Conv <pads = [1, 1, 1, 1]> (features, class_w)
  side_map = Conv <pads = [1, 1, 1, 1]> (features, side_w)
  class_rows = Reshape (class_map, class_shape)
  logits = Transpose <perm = [0, 2, 1]> (class_rows)
  side_rows = Reshape (side_map, side_shape)
  sides = Transpose <perm = [0, 2, 1]> (side_rows)
  scores_t, anchors, classes_t = kestrel.KestrelSelect
    <candidates = {CANDIDATES}, activation = "sigmoid"> (logits, score_threshold)
  column = Unsqueeze (anchors, last)
  index = Tile (column, four)
  chosen = GatherElements <axis = 1> (sides, index)
  centres = GatherElements <axis = 1> (all_centres, index)
  reach = Exp (chosen)
  far = Mul (reach, signs)
  boxes_t = Add (centres, far)
  num_detections, boxes_xyxy, scores, classes, rows = kestrel.KestrelNms
    <max_detections = {KEPT}> (boxes_t, scores_t, classes_t, iou_threshold)
  masks = MatMul (boxes_xyxy, basis)
}}
"""
DETECTIONS = (
    f"int32[B] num_detections, float[B,{KEPT},4] boxes_xyxy, float[B,{KEPT}] scores, "
    f"int32[B,{KEPT}] classes"
)
CANDIDATE_ROWS = (
    f"float[B,{CANDIDATES},4] boxes_t, float[B,{CANDIDATES}] scores_t, "
    f"int64[B,{CANDIDATES}] classes_t, int64[B,{KEPT}] rows"
)
MASKS = f"float[B,{KEPT},16] masks"


def make_detector(
    outputs: str = DETECTIONS, *, inline: bool = True, is_half: bool = False
) -> onnx.ModelProto:
    """A small detector of three convolutions, with batch 1 baked into its constant centres."""
    model = onnx.parser.parse_model(_DETECTOR.replace("OUTPUTS", outputs))
    random = np.random.default_rng(11)
    at = np.arange(ANCHORS, dtype=np.float32)
    centres = np.stack([at % ACROSS, at // ACROSS] * 2, axis=1) * STRIDE
    constants = {
        "middle": np.float32(128).reshape(1, 1, 1, 1),
        "stem_w": random.normal(0, 0.003, (16, 3, 5, 5)).astype(np.float32),
        "class_w": random.normal(0, 0.3, (CLASSES, 16, 3, 3)).astype(np.float32),
        "side_w": random.normal(0, 0.1, (4, 16, 3, 3)).astype(np.float32),
        "class_shape": np.array([0, CLASSES, ANCHORS], np.int64),
        "side_shape": np.array([0, 4, ANCHORS], np.int64),
        "last": np.array([-1], np.int64),
        "four": np.array([1, 1, 4], np.int64),
        "all_centres": centres[None],
        "signs": np.array([[[-6, -6, 6, 6]]], np.float32),
        "basis": random.normal(0, 1, (4, 16)).astype(np.float32),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in constants.items()
    )
    if outputs != MASKS:
        del model.graph.node[-1], model.graph.initializer[-1]
    for place, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{place}"
    return attach_functions(to_half(model) if is_half else model, early_exit=True, inline=inline)


def make_feeds(seed: int = 5) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (1, SIZE, SIZE, 3)).astype(np.uint8),
        "score_threshold": np.full((1, CLASSES), 0.5, np.float32),
        "iou_threshold": np.full(1, 0.2, np.float32),
    }


def make_product(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A graph of one convolution or matrix product."""
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in weights.items())
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )


def make_quantised(*, is_unsigned: bool = False) -> onnx.ModelProto:
    """Three convolutions with ReLUs, the last two between Q/DQ pairs as TensorRT takes them."""
    random = np.random.default_rng(3)
    weights: dict[str, np.ndarray] = {"w0": random.normal(0, 0.1, (16, 3, 3, 3))}
    lines = ["r0 = Relu (c0)", "c0 = Conv <pads = [1, 1, 1, 1]> (x, w0)"][::-1]
    zero = np.array(0, np.uint8 if is_unsigned else np.int8)
    scales = {"s": np.float32(0.02), "z": zero, "zw": np.zeros(32, np.int8)}
    for place, channels in ((1, 16), (2, 32)):
        weights[f"w{place}"] = random.normal(0, 0.1, (32, channels, 3, 3))
        scales[f"t{place}"] = np.full(32, 0.003, np.float32)
        lines += [
            f"q{place} = QuantizeLinear (r{place - 1}, s, z)",
            f"d{place} = DequantizeLinear (q{place}, s, z)",
            f"v{place} = DequantizeLinear <axis = 0> (i{place}, t{place}, zw)",
            f"c{place} = Conv <pads = [1, 1, 1, 1]> (d{place}, v{place})",
            f"r{place} = Relu (c{place})",
        ]
    lines += ["q3 = QuantizeLinear (r2, s, z)", "y = DequantizeLinear (q3, s, z)"]
    arrays = {"w0": weights["w0"].astype(np.float32)}
    for place in (1, 2):
        steps = np.round(weights[f"w{place}"] / 0.003)
        arrays[f"i{place}"] = np.clip(steps, -127, 127).astype(np.int8)
    text = "g (float[1,3,32,32] x) => (float[1,32,32,32] y) {" + "\n".join(lines) + "}"
    return make_product(text, **arrays, **{k: np.asarray(v) for k, v in scales.items()})


# ------------------------------------------------------------------------------------- TensorRT


def tensor(name: str, dtype: str, *sides: int, schema: int = 10) -> dict[str, Any]:
    """A tensor as the inspector of TensorRT 10 or 11 writes it."""
    written: dict[str, Any] = {"Name": name, "Location": "Device", "Dimensions": list(sides)}
    if schema >= 11:
        short = {"FP32": "Float", "FP16": "Half", "BF16": "BFloat16"}.get(dtype, dtype)
        return written | {"Format": "Row major linear (kLINEAR)", "Datatype": short}
    return written | {"Format/Datatype": f"Row major linear {dtype}"}


def make_document(
    trunk: str = "FP16",
    tail: str = "FP32",
    head: str | None = None,
    schema: int = 10,
    classes: int = 7,
) -> dict[str, Any]:
    """A detector's engine: a wide convolution, a narrow one, selection, decode.

    The wide one has 95.36 % of the multiply-adds with 7 classes, 94.74 % with 8.

    Args:
        trunk: type of what the wide convolution multiplies.
        tail: type of what the decode gives.
        head: type of what the narrow convolution multiplies; None is the trunk's.
        schema: 10 or 11.
        classes: output maps of the narrow convolution.
    """

    def t(name: str, dtype: str, *sides: int) -> dict[str, Any]:
        return tensor(name, dtype, *sides, schema=schema)

    head = head or trunk

    layers = [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to node_conv_0",
            "LayerType": "Reformat",
            "Inputs": [t("image_f", "FP32", 1, 16, 20, 20)],
            "Outputs": [t("image_r", trunk, 1, 16, 20, 20)],
            "ParameterType": "Reformat",
            "Origin": "REFORMAT",
        },
        {
            "Name": "node_conv_0 + node_relu_0",
            "LayerType": "CaskConvolution",
            "Inputs": [t("image_r", trunk, 1, 16, 20, 20)],
            "Outputs": [t("features", trunk, 1, 190, 20, 20)],
            "ParameterType": "Convolution",
            "Kernel": [3, 3],
            "OutMaps": 190,
            "Groups": 1,
            "Weights": {"Type": "Half", "Count": 190 * 16 * 9},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_tilesize64x64x32",
            "Metadata": "[ONNX Layer: node_conv_0]\u001e[ONNX Layer: node_relu_0]",
        },
        {
            "Name": "node_head",
            "LayerType": "CaskConvolution",
            "Inputs": [t("features", head, 1, 190, 20, 20)],
            "Outputs": [t("logits", "FP32", 1, classes, 20, 20)],
            "ParameterType": "Convolution",
            "Kernel": [1, 1],
            "OutMaps": classes,
            "Groups": 1,
            "Weights": {"Type": "Half", "Count": 190 * classes},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_tilesize64x64x32",
            "Metadata": "[ONNX Layer: node_head]",
        },
        {
            "Name": "__myl_TopK_myl0_1",
            "LayerType": "kgen",
            "Inputs": [t("logits", "FP32", 1, classes, 20, 20)],
            "Outputs": [t("best", "FP32", 1, 60), t("places", "Int64", 1, 60)],
            "TacticName": "__myl_TopK_0x12",
            "Metadata": "[ONNX Layer: KestrelSelect/top__1]",
        },
        {
            "Name": "__myl_MulAdd_myl0_2",
            "LayerType": "kgen",
            "Inputs": [t("best", "FP32", 1, 60)],
            "Outputs": [t("scores", tail, 1, 60)],
            "TacticName": "__myl_MulAdd_0x34",
            "Metadata": "[ONNX Layer: node_decode]",
        },
    ]
    if schema >= 11:
        ends = [
            {"Name": "image", "IOMode": "Input", "DataType": "Uint8"},
            {"Name": "scores", "IOMode": "Output", "DataType": "Float"},
        ]
        return {"Layers": layers, "I/O Tensors": ends}
    return {"Layers": layers, "Bindings": ["image", "scores"]}
