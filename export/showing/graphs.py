"""One ONNX file as a JSON document: contract, nodes, weights, types, lint."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.protobuf.message
import onnx
import onnx.helper

from export.graph.lint import lint
from export.graph.subject import Subject
from export.graph.types_audit import audit_types
from export.graph.walking import walk
from export.proof.auditing import audit_backend
from runtime.contract.errors import BundleError
from runtime.contract.manifest import PRECISIONS, Manifest
from runtime.contract.outputs import KEY, NONKEY, TensorSpec
from runtime.sessions import BACKENDS, why_absent

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GraphFile:
    """A graph's file: its name, which graph of the bundle, which precision, and which kind
    ("portable", "plugin" or "cpu").
    """

    name: str
    graph: str
    precision: str
    kind: str


def describe_graph(
    path: Path, entry: GraphFile, manifest: Manifest | None, *, is_compiled: bool = False
) -> Document:
    """Look at one file.

    Args:
        path: of the file.
        entry: what it is meant to be.
        manifest: to hold inputs and outputs against; None where there is none.
        is_compiled: also what the CPU backends that are installed compute.

    Raises:
        BundleError: it is no ONNX file.
    """
    model = load_graph(path)
    target = "plugin" if entry.kind == "plugin" else "portable"
    findings = lint(model, target=target, is_cpu_int8=entry.kind == "cpu")  # type: ignore[arg-type]
    asked = entry.precision if entry.precision in PRECISIONS else "mixed"
    audit = audit_types(model, asked)
    subject = Subject(model, target, entry.kind == "cpu")  # type: ignore[arg-type]
    contract = {
        "inputs": [_describe_tensor(info) for info in subject.inputs()],
        "outputs": [_describe_tensor(info) for info in model.graph.output],
    }
    problems = [f"{entry.name}: {reason}" for reason in audit.reasons]
    problems += [
        f"{entry.name} breaks rule {each.rule} at {each.node!r}: {each.message}"
        for each in findings
    ]
    if manifest is not None:
        problems += _check_contract(entry, contract, manifest)
    compiled = _compile(path, entry, audit.shares) if is_compiled else []
    problems += [
        f"{entry.name}: {why}"
        for each in compiled
        for why in each["reasons"]
        if each["verdict"] == "fail"
    ]
    nodes = Counter(node.op_type for node in walk(model.graph.node))
    return {
        "name": entry.name,
        "graph": entry.graph,
        "precision": entry.precision,
        "kind": entry.kind,
        "bytes": path.stat().st_size,
        "opset": subject.opset,
        "num_nodes": sum(nodes.values()),
        "nodes": dict(sorted(nodes.items())),
        "num_weights": sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        **contract,
        "audit": audit.to_json(with_layers=True),
        "compiled": compiled,
        "lint": [{"rule": e.rule, "node": e.node, "message": e.message} for e in findings],
        "problems": problems,
    }


def load_graph(path: Path, *, with_weights: bool = False) -> onnx.ModelProto:
    """Load a file; external weights only where asked.

    Raises:
        BundleError: it is no ONNX file, or its weights are missing.
    """
    try:
        model = onnx.load(path, load_external_data=with_weights)
    except (google.protobuf.message.DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise BundleError(
            f"{path} is no ONNX file, is damaged, or lacks its weights ({_one_line(error)}). "
            "Copy or export it again."
        ) from None
    if not model.graph.node:
        raise BundleError(f"{path} holds no graph; expected an ONNX model. Export it again.")
    return model


def _describe_tensor(info: onnx.ValueInfoProto) -> Document:
    kind = info.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else "?"
    return {"name": info.name, "dtype": dtype, "shape": shape}


def _check_contract(entry: GraphFile, contract: Document, manifest: Manifest) -> list[str]:
    """Names, types and shapes against the manifest; of state the names alone."""
    problems = []
    taken = {*manifest.state.values()} if entry.graph == NONKEY else set()
    left = {*manifest.state} if entry.graph == KEY else set()
    sizes = {**manifest.sizes(1)}
    del sizes["B"]  # symbolic in the file
    outputs = manifest.outputs_of_graph(entry.graph)
    for side, specs, state in (("inputs", manifest.inputs, taken), ("outputs", outputs, left)):
        found = {tensor["name"]: tensor for tensor in contract[side]}
        wanted = {spec.name: spec for spec in specs}
        unknown = sorted(set(found) - set(wanted) - state)
        absent = sorted({*wanted, *state} - set(found))
        problems += [
            f"{entry.name} has {side[:-1]} {name!r}, not in the manifest." for name in unknown
        ]
        problems += [f"{entry.name} lacks {side[:-1]} {name!r} of the manifest." for name in absent]
        for name in found.keys() & wanted.keys():
            problems += _check_tensor(entry.name, found[name], wanted[name], sizes)
    return sorted(problems)


def _check_tensor(file: str, found: Document, spec: TensorSpec, sizes: dict[str, int]) -> list[str]:
    expected = [sizes.get(side, side) if isinstance(side, str) else side for side in spec.shape]
    is_alike = len(expected) == len(found["shape"]) and all(
        isinstance(want, str) or want == have
        for want, have in zip(expected, found["shape"], strict=True)
    )
    if is_alike and found["dtype"] == spec.dtype:
        return []
    return [
        f"{file}: {spec.name!r} is {found['dtype']} {found['shape']}; the manifest wants "
        f"{spec.dtype} {expected}. Export again."
    ]


def _compile(path: Path, entry: GraphFile, file_shares: dict[str, float]) -> list[Document]:
    """What each CPU backend computes of a file that is meant for it."""
    if entry.kind == "plugin" or entry.precision not in PRECISIONS:
        return []
    audits = []
    for backend in BACKENDS:
        if backend.needs_gpu:
            continue
        reason = why_absent(backend)
        audit = audit_backend(path, backend.name, entry.precision, file_shares, reason)
        audits.append(audit.to_json())
    return audits


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
