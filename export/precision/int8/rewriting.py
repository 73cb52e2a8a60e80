"""From a float32 graph and its ranges to the Q/DQ graph that TensorRT takes.

Symmetric int8, zero point 0 (TensorRT refuses others), float32 scales; weights stored as int8 with
a scale for each output channel; biases float32 (TensorRT refuses int32 ones).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
import onnx.helper
from numpy.typing import NDArray
from onnx import numpy_helper

from export.graph.shapes import infer_shapes
from export.graph.walking import reads
from export.precision.int8.placement import Network, Placement, channel_axis, plan_placement

LEVELS = 127  # -127 to 127 for weights; activations may reach -128
ZERO = "int8.zero"


def to_int8(
    base: onnx.ModelProto,
    ranges: Mapping[str, float],
    *,
    float_nodes: Collection[str] = frozenset(),
    quantise_heads: bool = False,
) -> onnx.ModelProto:
    """Give the int8 graph of a float32 one.

    Args:
        base: traced, BatchNormalization folded, KestrelSelect and KestrelNms as nodes without
            bodies, weights inside; it is not changed.
        ranges: tensor -> largest magnitude that is kept, of each observed tensor of the placement.
        float_nodes, quantise_heads: as of `plan_placement`.

    Returns:
        A new model with the same inputs and outputs, every tensor typed.

    Raises:
        ValueError: the graph is quantised already, or a range is missing or no positive number.
    """
    quantised = [n for n in base.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if quantised:
        raise ValueError(
            f"{quantised[0].output[0]!r} is quantised already, expected a float32 graph. "
            "Give what the trace wrote."
        )
    placement = plan_placement(base, float_nodes=float_nodes, quantise_heads=quantise_heads)
    model = onnx.ModelProto()
    model.CopyFrom(base)
    _Rewriting(model.graph, Network(base), placement, choose_scales(placement, ranges)).run()
    return infer_shapes(model)


def choose_scales(placement: Placement, ranges: Mapping[str, float]) -> dict[str, np.float32]:
    """Give the scale of each group, by its first tensor: that of its widest member.

    A group that was 0 on every frame gets the range 1.

    Raises:
        ValueError: a range is missing or no number from 0 up.
    """
    widest: dict[str, float] = dict.fromkeys(placement.groups.values(), 0.0)
    for name in placement.observed:
        if name not in ranges or not 0 <= ranges[name] < np.inf:
            raise ValueError(
                f"the range of tensor {name!r} is {ranges.get(name)}; expected a number from 0 up. "
                "Calibrate on the graph that is quantised."
            )
        group = placement.groups[name]
        widest[group] = max(widest[group], ranges[name])
    return {name: np.float32((amax or 1.0) / LEVELS) for name, amax in widest.items()}


def quantise_weights(
    weights: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round weights to 255 levels, symmetric, each output channel by its own largest magnitude.

    Args:
        weights: of any shape.
        axis: of the output channels.

    Returns:
        Levels -127..127 in the shape of the weights, and a scale for each channel.
    """
    others = tuple(place for place in range(weights.ndim) if place != axis)
    largest = np.abs(weights).max(axis=others, initial=0.0)
    scales = np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(LEVELS)
    levels = np.rint(weights / np.expand_dims(scales, others))
    return np.clip(levels, -LEVELS, LEVELS).astype(np.int8), scales


class _Rewriting:
    """One graph on its way to int8."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        network: Network,
        placement: Placement,
        scales: Mapping[str, np.float32],
    ) -> None:
        self.graph = graph
        self.network = network
        self.placement = placement
        self.scales = scales
        self.written: list[onnx.NodeProto] = []
        self.dequantised: set[str] = set()  # weights

    def run(self) -> None:
        """Rewrite the graph in place."""
        carried = {*self.placement.tensors}
        self._store(np.zeros((), np.int8), ZERO)
        for group, scale in self.scales.items():
            self._store(np.asarray(scale, np.float32), f"{group}.scale")
        for name in self.placement.tensors:
            if name not in self.network.makers:
                self._write_pair(name)
        products = {*self.placement.products}
        for node, is_tail in zip(self.graph.node, self.network.is_tail, strict=True):
            if not is_tail and node.op_type != "Shape":
                for place, name in enumerate(node.input):
                    node.input[place] = f"{name}.dq" if name in carried else name
            if node.output[0] in products:
                node.input[1] = self._dequantise_weights(node.input[1], channel_axis(node))
            self.written.append(node)
            for name in node.output:
                if name in carried:
                    self._write_pair(name)
        nodes = list(self.written)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._drop_unread_weights()

    def _write_pair(self, name: str) -> None:
        scale = f"{self.placement.groups[name]}.scale"
        for op_type, given, made in (
            ("QuantizeLinear", name, f"{name}.q"),
            ("DequantizeLinear", f"{name}.q", f"{name}.dq"),
        ):
            self.written.append(onnx.helper.make_node(op_type, [given, scale, ZERO], [made], made))

    def _dequantise_weights(self, name: str, axis: int) -> str:
        """Store weights as int8, once for all that read them along an axis."""
        made = f"{name}.dq{axis}"
        if made not in self.dequantised:
            self.dequantised.add(made)
            levels, scales = quantise_weights(self.network.constants[name], axis)
            stored = [f"{name}.{part}{axis}" for part in ("int8_", "scale", "zero")]
            values = (levels, scales, np.zeros(len(scales), np.int8))
            for value, each in zip(values, stored, strict=True):
                self._store(value, each)
            self.written.append(
                onnx.helper.make_node("DequantizeLinear", stored, [made], made, axis=axis)
            )
        return made

    def _store(self, value: NDArray, name: str) -> None:
        self.graph.initializer.append(numpy_helper.from_array(value, name))

    def _drop_unread_weights(self) -> None:
        """Remove float weights that nothing reads any more."""
        read = {name for node in self.graph.node for name in reads(node)}
        read |= {info.name for info in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
