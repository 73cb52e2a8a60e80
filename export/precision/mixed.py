"""int8, half and float32 in one graph: int8 where it costs little, half elsewhere in the trunk.

What is not int8 becomes what it is in the fp16 file (`regions.py`), with two exceptions: what lies
between int8 products (activations, residual sums) stays float32, so that backends can fuse it with
the Q/DQ pairs around it, and the tail is float32 in every precision. CPUs never compute in half:
their file is made of the int8 graph with the same choice of products, float32 in place of half.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.graph.shapes import STANDARD
from export.precision.half import element_types, find_half, float_constants, write_half
from export.precision.int8.calibration import Calibration
from export.precision.int8.placement import find_quantisable
from export.precision.int8.rewriting import to_int8
from export.precision.regions import MOVES, PRODUCTS
from runtime.contract.errors import BundleError
from runtime.contract.files import write_json

ASSIGNMENT_NAME = "mixed.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which products are int8, and with which ranges.

    Attributes:
        calibration: of the float32 graph; `heads` says whether their last products may be int8.
        float_nodes: products, by their first outputs, that are not int8.
    """

    calibration: Calibration
    float_nodes: tuple[str, ...]

    def to_mixed(self, base: onnx.ModelProto) -> onnx.ModelProto:
        """The graph with int8 and half."""
        return to_mixed(
            base, self.calibration.ranges, self.float_nodes, quantise_heads=self._is_head_int8
        )

    def to_int8(self, base: onnx.ModelProto) -> onnx.ModelProto:
        """The graph with int8 and float32, which the file for CPUs is made of."""
        return to_int8(
            base,
            self.calibration.ranges,
            float_nodes=self.float_nodes,
            quantise_heads=self._is_head_int8,
        )

    @property
    def _is_head_int8(self) -> bool:
        return self.calibration.heads == "int8"


def to_mixed(
    base: onnx.ModelProto,
    ranges: Mapping[str, float],
    float_nodes: Collection[str] = frozenset(),
    *,
    quantise_heads: bool = False,
) -> onnx.ModelProto:
    """Give the mixed graph of a float32 one; arguments and errors as of `to_int8`."""
    quantised = to_int8(base, ranges, float_nodes=float_nodes, quantise_heads=quantise_heads)
    return write_half(quantised, _choose_half(base, quantised))


def find_int8(quantised: onnx.ModelProto) -> set[str]:
    """Products whose data and weights come out of a DequantizeLinear, by their first outputs."""
    makers = {name: node.op_type for node in quantised.graph.node for name in node.output}
    return {
        node.output[0]
        for node in quantised.graph.node
        if node.op_type in PRODUCTS
        and all(makers.get(name) == "DequantizeLinear" for name in node.input[:2])
    }


def _choose_half(base: onnx.ModelProto, quantised: onnx.ModelProto) -> list[bool]:
    """Say of each node of the Q/DQ graph, in order, whether it computes in half.

    A product does where it is not int8 and the fp16 file has it in half; another node where one of
    its tensors is half already, and one that only moves values where all of them are.
    """
    chosen = zip(base.graph.node, find_half(base), strict=True)
    able = {node.output[0] for node, half in chosen if half}
    types = element_types(quantised)
    constants = float_constants(quantised.graph)
    int8 = find_int8(quantised)
    made: set[str] = set()  # tensors that half nodes give
    is_half = []
    for node in quantised.graph.node:
        fed = [
            name in made
            for name in node.input
            if types.get(name) == onnx.TensorProto.FLOAT and name not in constants
        ]
        if node.domain not in STANDARD or node.output[0] not in able or node.output[0] in int8:
            half = False
        elif node.op_type in PRODUCTS:
            half = True
        else:
            half = bool(fed) and (all(fed) if node.op_type in MOVES else any(fed))
        if half:
            made.update(node.output)
        is_half.append(half)
    return is_half


def write_assignments(path: Path, assignments: Mapping[str, Assignment]) -> None:
    """Write the assignment of each graph, by its name."""
    graphs = {name: dataclasses.asdict(each) for name, each in assignments.items()}
    write_json(path, {"schema": SCHEMA, "graphs": graphs})


def read_assignment(path: Path, graph: str, base: onnx.ModelProto) -> Assignment:
    """Read what `write_assignments` wrote of one graph.

    Args:
        base: the float32 graph that it is to be used on.

    Raises:
        KestrelError: no such file, it is damaged, of a newer schema, or of another network.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema, entry = document["schema"], document["graphs"][graph]
        assignment = Assignment(
            calibration=Calibration(**entry["calibration"]), float_nodes=tuple(entry["float_nodes"])
        )
    except OSError:
        raise BundleError(f"{path} cannot be read; expected what the search chose.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(f"{path} is damaged, or without {graph!r}. Search again.") from None
    if schema != SCHEMA:
        raise BundleError(f"{path} has schema {schema!r}, expected {SCHEMA}. Search again.")
    assignment.calibration.refuse_other(base)
    unknown = sorted({*assignment.float_nodes} - {*find_quantisable(base)})
    if unknown:
        raise BundleError(f"{path} names {unknown[0]!r}, no product of the graph. Search again.")
    return assignment
