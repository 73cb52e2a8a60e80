"""Adding int8 to a bundle that stands: what is not int8 stays as it is, byte for byte."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import onnx

from export.graph.operators import detach_functions
from export.placing import replacing_folder
from export.precision.int8.calibration import (
    CALIBRATION_NAME,
    METHOD,
    Calibration,
    calibrate_graphs,
    read_calibrations,
    summarise,
    write_calibrations,
)
from export.precision.int8.images import CalibrationFrames
from export.precision.int8.rewriting import to_int8
from export.precision.mixed import ASSIGNMENT_NAME, Assignment, write_assignments
from export.precision.writing import Conversion, name_files, write_files
from export.proof.frames import opener_for
from runtime.contract.bundle import VERIFY_NAME, Bundle
from runtime.contract.errors import BundleError
from runtime.contract.files import write_json, write_text
from runtime.contract.manifest import MANIFEST_NAME, Graph, Manifest

GRAPH = "model"
ADDED, MIXED = "int8", "mixed"
PLOT_NAME = "search.mixed.png"
FEW_IMAGES = 16  # fewer are told of


def add_int8(
    path: Path,
    *,
    data: str = "",
    count: int,
    method: str | None = None,
    stored: Path | None = None,
    heads: str | None = None,
    report: Callable[[str], None],
) -> Manifest:
    """Calibrate a bundle's float32 graphs and write them as int8 beside what is there.

    Args:
        path: the bundle's folder; it takes the place of itself when all is done.
        data: frames, as of CalibrationFrames; empty only where `stored` is given.
        count: how many frames; with `stored` it is as many as that was made on.
        method: of choosing ranges; None is METHOD, or that of `stored`.
        stored: a calibration.json whose ranges are used. It must be of this network, and of these
            frames and this method where they are given.
        heads: the last product of each head is "float" or "int8"; None is as in `stored`, else
            float.
        report: told each step, for the screen.

    Raises:
        BundleError: no bundle's folder with fp32. KestrelError: of the calibration.
    """
    bundle = Bundle.open(path, allow_unverified=True)
    bases = float_graphs(bundle)
    manifest = bundle.manifest
    calibrations = find_calibrations(
        manifest,
        bases,
        data=data,
        count=count,
        method=method,
        stored=stored,
        heads=heads,
        report=report,
    )
    with replacing_folder(path, report) as folder:
        expect_same(path, manifest)
        added = write_added(manifest, bases, calibrations, path, folder)
    if MIXED in manifest.precisions:
        report(f"{MIXED} is gone: its ranges were others. Search again with --ap-budget.")
    names = [name for graph in added.graphs.values() for name in _names(graph, [ADDED])]
    report(f"{ADDED} added to {path}: {', '.join(names)}")
    return added


def find_calibrations(
    manifest: Manifest,
    bases: Mapping[str, onnx.ModelProto],
    *,
    data: str,
    count: int,
    method: str | None,
    stored: Path | None,
    heads: str | None,
    report: Callable[[str], None],
) -> dict[str, Calibration]:
    """Calibrate float32 graphs, or take stored calibrations; arguments as of `add_int8`."""
    opened = opener_for(manifest, manifest.task)
    if stored is not None:
        calibrations = _read_stored(stored, bases)
        number = next(iter(calibrations.values())).num_images
        frames = CalibrationFrames(data, manifest.geometry, number, opened) if data else None
        images_sha256 = frames.hash() if frames is not None else ""
        for name, each in calibrations.items():
            each.refuse_other(bases[name], method=method or "", images_sha256=images_sha256)
    else:
        frames = CalibrationFrames(data, manifest.geometry, count, opened)
        calibrations = calibrate_graphs(
            bases,
            frames,
            state=manifest.state,
            method=method or METHOD,
            checkpoint_sha256=manifest.training.get("checkpoint_sha256", ""),
        )
        heads = heads or "float"
    calibrations = {
        name: dataclasses.replace(each, heads=heads or each.heads)
        for name, each in calibrations.items()
    }
    calibration = next(iter(calibrations.values()))
    number = calibration.num_images
    report(f"ranges by {calibration.method} on {number} frame(s) of {calibration.data}")
    if number < FEW_IMAGES:
        report(
            f"warning: {number} frame(s) show little of what is to come, and what they do not "
            f"show is cut off. Give {FEW_IMAGES} or more; 100 are usual."
        )
    return calibrations


def float_graphs(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    """The float32 graphs that a bundle's precisions were made of, as the trace gave them.

    Raises:
        BundleError: the bundle is a single file, or has no fp32.
    """
    if bundle.is_single_file:
        raise BundleError(
            f"{bundle.name} is a file alone; int8 is added to a bundle. Give the bundle's folder."
        )
    bases = {}
    for name in bundle.manifest.graphs:
        if not bundle.has_file(name, "fp32", "plugin"):
            raise BundleError(
                f"{bundle.folder} has no fp32 graph to make int8 of; it has "
                f"{', '.join(bundle.manifest.precisions)}. Export it with --precision fp32 int8."
            )
        base = onnx.load(bundle.file(name, "fp32", "plugin"))
        detach_functions(base)
        del base.metadata_props[:]
        bases[name] = base
    return bases


def float_graph(bundle: Bundle) -> onnx.ModelProto:
    """The float32 graph of a bundle of one graph, as of `float_graphs`.

    Raises:
        BundleError: the bundle has several graphs, too.
    """
    bases = float_graphs(bundle)
    if [*bases] != [GRAPH]:
        raise BundleError(
            f"{bundle.folder} has the graphs {', '.join(bases)}; {MIXED} is searched on one graph. "
            "Leave --ap-budget out: int8 works with several."
        )
    return bases[GRAPH]


def last_proof_data(path: Path) -> str:
    """The data that a bundle was last verified on; the street where it never was."""
    try:
        document = json.loads((path / VERIFY_NAME).read_text(encoding="utf-8"))
        return str(document["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return "street"


def _read_stored(path: Path, graphs: Collection[str]) -> dict[str, Calibration]:
    calibrations = read_calibrations(path)
    if not {*graphs} <= calibrations.keys():
        raise BundleError(
            f"{path} has the graphs {', '.join(calibrations)}, expected {', '.join(graphs)}. "
            "Calibrate anew."
        )
    return {name: calibrations[name] for name in graphs}


def expect_same(path: Path, manifest: Manifest) -> None:
    """Raise BundleError where the bundle is another one by now."""
    if Bundle.open(path, allow_unverified=True).manifest != manifest:
        raise BundleError(f"{path} was exported again meanwhile; nothing was changed. Start again.")


def write_added(
    manifest: Manifest,
    bases: Mapping[str, onnx.ModelProto],
    calibrations: Mapping[str, Calibration],
    path: Path,
    folder: Path,
    assignment: Assignment | None = None,
) -> Manifest:
    """Write what a bundle holds, and int8, and mixed where there is an assignment, to a folder.

    An assignment is of a bundle of one graph.
    """
    written = (ADDED, MIXED) if assignment is not None else (ADDED,)
    if assignment is None:
        manifest = _without_mixed(manifest)  # its ranges were others
    grown = dataclasses.replace(
        manifest,
        graphs={name: _grow(name, graph, written) for name, graph in manifest.graphs.items()},
        precisions=tuple(dict.fromkeys((*manifest.precisions, *written))),
        calibration=summarise(calibrations),
    )
    rewritten = {MANIFEST_NAME, VERIFY_NAME, CALIBRATION_NAME, ASSIGNMENT_NAME, PLOT_NAME}
    for name in bases:
        rewritten |= _all_names(name, (ADDED, MIXED))
    shutil.copytree(
        path,
        folder,
        copy_function=_link_or_copy,
        ignore=shutil.ignore_patterns(*rewritten),
        dirs_exist_ok=True,
    )
    for_cpus: dict[str, Conversion] = {MIXED: assignment.to_int8} if assignment else {}
    complete = {}
    for name, base in bases.items():
        ranges, is_int8 = calibrations[name].ranges, calibrations[name].heads == "int8"
        conversions: dict[str, Conversion] = {
            ADDED: functools.partial(to_int8, ranges=ranges, quantise_heads=is_int8)
        }
        if assignment is not None:
            conversions[MIXED] = assignment.to_mixed
        complete[name] = write_files(base, name, grown, folder, conversions, for_cpus)
    grown = dataclasses.replace(grown, graphs=complete)
    write_text(folder / MANIFEST_NAME, grown.to_json())
    write_calibrations(folder / CALIBRATION_NAME, calibrations)
    if assignment is not None:
        write_assignments(folder / ASSIGNMENT_NAME, {GRAPH: assignment})
    _keep_proof(path / VERIFY_NAME, folder / VERIFY_NAME, {ADDED, MIXED})
    return grown


def _grow(name: str, old: Graph, written: Collection[str]) -> Graph:
    """A graph's entry with the files of more precisions; what is replaced loses its hash."""
    new = name_files(name, [*written])
    replaced = _all_names(name, written)
    return Graph(
        files=old.files | new.files,
        plugin_files=old.plugin_files | new.plugin_files,
        cpu_files=old.cpu_files | new.cpu_files,
        sha256={name: value for name, value in old.sha256.items() if name not in replaced},
    )


