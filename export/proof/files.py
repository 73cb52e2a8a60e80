"""What a bundle's files say of themselves, held against its manifest before anything runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import onnx
from onnx import numpy_helper

from export.graph.lint import lint
from export.graph.subject import Target
from export.precision.audit import find_type_fault
from runtime.contract.bundle import Bundle, Kind
from runtime.contract.errors import ManifestError
from runtime.contract.manifest import METADATA_KEY, Manifest
from runtime.contract.outputs import KEY, NONKEY, TensorSpec

KINDS: tuple[Kind, ...] = ("portable", "plugin", "cpu")
NUMPY_NAMES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.UINT8: "uint8",
}


@functools.lru_cache(maxsize=8)
def find_file_fault(bundle: Bundle, precision: str) -> str:
    """Say which file of a precision is not what the manifest says; empty where all are.

    Looked at are the copy of the manifest inside it, names, types and shapes of its inputs and
    outputs, the precision of its layers, the rules of the lint, and whether all kinds of file
    have the same weights.

    Raises:
        BundleError: a file is missing or has a wrong hash.
    """
    manifest = bundle.manifest
    for graph in manifest.graphs:
        models: dict[Kind, onnx.ModelProto] = {}
        for kind in KINDS:
            if not bundle.has_file(graph, precision, kind):
                continue
            path = bundle.file(graph, precision, kind)
            try:
                models[kind] = onnx.load(path)
            except (ValueError, OSError, onnx.checker.ValidationError) as error:
                said = " ".join(str(error).split())[:200]
                return f"{path.name}: its weights cannot be read ({said}). Export again."
            fault = next(_find_faults(models[kind], manifest, graph, precision, kind), "")
            if fault:
                return f"{path.name}: {fault}"
            name = _find_other_weight(models.get("portable", models[kind]), models[kind])
            if name:
                return f"{path.name}: weight {name} is not that of the portable file. Export again."
    return ""


def _find_faults(
    model: onnx.ModelProto, manifest: Manifest, graph: str, precision: str, kind: Kind
) -> Iterator[str]:
    yield from _find_foreign(model, manifest)
    yield from _find_contract_faults(model, manifest, graph)
    if fault := find_type_fault(model, precision):
        yield fault
    target: Target = "plugin" if kind == "plugin" else "portable"
    for finding in lint(model, target=target, is_cpu_int8=kind == "cpu"):
        yield f"breaks rule {finding.rule} at {finding.node!r}: {finding.message}"


def _find_foreign(model: onnx.ModelProto, manifest: Manifest) -> Iterator[str]:
    """The copy of the manifest inside a file says which checkpoint it was traced from."""
    text = next((p.value for p in model.metadata_props if p.key == METADATA_KEY), "")
    try:
        inside = Manifest.from_json(text, origin="the manifest inside")
    except ManifestError as error:
        yield str(error)
        return
    key = "checkpoint_sha256"
    if inside.training.get(key) != manifest.training.get(key):
        yield (
            f"was exported from a checkpoint with sha256 {inside.training.get(key)}; the manifest "
            f"says {manifest.training.get(key)}. Export again."
        )


def _find_contract_faults(model: onnx.ModelProto, manifest: Manifest, graph: str) -> Iterator[str]:
    """Names, types and fixed sides of inputs and outputs; of state the names alone."""
    weights = {tensor.name for tensor in model.graph.initializer}
    given = [info for info in model.graph.input if info.name not in weights]
    taken = manifest.state.values() if graph == NONKEY else ()
    left = manifest.state.keys() if graph == KEY else ()
    outputs = manifest.outputs_of_graph(graph)
    sides = (
        ("input", given, manifest.inputs, taken),
        ("output", model.graph.output, outputs, left),
    )
    for side, infos, specs, state in sides:
        found = {info.name: _describe(info) for info in infos}
        absent = [name for name in state if name not in found]
        if absent:
            yield f"lacks the {side} {', '.join(absent)}, which the manifest has as state."
        found = {name: each for name, each in found.items() if name not in state}
        expected = {spec.name: _describe_spec(spec, manifest) for spec in specs}
        if found.keys() != expected.keys():
            yield f"has the {side}s {', '.join(found)}; the manifest has {', '.join(expected)}."
        for name in expected:
            if name in found and found[name] != expected[name]:
                yield f"{side} {name!r} is {found[name]}; the manifest has {expected[name]}."


def _describe(info: onnx.ValueInfoProto) -> str:
    kind = info.type.tensor_type
    dtype = NUMPY_NAMES.get(kind.elem_type, onnx.TensorProto.DataType.Name(kind.elem_type))
    sides = [side.dim_param or str(side.dim_value) for side in kind.shape.dim]
    return f"{dtype} ({', '.join(['B', *sides[1:]])})"


def _describe_spec(spec: TensorSpec, manifest: Manifest) -> str:
    sizes = manifest.sizes(1)
    sides = [str(sizes.get(str(side), side)) for side in spec.shape]
    return f"{spec.dtype} ({', '.join(['B', *sides[1:]])})"


def _find_other_weight(portable: onnx.ModelProto, other: onnx.ModelProto) -> str:
    """Name of a weight that both files have and that differs; empty where none does."""
    known = {tensor.name: tensor for tensor in portable.graph.initializer}
    for tensor in other.graph.initializer:
        ours = known.get(tensor.name)
        if ours is not None and (
            numpy_helper.to_array(ours).tobytes() != numpy_helper.to_array(tensor).tobytes()
        ):
            return str(tensor.name)
    return ""
