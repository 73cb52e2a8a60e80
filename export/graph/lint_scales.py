"""The rule of the lint on scales of QuantizeLinear and DequantizeLinear.

TensorRT takes a scale of its own for each output channel of weights, and one for a whole
activation; TensorRT-RTX builds a wrong axis without a word, so a build is no proof of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx.numpy_helper

from export.graph.subject import Subject
from export.graph.walking import attribute, label

QUANTISERS = {"QuantizeLinear", "DequantizeLinear"}
DEFAULT_AXIS = 1  # of both operators


def check_scales(subject: Subject) -> Iterator[tuple[str, str]]:
    """Scales are fixed and positive; those of a channel each belong to weights, on their axis."""
    constants = {tensor.name: tensor for tensor in subject.model.graph.initializer}
    for node in subject.nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    axes = _channel_axes(subject)
    for node in (n for n in subject.nodes if n.op_type in QUANTISERS):
        tensor = constants.get(node.input[1])
        if tensor is None:
            yield label(node), "its scale is computed; expected a constant. Calibrate before."
            continue
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            scale = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            if not (np.isfinite(scale) & (scale > 0)).all():
                yield label(node), "a scale is not above 0, or not finite. Calibrate again."
        if not tensor.dims:
            continue
        axis = attribute(node, "axis", DEFAULT_AXIS)
        if node.input[0] not in constants:
            yield label(node), "an activation has a scale for each channel; expected one scale."
        elif axis not in axes.get(node.output[0], {axis}):
            expected = " or ".join(map(str, sorted(axes[node.output[0]])))
            yield (
                label(node),
                f"its scales lie along axis {axis}; what reads it has its output channels on axis "
                f"{expected}. Quantise along that axis.",
            )


def _channel_axes(subject: Subject) -> dict[str, set[int]]:
    """Weights -> axes of the output channels of the products that read them."""
    axes: dict[str, set[int]] = {}
    for node in subject.nodes:
        if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
            axes.setdefault(node.input[1], set()).add(0)
        elif node.op_type in ("ConvTranspose", "Gemm"):
            axes.setdefault(node.input[1], set()).add(1)
    return axes