def _all_names(name: str, precisions: Collection[str]) -> set[str]:
    """The files of some precisions of a graph, external weights among them."""
    weights = {f"{name}.{each}.weights" for each in precisions}
    return {*_names(name_files(name, [*precisions]), precisions)} | weights


def _without_mixed(manifest: Manifest) -> Manifest:
    """A manifest that holds no mixed graphs: they go when int8 is made anew without a search."""
    if MIXED not in manifest.precisions:
        return manifest
    graph = manifest.graphs[GRAPH]
    gone = {*_names(graph, [MIXED]), f"{GRAPH}.{MIXED}.weights"}

    def but_mixed(files: dict[str, str]) -> dict[str, str]:
        return {key: name for key, name in files.items() if key != MIXED}

    graph = Graph(
        files=but_mixed(graph.files),
        plugin_files=but_mixed(graph.plugin_files),
        cpu_files=but_mixed(graph.cpu_files),
        sha256={name: value for name, value in graph.sha256.items() if name not in gone},
    )
    precisions = tuple(each for each in manifest.precisions if each != MIXED)
    return dataclasses.replace(manifest, graphs={GRAPH: graph}, precisions=precisions)


def _keep_proof(old: Path, new: Path, written: Collection[str]) -> None:
    """What was proven of other precisions still holds; what was of the old ones does not."""
    if not old.is_file():
        return
    document = json.loads(old.read_text(encoding="utf-8"))
    kept = [row for row in document["artifacts"] if row["precision"] not in written]
    document.pop("search", None)  # of a mixed that is written anew, or gone
    write_json(new, document | {"artifacts": kept})


def _names(graph: Graph, precisions: Iterable[str]) -> list[str]:
    kinds = (graph.files, graph.plugin_files, graph.cpu_files)
    return [files[each] for each in precisions for files in kinds if each in files]


def _link_or_copy(source: str, target: str) -> None:
    """A second name for the same bytes where the file system has such; they are not written to."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
