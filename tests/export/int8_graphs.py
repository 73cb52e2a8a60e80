"""Small graphs on their way to int8, and an arithmetic of Q/DQ in NumPy to hold them to."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view

from export.precision.int8.observing import observe
from export.precision.int8.placement import plan_placement
from export.precision.int8.ranges import choose_amax
from export.precision.int8.rewriting import to_int8

LEVELS = 127


def ranges_of(
    model: onnx.ModelProto, feeds: Iterable[dict[str, np.ndarray]], method: str = "max"
) -> dict[str, float]:
    """Ranges of all tensors that any choice of nodes may quantise."""
    tensors = plan_placement(model, quantise_heads=True).tensors
    return {
        name: choose_amax(histogram, method)
        for name, histogram in observe(model, tensors, feeds).items()
    }


def quantised(model: onnx.ModelProto, feeds: dict[str, np.ndarray], **options) -> onnx.ModelProto:
    return to_int8(model, ranges_of(model, [feeds]), **options)


def run_plainly(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """ONNX Runtime without any optimisation: every node as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def pairs_of(model: onnx.ModelProto) -> dict[str, str]:
    """Quantised tensor -> its scale's name, of activations."""
    nodes = model.graph.node
    return {node.input[0]: node.input[1] for node in nodes if node.op_type == "QuantizeLinear"}


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def maker_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if name in node.output)


def fake_quantise(values: np.ndarray, amax: float) -> np.ndarray:
    """Round to 256 levels of amax / 127, half to even, in float64."""
    step = amax / LEVELS
    return np.clip(np.rint(values / step), -LEVELS - 1, LEVELS) * step


def fake_quantise_weights(weights: np.ndarray) -> np.ndarray:
    """(O, ...) each output channel by its own largest magnitude."""
    return np.stack([fake_quantise(row, np.abs(row).max()) for row in weights.astype(np.float64)])


def convolve(image: np.ndarray, weights: np.ndarray, pad: int) -> np.ndarray:
    """(C, H, W) with (O, C, k, k) to (O, H', W'), float64."""
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    side = weights.shape[-1]
    windows = sliding_window_view(padded, (side, side), axis=(1, 2))  # (C, H', W', k, k)
    return np.einsum("chwij,ocij->ohw", windows, weights)
