"""Where a failing artifact's graph differs from a fresh export of its checkpoint, in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.graph.walking import label

MOST_NAMED = 3
SAME = {"float32": 1e-5, "float16": 2e-3}  # of a weight's largest value: rounding of two machines


def find_changes(model: onnx.ModelProto, fresh: onnx.ModelProto) -> list[str]:
    """Say what differs.

    Args:
        model: the artifact's graph, weights loaded.
        fresh: what an export of the checkpoint gives now, of the same kind and precision.

    Returns:
        A sentence for each weight and node, the first few only; empty where none differs.
    """
    return [*_changed_weights(model, fresh), *_changed_nodes(model, fresh)]


def _changed_weights(model: onnx.ModelProto, fresh: onnx.ModelProto) -> list[str]:
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    expected = {t.name: numpy_helper.to_array(t) for t in fresh.graph.initializer}
    changes = {
        name: change
        for name in expected
        if name in found and (change := _describe_change(found[name], expected[name]))
    }
    lines = [f"weight {name} {change}" for name, change in changes.items()]
    if len(lines) > MOST_NAMED:
        named = ", ".join(list(changes)[:MOST_NAMED])
        return [f"{len(lines)} of {len(expected)} weights are not the checkpoint's: {named}, ..."]
    return lines


def _describe_change(found: NDArray[Any], expected: NDArray[Any]) -> str:
    """How a weight differs from the checkpoint's; empty where it does not."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return (
            f"is {found.dtype} {found.shape}; the checkpoint's is {expected.dtype} {expected.shape}"
        )
    a, b = found.astype(np.float64), expected.astype(np.float64)
    largest = np.abs(b[np.isfinite(b)]).max(initial=0.0)
    tolerance = SAME.get(found.dtype.name, 0.0) * largest
    if np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True):
        return ""
    if not np.isfinite(a).all():
        return f"holds {np.count_nonzero(~np.isfinite(a))} values that are no finite number"
    if np.allclose(np.sort(a, axis=None), np.sort(b, axis=None), rtol=0, atol=tolerance):
        return "holds the checkpoint's numbers in another order"
    factor = float((a * b).sum() / max(float((b * b).sum()), 1e-300))
    if np.allclose(a, factor * b, rtol=0, atol=tolerance * max(1.0, abs(factor))):
        return f"is {factor:.4g} times the checkpoint's"
    return f"differs from the checkpoint's by up to {np.abs(a - b).max():.4g}"


def _changed_nodes(model: onnx.ModelProto, fresh: onnx.ModelProto) -> list[str]:
    """Nodes by what they give: their operator, what they read, their attributes."""
    found = {node.output[0]: node for node in model.graph.node}
    expected = {node.output[0]: node for node in fresh.graph.node}
    lines = []
    for name, node in expected.items():
        if name not in found:
            lines.append(f"{node.op_type} {label(node)} of a fresh export is missing")
            continue
        other = found[name]
        if (other.op_type, *other.input) != (node.op_type, *node.input):
            lines.append(
                f"{label(other)} is {other.op_type} of ({', '.join(other.input)}); a fresh export "
                f"has {node.op_type} of ({', '.join(node.input)})"
            )
        elif _attributes(other) != _attributes(node):
            lines.append(f"attributes of {other.op_type} {label(other)} are not a fresh export's")
    if len(lines) > MOST_NAMED:
        rest = len(lines) - MOST_NAMED
        return [*lines[:MOST_NAMED], f"{rest} more nodes differ from a fresh export's"]
    return lines


def _attributes(node: onnx.NodeProto) -> dict[str, bytes]:
    return {each.name: each.SerializeToString(deterministic=True) for each in node.attribute}
