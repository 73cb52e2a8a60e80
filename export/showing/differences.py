"""What differs between two described paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.precision.half import HALF_SUFFIX
from export.showing.graphs import load_graph

Document = dict[str, Any]


def compare(first: Document, second: Document) -> Document:
    """Hold two documents of `describe` against each other.

    Returns:
        `manifest`: fields that differ; `files`: pairs of graphs of the same name, precision and
        kind (two lone files are always a pair); `engines` and `proof`: what differs there;
        `only_first`, `only_second`: files without a partner.
    """
    pairs, only_first, only_second = _pair(first, second)
    return {
        "manifest": _changed(_flatten(first.get("manifest")), _flatten(second.get("manifest"))),
        "files": [
            _compare_files(one, other, _place(first, one), _place(second, other))
            for one, other in pairs
        ],
        "engines": _changed(_list_engines(first), _list_engines(second)),
        "proof": _changed(_list_verdicts(first), _list_verdicts(second)),
        "only_first": only_first,
        "only_second": only_second,
    }


def compare_weights(first: onnx.ModelProto, second: onnx.ModelProto) -> Document:
    """Weights by name: those of one side only, and those that differ, with the largest difference.

    Args:
        first: with its weights loaded.
        second: the same; other element types are compared as numbers.
    """
    ours, theirs = _name_weights(first), _name_weights(second)
    changed, num_same = [], 0
    for name in ours.keys() & theirs.keys():
        difference = _compare_tensor(ours[name], theirs[name])
        if difference is None:
            num_same += 1
        else:
            changed.append({"name": name, **difference})
    changed.sort(key=lambda row: (-(row["max_difference"] or 0.0), row["name"]))
    return {
        "num_same": num_same,
        "changed": changed,
        "only_first": sorted(ours.keys() - theirs.keys()),
        "only_second": sorted(theirs.keys() - ours.keys()),
    }


def _name_weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Weights by the names that they have in every precision; copies in half have a suffix."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in list(weights):
        plain = name.removesuffix(HALF_SUFFIX)
        if plain not in weights:
            weights[plain] = weights.pop(name)
    return weights


def _compare_tensor(one: onnx.TensorProto, other: onnx.TensorProto) -> Document | None:
    """None where they are equal in type, shape and every bit."""
    a, b = numpy_helper.to_array(one), numpy_helper.to_array(other)
    types = [a.dtype.name, b.dtype.name]
    if a.shape != b.shape:
        return {"types": types, "shapes": [list(a.shape), list(b.shape)], "max_difference": None}
    if a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return None
    return {
        "types": types,
        "shapes": [list(a.shape), list(b.shape)],
        "max_difference": _largest_difference(a, b),
    }


def _largest_difference(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """None where a difference is infinite or no number, which JSON has not."""
    if not a.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    apart = np.where(a.astype(np.float64) == b.astype(np.float64), 0.0, apart)
    largest = float(apart.max())
    return largest if np.isfinite(largest) else None


def _compare_files(one: Document, other: Document, path: Path, other_path: Path) -> Document:
    pair: Document = {"names": [one["name"], other["name"]]}
    is_there = "sha256" in one and "sha256" in other
    pair["is_same"] = is_there and one["sha256"] == other["sha256"]
    if not is_there or pair["is_same"]:
        return pair
    counts = [one["nodes"], other["nodes"]]
    operators = sorted(counts[0].keys() | counts[1].keys())
    pair |= {
        "bytes": [one["bytes"], other["bytes"]],
        "num_nodes": [one["num_nodes"], other["num_nodes"]],
        "nodes": {
            name: [each.get(name, 0) for each in counts]
            for name in operators
            if counts[0].get(name) != counts[1].get(name)
        },
        "contract": _changed(_list_tensors(one), _list_tensors(other)),
        "shares": [each["audit"].get("shares", {}) for each in (one, other)],
        "weights": compare_weights(
            load_graph(path, with_weights=True), load_graph(other_path, with_weights=True)
        ),
    }
    return pair


def _pair(
    first: Document, second: Document
) -> tuple[list[tuple[Document, Document]], list[str], list[str]]:
    ours, theirs = first.get("files", []), second.get("files", [])
    if first["kind"] == second["kind"] == "onnx":
        return [(ours[0], theirs[0])], [], []
    by_key = {(each["graph"], each["kind"], each["precision"]): each for each in theirs}
    pairs, alone = [], []
    for each in ours:
        partner = by_key.pop((each["graph"], each["kind"], each["precision"]), None)
        if partner is None:
            alone.append(each["name"])
        else:
            pairs.append((each, partner))
    return pairs, alone, [each["name"] for each in by_key.values()]


def _place(document: Document, file: Document) -> Path:
    path = Path(document["path"])
    return path / file["name"] if document["kind"] == "bundle" else path


def _changed(first: Document, second: Document) -> list[Document]:
    return [
        {"name": name, "first": first.get(name), "second": second.get(name)}
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def _flatten(manifest: Document | None) -> Document:
    """Fields, those of nested objects as "geometry.height"; hashes are compared with the files."""
    flat: Document = {}
    for name, value in (manifest or {}).items():
        if name == "graphs":
            for graph, files in value.items():
                flat[f"graphs.{graph}"] = {k: v for k, v in files.items() if k != "sha256"}
        elif isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _list_tensors(file: Document) -> Document:
    return {
        f"{side[:-1]} {tensor['name']}": f"{tensor['dtype']} {tensor['shape']}"
        for side in ("inputs", "outputs")
        for tensor in file[side]
    }


def _list_engines(document: Document) -> Document:
    """Engine and field of its record -> value."""
    flat: Document = {}
    is_alone = document["kind"] == "engine"
    for engine in document.get("engines", []):
        name = "engine" if is_alone else engine["name"]
        flat[f"{name} sha256"] = engine["sha256"]
        for key, value in engine.get("record", {}).get("identity", {}).items():
            flat[f"{name} {key}"] = value
    return flat


def _list_verdicts(document: Document) -> Document:
    artifacts = document.get("proof", {}).get("artifacts", [])
    return {f"{a['precision']} {a['backend']}": a["verdict"] for a in artifacts}
