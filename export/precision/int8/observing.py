"""Running the float graph over frames and counting the values of its tensors, in bounded memory.

The tensors become outputs of the part of the graph that makes them. Where a frame's tensors are
larger than OUTPUT_LIMIT_BYTES together, they are taken in groups, a run for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from export.graph.shapes import STANDARD, infer_shapes
from export.graph.walking import reads
from export.precision.int8.ranges import Histogram

OUTPUT_LIMIT_BYTES = 256 << 20
LOG_FATAL = 4

Feeds = Mapping[str, NDArray]


def observe(
    base: onnx.ModelProto, tensors: Sequence[str], feeds: Iterable[Feeds]
) -> dict[str, Histogram]:
    """Count the magnitudes that tensors take.

    Args:
        base: float32; no body is needed for what the tensors do not depend on. Not changed.
        tensors: names, in the order in which the graph makes them.
        feeds: of one frame each, by the graph's input names; those that the tensors do not depend
            on may be left out. Taken one at a time.

    Returns:
        Tensor -> its histogram over all frames.

    Raises:
        ValueError: there are no feeds, one is missing, or a tensor took a value that is not finite.
    """
    histograms = {name: Histogram() for name in tensors}
    sessions = [open_part(base, group) for group in group_tensors(base, tensors)]
    count = 0
    for count, fed in enumerate(feeds, start=1):
        for session, names in sessions:
            wanted = [each.name for each in session.get_inputs()]
            missing = [name for name in wanted if name not in fed]
            if missing:
                raise ValueError(
                    f"frame {count} feeds no {missing[0]!r}; expected {', '.join(wanted)}. "
                    "Feed every input that the network reads."
                )
            values = session.run(names, {name: fed[name] for name in wanted})
            for name, value in zip(names, values, strict=True):
                try:
                    histograms[name].add(value)
                except ValueError as error:
                    raise ValueError(f"tensor {name!r} on frame {count}: {error}") from None
            del values, value
    if not count:
        raise ValueError("there are no frames to calibrate on; expected at least one.")
    return histograms


def group_tensors(
    base: onnx.ModelProto, tensors: Sequence[str], limit_bytes: int = OUTPUT_LIMIT_BYTES
) -> list[list[str]]:
    """Split tensors, in order, into groups of at most `limit_bytes` at batch 1."""
    sizes = _sizes(base)
    groups: list[list[str]] = []
    room = 0
    for name in tensors:
        size = 4 * sizes.get(name, 0)
        if not groups or size > room:
            groups.append([])
            room = limit_bytes
        groups[-1].append(name)
        room -= size
    return groups


def _sizes(base: onnx.ModelProto) -> dict[str, int]:
    """Numbers in each tensor at batch 1; unknown sides count as one."""
    graph = infer_shapes(base).graph
    return {
        info.name: math.prod(side.dim_value or 1 for side in info.type.tensor_type.shape.dim)
        for info in (*graph.input, *graph.value_info, *graph.output)
    }


def cut(base: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Give the part of a graph that makes some tensors, with these as its outputs."""
    needed = {*tensors}
    nodes = []
    for node in reversed(base.graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed |= reads(node)
    part = onnx.ModelProto(ir_version=base.ir_version)
    part.opset_import.extend(entry for entry in base.opset_import if entry.domain in STANDARD)
    part.graph.name = base.graph.name or "part"
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(t for t in base.graph.initializer if t.name in needed)
    part.graph.input.extend(info for info in base.graph.input if info.name in needed)
    for name in tensors:
        part.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return part


def open_part(
    base: onnx.ModelProto, tensors: list[str]
) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """A session of the part of a graph that makes some tensors, and their names."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_FATAL
    options.enable_mem_pattern = False  # sizes are fixed, but outputs are freed frame by frame
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    text = cut(base, tensors).SerializeToString()
    session = onnxruntime.InferenceSession(text, options, providers=["CPUExecutionProvider"])
    return session, tensors
