"""TensorRT's complaints, turned into one line that names the node and a cure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.contract.errors import EngineError

_MOST_CHARACTERS = 400
_NOISE = "[checkMacros.cpp"  # TensorRT appends what it says of a missing driver

# What TensorRT writes -> what to do. The first that fits is taken.
_CURES = (
    (
        "hw-specific datatypes",
        "a target device lacks that type: choose another precision, or leave the device out",
    ),
    (
        "must have same input types",
        "the graph mixes types and this network is strongly typed: export that precision again",
    ),
    (
        "zero point is not supported",
        "TensorRT takes symmetric int8 only: export int8 again, and give a CPU its own int8 file",
    ),
    (
        "must have type fp8",
        "a DequantizeLinear stands on an int32 bias: export int8 again with float biases",
    ),
    ("k exceeds the maximum value", "TopK ends at 3840: export with fewer candidates"),
    ("type is uint8", "only Cast may touch the uint8 image: export again"),
    ("unsupported input type of uint8", "only Cast may touch the uint8 image: export again"),
    (
        "was not found in plugin registry",
        "this TensorRT lacks that operator: export with standard operators of fixed output size",
    ),
    (
        "plugin not found",
        "this TensorRT knows no such operator: export again, with its body in standard operators",
    ),
    ("has no runners", "this TensorRT cannot run that operator: export without it"),
    ("could not find any implementation", "give it more memory (workspace_bytes), or simplify it"),
    ("out of memory", "close other programs that use the GPU, or lower workspace_bytes"),
    ("outofmemory", "close other programs that use the GPU, or lower workspace_bytes"),
    ("must have at least one output", "the file is empty or damaged: copy or export it again"),
    ("failed to parse the onnx model", "the file is damaged: copy or export the bundle again"),
    (
        "cannot be found, or is not a regular file",
        "a file is missing: copy the whole bundle, or export it again",
    ),
    # Last: without a driver TensorRT adds this line to errors of other causes.
    ("insufficient for cuda runtime", "the NVIDIA driver is missing or too old: update it"),
)
_GENERAL_CURE = "export again; export/graph/lint.py lists what TensorRT takes"


def parse_refusal(what: str, flavour: str, parser: Any, said: Sequence[str]) -> EngineError:
    """The error for a graph that the parser refused: its first complaint."""
    complaints = [parser.get_error(index) for index in range(parser.num_errors)]
    if not complaints:
        return build_refusal(what, flavour, said)
    error = complaints[0]
    text = error.desc()
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    place = _place_of(error)
    return EngineError(
        f"{flavour} refuses {what}{place}: {_shorten(text)}{more}. {_capitalise(_cure(text))}."
    )


def build_refusal(what: str, flavour: str, said: Sequence[str]) -> EngineError:
    """The error for a network that parsed and does not build: the logger's first line."""
    text = said[0] if said else "no reason given"
    cure = next((_cure(line) for line in said if _cure(line) != _GENERAL_CURE), _GENERAL_CURE)
    return EngineError(f"{flavour} cannot build {what}: {_shorten(text)}. {_capitalise(cure)}.")


def _place_of(error: Any) -> str:
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    name = error.node_name() if hasattr(error, "node_name") else ""
    if not operator and not name:
        return ""
    return f" at node {name or f'number {error.node()}'} ({operator or 'unknown operator'})"


def _cure(text: str) -> str:
    lowered = text.lower()
    return next((cure for sign, cure in _CURES if sign in lowered), _GENERAL_CURE)


def _shorten(text: str) -> str:
    line = " ".join(text.split()).split(_NOISE)[0].strip().rstrip(".")
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."


def _capitalise(text: str) -> str:
    return text[0].upper() + text[1:]
