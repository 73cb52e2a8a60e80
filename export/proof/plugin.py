"""The file for TensorRT's plugin, run where that can be done without a GPU.

Its two operators of ours have their bodies attached as local functions, which ONNX Runtime runs;
OpenVINO refuses functions of a domain of ours. So the very file that TensorRT gets computes here,
only that TensorRT puts kernels in the place of the bodies.
"""

from __future__ import annotations

import contextlib
from typing import Any

from numpy.typing import NDArray

from runtime.contract.bundle import Bundle
from runtime.contract.errors import SessionError
from runtime.contract.limits import judge, limits_of
from runtime.contract.matching import Comparison, compare_detections
from runtime.sessions import open_session


def compare_plugin(bundle: Bundle, precision: str, feeds: dict[str, NDArray[Any]]) -> list[str]:
    """Hold the plugin file's results against the portable file's.

    Args:
        bundle: with a graph "model"; others are not one file, and are left out.
        precision: one of the manifest's.
        feeds: of the graph, a few frames.

    Returns:
        Reasons, in words; empty where both files find the same.
    """
    if not bundle.has_file("model", precision, "plugin"):
        return []
    path = bundle.file("model", precision, "plugin")
    answers = []
    for each in (bundle.file("model", precision), path):
        alone = Bundle.open(each, allow_unverified=True)
        try:
            session = open_session(alone, "onnxruntime", precision, device="cpu")
        except SessionError as error:
            return [str(error)]
        with contextlib.closing(session):
            answers.append([session.run(_row(feeds, i)) for i in range(len(feeds["image"]))])
    comparison = Comparison()
    for index, (ours, theirs) in enumerate(zip(*answers, strict=True)):
        compare_detections(ours, theirs, _row(feeds, index), comparison, index)
    limits = limits_of(precision)
    faults = judge(comparison.summary(limits.near), limits)
    return [f"{path.name} differs from the portable file: {fault}" for fault in faults]


def _row(arrays: dict[str, NDArray[Any]], index: int) -> dict[str, NDArray[Any]]:
    return {name: value[index : index + 1] for name, value in arrays.items()}
