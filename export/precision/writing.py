"""The files of one graph: for each precision a portable one and one with our nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import onnx

from export.graph.lint import lint
from export.graph.operators import attach_functions
from export.graph.storage import move_weights, set_metadata
from export.graph.subject import Target
from export.precision.audit import find_type_fault
from export.precision.half import to_half
from export.precision.int8.calibration import CALIBRATION_NAME, read_calibrations
from export.precision.int8.for_cpu import to_cpu
from export.precision.int8.rewriting import to_int8
from export.precision.mixed import ASSIGNMENT_NAME, read_assignment
from export.precision.state import HALVED, halve_state
from runtime.contract.bundle import PRECISION_KEY, Kind, hash_file
from runtime.contract.errors import BundleError
from runtime.contract.manifest import METADATA_KEY, Graph, Manifest

Conversion = Callable[[onnx.ModelProto], onnx.ModelProto]

# From the traced float32 graph to each precision that needs nothing else.
CONVERSIONS: dict[str, Conversion] = {
    "fp32": lambda base: base,
    "fp16": to_half,
}
# Hold Q/DQ pairs: ranges come from a calibration, and CPUs get a file of their own.
QUANTISED = ("int8", "mixed")


def name_files(graph: str, precisions: Sequence[str]) -> Graph:
    """The files that `write_files` will write, not hashed yet.

    Args:
        graph: "model", or "key" / "nonkey" of a temporal model.
        precisions: keys of CONVERSIONS, or of QUANTISED.
    """
    return Graph(
        files={p: f"{graph}.{p}.onnx" for p in precisions},
        plugin_files={p: f"{graph}.{p}.plugin.onnx" for p in precisions},
        cpu_files={p: f"{graph}.{p}.cpu.onnx" for p in precisions if p in QUANTISED},
    )


def write_files(
    base: onnx.ModelProto,
    name: str,
    manifest: Manifest,
    folder: Path,
    conversions: Mapping[str, Conversion] = CONVERSIONS,
    for_cpus: Mapping[str, Conversion] = MappingProxyType({}),
) -> Graph:
    """Write a graph in those precisions of the manifest that have a conversion, checked.

    Args:
        base: traced, float32, KestrelSelect and KestrelNms as nodes without bodies.
        name: of the graph, a key of the manifest's graphs.
        manifest: complete but for hashes; a copy goes into each file.
        folder: where they go.
        conversions: precision -> what makes it of the base.
        for_cpus: precision -> what makes the Q/DQ graph that CPUs' file is made of, where that is
            not the one of `conversions`.

    Returns:
        The manifest's entry with hashes, those of external weights included.

    Raises:
        BundleError: the model breaks a rule that every backend relies on.
    """
    graph = manifest.graphs[name]
    text = manifest.to_json(is_complete=False)
    hashes = dict(graph.sha256)
    for precision in manifest.precisions:
        if precision not in conversions:
            continue
        typed = conversions[precision](base)
        if manifest.state and precision in HALVED:
            typed = halve_state(typed, manifest.state)
        protos: dict[Kind, onnx.ModelProto] = {
            "portable": attach_functions(typed, early_exit=True, inline=True),
            "plugin": attach_functions(typed, early_exit=False, inline=False),
        }
        names = {"portable": graph.files[precision], "plugin": graph.plugin_files[precision]}
        if precision in graph.cpu_files:
            source = for_cpus[precision](base) if precision in for_cpus else typed
            protos["cpu"] = attach_functions(to_cpu(source), early_exit=True, inline=True)
            names["cpu"] = graph.cpu_files[precision]
        for kind, proto in protos.items():
            _check(proto, names[kind], precision, kind)
        weights = f"{name}.{precision}.weights"
        written = list(names.values())
        if move_weights(protos["portable"], folder, weights):
            for kind in protos.keys() - {"portable"}:
                _share_weights(protos["portable"], protos[kind])
            written.append(weights)
        for kind, proto in protos.items():
            set_metadata(proto, {METADATA_KEY: text, PRECISION_KEY: precision})
            (folder / names[kind]).write_bytes(proto.SerializeToString(deterministic=True))
        hashes |= {each: hash_file(folder / each) for each in written}
    return dataclasses.replace(graph, sha256=hashes)


def _check(proto: onnx.ModelProto, file_name: str, precision: str, kind: Kind) -> None:
    target: Target = "plugin" if kind == "plugin" else "portable"
    faults = lint(proto, target=target, is_cpu_int8=kind == "cpu")
    if faults:
        raise BundleError(
            f"{file_name} would break rule {faults[0].rule} at {faults[0].node!r}: "
            f"{faults[0].message} ({len(faults)} findings). Change the model."
        )
    fault = find_type_fault(proto, precision)
    if fault:
        raise BundleError(
            f"{file_name}: {fault} Leave {precision} out of --precision, or change the model."
        )


def convert_again(
    base: onnx.ModelProto,
    name: str,
    precision: str,
    folder: Path,
    state: Mapping[str, str] = MappingProxyType({}),
) -> onnx.ModelProto:
    """Give what a fresh export would: int8 and mixed by what a bundle's folder says of them.

    Args:
        base: the graph as it is traced now. name: of the graph, as of `write_files`.
        state: of the manifest.

    Raises:
        KestrelError: the calibration is missing, or of another network.
    """
    if precision in CONVERSIONS:
        typed = CONVERSIONS[precision](base)
        return halve_state(typed, state) if state and precision in HALVED else typed
    if precision == "mixed":
        return read_assignment(folder / ASSIGNMENT_NAME, name, base).to_mixed(base)
    calibrations = read_calibrations(folder / CALIBRATION_NAME)
    if precision != "int8" or name not in calibrations:
        raise BundleError(f"{folder} does not say how {precision} of {name!r} was made.")
    calibrations[name].refuse_other(base)
    heads = calibrations[name].heads
    return to_int8(base, calibrations[name].ranges, quantise_heads=heads == "int8")


def _share_weights(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    """Let a graph refer to the same places of the external file as the portable one."""
    moved = {
        tensor.name: tensor
        for tensor in source.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    for tensor in target.graph.initializer:
        if tensor.name in moved:
            tensor.CopyFrom(moved[tensor.name])
