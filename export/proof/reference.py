"""What PyTorch says of a set of frames, and how a session is held against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export import bundling
from export.bundling import torch_results, with_fitting_candidates
from export.graph.operators import attach_functions
from export.precision.writing import convert_again
from export.proof.clip_reference import ClipReference
from export.proof.diagnosis import find_changes
from export.proof.frames import (
    SCORE_FLOOR,
    has_labels_of,
    open_labelled,
    proof_samples,
    scoring_thresholds,
)
from export.proof.probes import (
    probe_batches,
    probe_letterbox,
    probe_manifest,
    probe_sample_shapes,
    probe_samples,
    probe_thresholds,
)
from export.proof.sheet import write_sheet
from export.tasks import task_module as export_task
from runtime.contract.bundle import Bundle
from runtime.contract.errors import BundleError, KestrelError
from runtime.contract.manifest import Manifest
from runtime.contract.matching import Comparison, Rows, compare_detections
from runtime.preprocess import Letterbox
from runtime.sessions.base import Session
from runtime.tasks import load_task as runtime_task
from training.data.sample import Sample
from training.loop.checkpoint import file_sha256, load_release
from training.metrics.detection import GroundTruth
from training.models.base import Model
from training.tasks import task_module as training_task

PROBED_FRAMES = 8
GATED = ("AP", "mask_AP", "OKS_AP")  # scores that an artifact must keep


def expect_checkpoint(manifest: Manifest, checkpoint: Path) -> None:
    """Raise BundleError where a bundle was exported from another checkpoint."""
    expected = manifest.training.get("checkpoint_sha256")
    found = file_sha256(checkpoint)
    if expected != found:
        raise BundleError(
            f"the bundle was exported from a checkpoint with sha256 {expected}; {checkpoint} "
            f"has {found}. Give the checkpoint it came from, or export again."
        )


@dataclass(slots=True)
class Reference:
    """Frames, PyTorch's answers, and the checkpoint's AP on them.

    Attributes:
        model: the checkpoint's, at the bundle's size.
        manifest: of the bundle under proof.
        samples: labelled frames of any size.
        frames: (N, H, W, 3) uint8, letterboxed by the runtime's own definition.
        feeds, results: of the graph, at the default thresholds, or at `floor`.
        scores: of the checkpoint by training's own path, a number 0..1 for each of GATED that the
            task has; empty where the data has other classes.
        faults: of the manifest and the samples, which every artifact of the bundle shares.
        floor: score threshold of feeds and results where PyTorch finds nothing at the default
            thresholds; else None.
        bases: the model's graphs as a fresh export traces them, once they were asked for.
        clips: of a model for video; frames, results and scores are then those of key frames.
    """

    model: Model
    manifest: Manifest
    samples: list[Sample]
    frames: NDArray[np.uint8]
    feeds: dict[str, NDArray[Any]]
    results: dict[str, NDArray[Any]]
    scores: dict[str, float]
    faults: list[str]
    floor: float | None = None
    bases: dict[str, onnx.ModelProto] = dataclasses.field(default_factory=dict)
    clips: ClipReference | None = None

    @classmethod
    def make(cls, checkpoint: Path, manifest: Manifest, data: str, count: int | None) -> Reference:
        """Run the checkpoint on `count` frames, or on all of the split.

        Raises:
            BundleError: the bundle was exported from another checkpoint.
        """
        expect_checkpoint(manifest, checkpoint)
        model, _ = load_release(checkpoint, manifest.model)
        size_hw = (manifest.geometry.height, manifest.geometry.width)
        model.spec = dataclasses.replace(model.spec, size_hw=size_hw)
        model.spec = with_fitting_candidates(model)
        faults = probe_manifest(manifest, model.spec)
        source = open_labelled(manifest, data, "val")  # once: it tells what is wrong with it
        samples = list(proof_samples(source, count))
        boxes = [Letterbox.fit(s.image.shape[:2], manifest.geometry) for s in samples]
        frames = np.stack([box.apply(s.image) for box, s in zip(boxes, samples, strict=True)])
        thresholds = runtime_task(manifest.task).thresholds(manifest, len(frames))
        feeds = {"image": frames, **thresholds}
        results = torch_results(model, feeds)
        floor = SCORE_FLOOR if _finds_nothing(results) else None
        if floor is not None:
            feeds |= runtime_task(manifest.task).thresholds(manifest, len(frames), floor)
            results = torch_results(model, feeds)
        has_its_classes = has_labels_of(source, manifest)
        clips = None
        if manifest.state:
            clips = ClipReference.make(
                model,
                manifest,
                data,
                floor=floor,
                score_floor=SCORE_FLOOR,
                gated=GATED if has_its_classes else (),
            )
        return cls(
            model,
            manifest,
            samples,
            frames,
            feeds,
            results,
            _checkpoint_scores(model, samples, manifest) if has_its_classes else {},
            faults + probe_letterbox(manifest, model.spec, samples[:PROBED_FRAMES]),
            floor,
            clips=clips,
        )

    @property
    def all_scores(self) -> dict[str, float]:
        """The checkpoint's scores on frames, and on clips where there are any."""
        return self.scores | (self.clips.scores if self.clips else {})

    @property
    def finds_nothing(self) -> bool:
        """Whether PyTorch finds nothing on any frame, also at the score floor."""
        return _finds_nothing(self.results)

    def few(self) -> Rows:
        """The feeds of the first frames, for probes."""
        return {name: value[:PROBED_FRAMES] for name, value in self.feeds.items()}

    def run(self, session: Session) -> list[Rows]:
        """A session's outputs on the frames, one batch of 1 each."""
        return [session.run(_row(self.feeds, index)) for index in range(len(self.frames))]

    def compare(self, outputs: Sequence[Rows]) -> Comparison:
        """Hold the outputs of `run` against PyTorch's, frame by frame."""
        comparison = Comparison(sigmas=self.manifest.sigmas)
        for index, found in enumerate(outputs):
            ours, feeds = _row(self.results, index), _row(self.feeds, index)
            compare_detections(ours, found, feeds, comparison, index)
        return comparison

    def probe(self, session: Session) -> list[str]:
        """Faults that parity at the default thresholds, one frame at a time, cannot see."""
        limits = {name: value for name, value in self.feeds.items() if name != "image"}
        return [
            *probe_thresholds(session, self.manifest, self.frames[:PROBED_FRAMES], limits),
            *probe_batches(session, self.manifest, self.few()),
        ]

    def check_samples(self, bundle: Bundle) -> list[str]:
        """Whether samples.npz, which engines are held against, holds PyTorch's results."""
        if self.clips:
            return self.clips.check_samples(bundle)
        samples = bundle.samples()
        if samples is None:
            return []
        faults = probe_sample_shapes(self.manifest, samples)
        return faults or probe_samples(samples, torch_results(self.model, samples.feeds))

    def explain(self, bundle: Bundle, precision: str) -> list[str]:
        """Where a failing artifact's graph differs from a fresh export of the checkpoint."""
        self.bases = self.bases or bundling.trace_bases(self.model)
        changes = []
        for graph, base in self.bases.items():
            try:
                typed = convert_again(base, graph, precision, bundle.folder, self.manifest.state)
            except KestrelError as error:
                return [f"{precision} cannot be held against a fresh export: {error}"]
            fresh = attach_functions(typed, early_exit=True, inline=True)
            path = bundle.file(graph, precision)
            found = find_changes(onnx.load(path), fresh)
            changes += [f"{path.name}: {change}" for change in found]
        return changes

    def draw(self, path: Path, outputs: Sequence[Rows]) -> list[int]:
        """Write the worst frames as a picture; see `export.proof.sheet.write_sheet`."""
        indices = range(len(self.frames))
        ours = [_row(self.results, index) for index in indices]
        feeds = [_row(self.feeds, index) for index in indices]
        return write_sheet(path, self.frames, ours, outputs, feeds, self.manifest.classes)

    def score(self, session: Session) -> dict[str, float]:
        """A session's `scores` through the runtime's own path, in source pixels."""
        if not self.scores:
            return {}
        manifest = self.manifest
        task = runtime_task(manifest.task)
        truth = GroundTruth(manifest.classes, manifest.category_ids, manifest.sigmas)
        limits = scoring_thresholds(manifest, 1)
        found: list[dict[str, Any]] = []
        for sample, frame in zip(self.samples, self.frames, strict=True):
            outputs = session.run({"image": frame[None], **limits})
            letterbox = Letterbox.fit(sample.image.shape[:2], manifest.geometry)
            detections = task.finish(outputs, [letterbox], manifest)[0]
            found.extend(detections.to_coco(sample.image_id, manifest.category_ids))
            truth.add(sample)
        scores = export_task(manifest.task).score(truth.as_coco(), found)
        return {name: scores[name] for name in self.scores}


def _row(arrays: Rows, index: int) -> Rows:
    return {name: value[index : index + 1] for name, value in arrays.items()}


def _finds_nothing(results: Rows) -> bool:
    """Of tasks that find objects; a task that labels every pixel always finds something."""
    return "num_detections" in results and not results["num_detections"].any()


def _checkpoint_scores(model: Model, samples: list[Sample], manifest: Manifest) -> dict[str, float]:
    scores = training_task(manifest.task).evaluate(model, samples, manifest.category_ids)
    gated = {name: float(scores[name]) for name in GATED if name in scores}
    # Frames without objects have no AP.
    return {name: value for name, value in gated.items() if np.isfinite(value)}
