"""What PyTorch says of a set of frames, and how a session is held against it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundling import torch_results
from export.proof.frames import proof_samples
from export.proof.matching import Comparison, compare_detections
from runtime.contract.errors import BundleError
from runtime.contract.manifest import Manifest
from runtime.preprocess import Letterbox
from runtime.sessions.base import Session
from runtime.tasks import load_task as runtime_task
from training.data.sample import Sample
from training.loop.checkpoint import file_sha256, load_release
from training.metrics.detection import GroundTruth, score_boxes
from training.models.base import Model
from training.tasks import task_module as training_task

SCORE_FLOOR = 0.001  # results below it do not enter AP


@dataclass(slots=True)
class Reference:
    """Frames, PyTorch's answers, and the checkpoint's AP on them.

    Attributes:
        manifest: of the bundle under proof.
        samples: labelled frames of any size.
        frames: (N, H, W, 3) uint8, letterboxed by the runtime's own definition.
        feeds, results: of the graph, at the default thresholds.
        ap: of the checkpoint by training's own path; None where the data has other classes.
    """

    manifest: Manifest
    samples: list[Sample]
    frames: NDArray[np.uint8]
    feeds: dict[str, NDArray[Any]]
    results: dict[str, NDArray[Any]]
    ap: float | None

    @classmethod
    def make(cls, checkpoint: Path, manifest: Manifest, data: str, count: int) -> Reference:
        """Run the checkpoint on `count` frames.

        Raises:
            BundleError: the bundle was exported from another checkpoint.
        """
        expected = manifest.training.get("checkpoint_sha256")
        found = file_sha256(checkpoint)
        if expected != found:
            raise BundleError(
                f"the bundle was exported from a checkpoint with sha256 {expected}; {checkpoint} "
                f"has {found}. Give the checkpoint it came from, or export again."
            )
        model, _ = load_release(checkpoint, manifest.model)
        size_hw = (manifest.geometry.height, manifest.geometry.width)
        model.spec = dataclasses.replace(model.spec, size_hw=size_hw)
        samples = list(proof_samples(data, count))
        boxes = [Letterbox.fit(s.image.shape[:2], manifest.geometry) for s in samples]
        frames = np.stack([box.apply(s.image) for box, s in zip(boxes, samples, strict=True)])
        thresholds = runtime_task(manifest.task).thresholds(manifest, len(frames))
        feeds = {"image": frames, **thresholds}
        return cls(
            manifest,
            samples,
            frames,
            feeds,
            torch_results(model, feeds),
            _checkpoint_ap(model, samples, manifest, data),
        )

    def compare(self, session: Session) -> Comparison:
        """Hold a session's detections against PyTorch's, frame by frame."""
        comparison = Comparison()
        for index in range(len(self.frames)):
            feeds = {name: value[index : index + 1] for name, value in self.feeds.items()}
            ours = {name: value[index : index + 1] for name, value in self.results.items()}
            compare_detections(ours, session.run(feeds), feeds, comparison, index)
        return comparison

    def score(self, session: Session) -> float | None:
        """A session's AP through the runtime's own path, in source pixels."""
        if self.ap is None:
            return None
        manifest = self.manifest
        task = runtime_task(manifest.task)
        truth = GroundTruth(manifest.classes, manifest.category_ids)
        limits = task.thresholds(manifest, 1, SCORE_FLOOR)
        found: list[dict[str, Any]] = []
        for sample, frame in zip(self.samples, self.frames, strict=True):
            outputs = session.run({"image": frame[None], **limits})
            letterbox = Letterbox.fit(sample.image.shape[:2], manifest.geometry)
            detections = task.finish(outputs, [letterbox], manifest)[0]
            found.extend(detections.to_coco(sample.image_id, manifest.category_ids))
            truth.add(sample)
        return score_boxes(truth.as_coco(), found)["AP"]


def _checkpoint_ap(
    model: Model, samples: list[Sample], manifest: Manifest, data: str
) -> float | None:
    from training.data import open_data

    if tuple(open_data(data, "val").classes) != tuple(manifest.classes):
        return None
    evaluate = training_task(manifest.task).evaluate
    ap = float(evaluate(model, samples, manifest.category_ids)["AP"])
    return ap if np.isfinite(ap) else None  # frames without objects have no AP
