"""The files of one graph: for each precision a portable one and one with our nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from export.graph.lint import lint
from export.graph.operators import attach_functions
from export.graph.storage import move_weights, set_metadata
from export.precision.audit import find_type_fault
from export.precision.half import to_half
from runtime.contract.bundle import PRECISION_KEY, hash_file
from runtime.contract.errors import BundleError
from runtime.contract.manifest import METADATA_KEY, Graph, Manifest

# From the traced float32 graph to each precision.
CONVERSIONS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "fp32": lambda base: base,
    "fp16": to_half,
}


def name_files(graph: str, precisions: Sequence[str]) -> Graph:
    """The files that `write_files` will write, not hashed yet.

    Args:
        graph: "model", or "key" / "nonkey" of a temporal model.
        precisions: keys of CONVERSIONS.
    """
    return Graph(
        files={p: f"{graph}.{p}.onnx" for p in precisions},
        plugin_files={p: f"{graph}.{p}.plugin.onnx" for p in precisions},
    )


def write_files(base: onnx.ModelProto, name: str, manifest: Manifest, folder: Path) -> Graph:
    """Write a graph in every precision of the manifest, checked.

    Args:
        base: traced, float32, KestrelSelect and KestrelNms as nodes without bodies.
        name: of the graph, a key of the manifest's graphs.
        manifest: complete but for hashes; a copy goes into each file.
        folder: where they go.

    Returns:
        The manifest's entry with hashes, those of external weights included.

    Raises:
        BundleError: the model breaks a rule that every backend relies on.
    """
    graph = manifest.graphs[name]
    text = manifest.to_json(is_complete=False)
    written: list[str] = []
    for precision in manifest.precisions:
        typed = CONVERSIONS[precision](base)
        portable = attach_functions(typed, early_exit=True, inline=True)
        plugin = attach_functions(typed, early_exit=False, inline=False)
        _check(portable, graph.files[precision], precision, is_plugin=False)
        _check(plugin, graph.plugin_files[precision], precision, is_plugin=True)
        weights = f"{name}.{precision}.weights"
        if move_weights(portable, folder, weights):
            _share_weights(portable, plugin)
            written.append(weights)
        files = {graph.files[precision]: portable, graph.plugin_files[precision]: plugin}
        for file_name, proto in files.items():
            set_metadata(proto, {METADATA_KEY: text, PRECISION_KEY: precision})
            (folder / file_name).write_bytes(proto.SerializeToString(deterministic=True))
        written.extend(files)
    return dataclasses.replace(graph, sha256={each: hash_file(folder / each) for each in written})


def _check(proto: onnx.ModelProto, file_name: str, precision: str, *, is_plugin: bool) -> None:
    faults = lint(proto, target="plugin" if is_plugin else "portable")
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


def _share_weights(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    """Let the second graph refer to the same places of the external file as the first."""
    moved = {
        tensor.name: tensor
        for tensor in source.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    for tensor in target.graph.initializer:
        if tensor.name in moved:
            tensor.CopyFrom(moved[tensor.name])
