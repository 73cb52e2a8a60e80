"""Scores of a graph on labelled frames, as they will be on a CPU.

OpenVINO runs the file for CPUs where that is exact; where it is missing, or 8-bit sums would
overflow (`runtime/sessions/cpu_flags.py`), ONNX Runtime runs the same file as it is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from export.graph.operators import attach_functions
from export.graph.storage import set_metadata
from export.precision.int8.for_cpu import to_cpu
from export.proof.frames import (
    has_labels_of,
    open_labelled,
    proof_samples,
    scoring_thresholds,
)
from export.tasks import task_module as export_task
from runtime.contract.bundle import PRECISION_KEY, Bundle
from runtime.contract.errors import KestrelError
from runtime.contract.manifest import METADATA_KEY, Graph, Manifest
from runtime.preprocess import Letterbox
from runtime.sessions import BACKENDS, why_absent
from runtime.sessions.cpu_flags import is_int8_exact
from runtime.sessions.openvino_session import open_session as open_openvino
from runtime.tasks import load_task as runtime_task
from training.metrics.detection import GroundTruth

SCORES = ("AP", "mask_AP", "OKS_AP")  # that the budget holds for, as far as a task has them
AS_WRITTEN = "onnxruntime, as written"

Rows = dict[str, NDArray[Any]]


class Runs(Protocol):
    """What scores are taken of: a session, or ONNX Runtime as of AsWritten."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Rows: ...


class AsWritten:
    """ONNX Runtime without fusing Q/DQ pairs into integer kernels: the same on every CPU."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._wanted = [each.name for each in self._session.get_inputs()]
        self.names = [each.name for each in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Rows:
        values = self._session.run(None, {name: feeds[name] for name in self._wanted})
        return dict(zip(self.names, values, strict=True))


class LabelledFrames:
    """Frames of one split at network size, and what is on them.

    Attributes:
        data, split: where they come from.
        frames: (H, W, 3) uint8 BGR each, letterboxed as the runtime does it.
        sha256: of frames and labels.
    """

    def __init__(self, data: str, split: str, manifest: Manifest, count: int) -> None:
        """Read the first `count` frames of a split.

        Raises:
            DataError: no labelled data. KestrelError: its classes are not the bundle's, or there
                is no object.
        """
        source = open_labelled(manifest, data, split)
        if not has_labels_of(source, manifest):
            raise KestrelError(
                f"{data} has the classes {', '.join(source.classes)}; the bundle has "
                f"{', '.join(manifest.classes)}. Give labelled data of the bundle's classes."
            )
        self.data, self.split = data, split
        self.frames: list[NDArray[np.uint8]] = []
        self._letterboxes: list[Letterbox] = []
        self._image_ids: list[int] = []
        truth = GroundTruth(manifest.classes, manifest.category_ids, manifest.sigmas)
        digest = hashlib.sha256()
        num_objects = 0
        for sample in proof_samples(source, count):
            letterbox = Letterbox.fit(sample.image.shape[:2], manifest.geometry)
            frame = letterbox.apply(sample.image)
            truth.add(sample)
            for array in (frame, sample.boxes_xyxy, sample.classes):
                digest.update(np.ascontiguousarray(array).data)
            self.frames.append(frame)
            self._letterboxes.append(letterbox)
            self._image_ids.append(sample.image_id)
            num_objects += len(sample)
        if not num_objects:
            raise KestrelError(
                f"no object on {len(self.frames)} frames of {data}, split {split}: there is no AP. "
                "Give labelled frames with objects."
            )
        self._truth = truth.as_coco()
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.frames)

    def score(
        self, session: Runs, manifest: Manifest, report: Callable[[], None]
    ) -> dict[str, float]:
        """Scores (0..1) of a session by the runtime's own path, in source pixels.

        Args:
            session: of the bundle that `manifest` is of.
            report: called after each frame.
        """
        task = runtime_task(manifest.task)
        limits = scoring_thresholds(manifest, 1)
        found: list[dict[str, Any]] = []
        for frame, letterbox, image_id in zip(
            self.frames, self._letterboxes, self._image_ids, strict=True
        ):
            outputs = session.run({"image": frame[None], **limits})
            detections = task.finish(outputs, [letterbox], manifest)[0]
            found.extend(detections.to_coco(image_id, manifest.category_ids))
            report()
        scores = export_task(manifest.task).score(self._truth, found)
        kept = {name: float(scores[name]) for name in SCORES if name in scores}
        return {name: value for name, value in kept.items() if np.isfinite(value)}


def scoring_backend() -> str:
    """What `opened` runs graphs on, with its version."""
    entry = next(each for each in BACKENDS if each.name == "openvino" and not each.needs_gpu)
    if why_absent(entry) or not is_int8_exact():
        return f"{AS_WRITTEN} {onnxruntime.__version__}"
    import openvino

    return f"openvino {openvino.__version__.split('-')[0]}"


@contextlib.contextmanager
def opened(typed: onnx.ModelProto, manifest: Manifest) -> Iterator[Runs]:
    """Open a Q/DQ graph, or a float32 one, as the file for CPUs is opened.

    Args:
        typed: as of `to_int8`.
        manifest: of the bundle that it is a candidate for.
    """
    model = attach_functions(to_cpu(typed), early_exit=True, inline=True)
    if scoring_backend().startswith(AS_WRITTEN):
        yield AsWritten(model)
        return
    name = "candidate.onnx"
    alone = dataclasses.replace(
        manifest, graphs={"model": Graph(files={"mixed": name})}, precisions=("mixed",)
    )
    set_metadata(model, {METADATA_KEY: alone.to_json(is_complete=False), PRECISION_KEY: "mixed"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(model.SerializeToString())
        session = open_openvino(Bundle.open(path), "mixed", cache=False)
        with contextlib.closing(session):
            yield session
