"""The files for TensorRT's plugin, run where that can be done without a GPU.

Its two operators of ours have their bodies attached as local functions, which ONNX Runtime runs;
OpenVINO refuses functions of a domain of ours. So the very file that TensorRT gets computes here,
only that TensorRT puts kernels in the place of the bodies.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from numpy.typing import NDArray

from runtime.contract.bundle import Bundle, Kind
from runtime.contract.errors import SessionError
from runtime.contract.limits import judge, limits_of
from runtime.contract.manifest import Graph
from runtime.contract.matching import Comparison, Rows, compare_detections
from runtime.contract.outputs import NONKEY
from runtime.sessions import open_session
from runtime.sessions.base import Session


def compare_plugin(bundle: Bundle, precision: str, feeds: dict[str, NDArray[Any]]) -> list[str]:
    """Hold the plugin files' results against the portable files'.

    Args:
        bundle: of one graph, or of a model for video.
        precision: one of the manifest's.
        feeds: of the first graph, a few frames; in a model for video each is a key frame, and the
            frame before it in the list leans on it.

    Returns:
        Reasons, in words; empty where both kinds of file find the same.
    """
    first = next(iter(bundle.manifest.graphs))
    if not bundle.has_file(first, precision, "plugin"):
        return []
    answers = []
    for kind in ("portable", "plugin"):
        try:
            alone = _only(bundle, precision, kind)  # type: ignore[arg-type]
            session = open_session(alone, "onnxruntime", precision, device="cpu")
        except SessionError as error:
            return [str(error)]
        with contextlib.closing(session):
            answers.append(_run_all(session, bundle, feeds))
    comparison = Comparison()
    for index, (ours, theirs) in enumerate(zip(*answers, strict=True)):
        frame = _row(feeds, index % len(feeds["image"]))
        compare_detections(ours, theirs, frame, comparison, index)
    limits = limits_of(precision)
    faults = judge(comparison.summary(limits.near), limits)
    name = bundle.file(first, precision, "plugin").name
    return [f"{name} differs from the portable file: {fault}" for fault in faults]


def _only(bundle: Bundle, precision: str, kind: Kind) -> Bundle:
    """The bundle as if its files of one kind were all that it has."""
    graphs = {
        name: Graph(files={precision: bundle.file(name, precision, kind).name}, sha256=each.sha256)
        for name, each in bundle.manifest.graphs.items()
    }
    manifest = dataclasses.replace(bundle.manifest, graphs=graphs, precisions=(precision,))
    return Bundle(bundle.folder, manifest, allow_unverified=True)


def _run_all(session: Session, bundle: Bundle, feeds: Rows) -> list[Rows]:
    """Every frame by the first graph; then, of a model for video, every frame by the other."""
    first = next(iter(bundle.manifest.graphs))
    count = len(feeds["image"])
    rows = [session.run(_row(feeds, index), first) for index in range(count)]
    if not bundle.manifest.state:
        return rows
    for index in range(count):
        session.run(_row(feeds, (index + 1) % count), first)
        rows.append(session.run(_row(feeds, index), NONKEY))
    return rows


def _row(arrays: dict[str, NDArray[Any]], index: int) -> dict[str, NDArray[Any]]:
    return {name: value[index : index + 1] for name, value in arrays.items()}
