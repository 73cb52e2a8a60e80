"""Adding int8 to a bundle that stands: what is not int8 stays as it is, byte for byte."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import onnx

from export.placing import replacing_folder
from export.precision.int8.calibration import (
    CALIBRATION_NAME,
    METHOD,
    Calibration,
    calibrate,
    read_calibrations,
    write_calibrations,
)
from export.precision.int8.images import CalibrationFrames
from export.precision.int8.rewriting import to_int8
from export.precision.mixed import ASSIGNMENT_NAME, Assignment, write_assignments
from export.precision.writing import Conversion, name_files, write_files
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
    """Calibrate a bundle's float32 graph and write it as int8 beside what is there.

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
        BundleError: no bundle of one graph with fp32. KestrelError: of the calibration.
    """
    bundle = Bundle.open(path, allow_unverified=True)
    base = float_graph(bundle)
    manifest = bundle.manifest
    calibration = find_calibration(
        manifest,
        base,
        data=data,
        count=count,
        method=method,
        stored=stored,
        heads=heads,
        report=report,
    )
    with replacing_folder(path, report) as folder:
        expect_same(path, manifest)
        added = write_added(manifest, base, calibration, path, folder)
    if MIXED in manifest.precisions:
        report(f"{MIXED} is gone: its ranges were others. Search again with --ap-budget.")
    report(f"{ADDED} added to {path}: {', '.join(_names(added.graphs[GRAPH], [ADDED]))}")
    return added


def find_calibration(
    manifest: Manifest,
    base: onnx.ModelProto,
    *,
    data: str,
    count: int,
    method: str | None,
    stored: Path | None,
    heads: str | None,
    report: Callable[[str], None],
) -> Calibration:
    """Calibrate a float32 graph, or take a stored calibration; arguments as of `add_int8`."""
    if stored is not None:
        calibration = _read_stored(stored)
        frames = (
            CalibrationFrames(data, manifest.geometry, calibration.num_images) if data else None
        )
        images_sha256 = frames.hash() if frames is not None else ""
        calibration.refuse_other(base, method=method or "", images_sha256=images_sha256)
    else:
        frames = CalibrationFrames(data, manifest.geometry, count)
        sha256 = manifest.training.get("checkpoint_sha256", "")
        calibration = calibrate(base, frames, method=method or METHOD, checkpoint_sha256=sha256)
        heads = heads or "float"
    calibration = dataclasses.replace(calibration, heads=heads or calibration.heads)
    number = calibration.num_images
    report(f"ranges by {calibration.method} on {number} frame(s) of {calibration.data}")
    if number < FEW_IMAGES:
        report(
            f"warning: {number} frame(s) show little of what is to come, and what they do not "
            f"show is cut off. Give {FEW_IMAGES} or more; 100 are usual."
        )
    return calibration


def float_graph(bundle: Bundle) -> onnx.ModelProto:
    """The float32 graph that a bundle's precisions were made of, as the trace gave it.

    Raises:
        BundleError: the bundle is a single file, has several graphs, or no fp32.
    """
    graphs = list(bundle.manifest.graphs)
    if bundle.is_single_file or graphs != [GRAPH]:
        raise BundleError(
            f"{bundle.folder} has the graphs {', '.join(graphs)}; int8 is added to the folder of "
            "a bundle with one graph. Give such a folder."
        )
    if not bundle.has_file(GRAPH, "fp32", "plugin"):
        raise BundleError(
            f"{bundle.folder} has no fp32 graph to make int8 of; it has "
            f"{', '.join(bundle.manifest.precisions)}. Export it with --precision fp32 int8."
        )
    base = onnx.load(bundle.file(GRAPH, "fp32", "plugin"))
    del base.functions[:]
    del base.metadata_props[:]
    return base


def last_proof_data(path: Path) -> str:
    """The data that a bundle was last verified on; the street where it never was."""
    try:
        document = json.loads((path / VERIFY_NAME).read_text(encoding="utf-8"))
        return str(document["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return "street"


def _read_stored(path: Path) -> Calibration:
    calibrations = read_calibrations(path)
    if GRAPH not in calibrations:
        raise BundleError(
            f"{path} has the graphs {', '.join(calibrations)}, expected {GRAPH!r}. Calibrate anew."
        )
    return calibrations[GRAPH]


def expect_same(path: Path, manifest: Manifest) -> None:
    """Raise BundleError where the bundle is another one by now."""
    if Bundle.open(path, allow_unverified=True).manifest != manifest:
        raise BundleError(f"{path} was exported again meanwhile; nothing was changed. Start again.")


def write_added(
    manifest: Manifest,
    base: onnx.ModelProto,
    calibration: Calibration,
    path: Path,
    folder: Path,
    assignment: Assignment | None = None,
) -> Manifest:
    """Write what a bundle holds, and int8, and mixed where there is an assignment, to a folder."""
    is_int8 = calibration.heads == "int8"
    conversions: dict[str, Conversion] = {
        ADDED: functools.partial(to_int8, ranges=calibration.ranges, quantise_heads=is_int8)
    }
    for_cpus: dict[str, Conversion] = {}
    if assignment is not None:
        conversions[MIXED], for_cpus[MIXED] = assignment.to_mixed, assignment.to_int8
    if assignment is None:
        manifest = _without_mixed(manifest)  # its ranges were others
    old = manifest.graphs[GRAPH]
    new = name_files(GRAPH, list(conversions))
    replaced = {*_names(new, conversions), *(f"{GRAPH}.{each}.weights" for each in conversions)}
    graph = Graph(
        files=old.files | new.files,
        plugin_files=old.plugin_files | new.plugin_files,
        cpu_files=old.cpu_files | new.cpu_files,
        sha256={name: value for name, value in old.sha256.items() if name not in replaced},
    )
    grown = dataclasses.replace(
        manifest,
        graphs={GRAPH: graph},
        precisions=tuple(dict.fromkeys((*manifest.precisions, *conversions))),
        calibration=calibration.summary(),
    )
    rewritten = {MANIFEST_NAME, VERIFY_NAME, CALIBRATION_NAME, ASSIGNMENT_NAME, *replaced}
    rewritten.add(PLOT_NAME)
    rewritten |= {*_names(name_files(GRAPH, [MIXED]), [MIXED]), f"{GRAPH}.{MIXED}.weights"}
    shutil.copytree(
        path,
        folder,
        copy_function=_link_or_copy,
        ignore=shutil.ignore_patterns(*rewritten),
        dirs_exist_ok=True,
    )
    complete = write_files(base, GRAPH, grown, folder, conversions, for_cpus)
    grown = dataclasses.replace(grown, graphs={GRAPH: complete})
    write_text(folder / MANIFEST_NAME, grown.to_json())
    write_calibrations(folder / CALIBRATION_NAME, {GRAPH: calibration})
    if assignment is not None:
        write_assignments(folder / ASSIGNMENT_NAME, {GRAPH: assignment})
    _keep_proof(path / VERIFY_NAME, folder / VERIFY_NAME, {*conversions, MIXED})
    return grown


def _without_mixed(manifest: Manifest) -> Manifest:
    """A manifest that holds no mixed graphs: they go when int8 is made anew without a search."""
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
