"""What PyTorch says of clips, and how the streams of a session are held against it.

Three streams run at once, a frame of each in turn, each with a key frame of its own every INTERVAL
frames: state that a session mixes up, loses or renews at the wrong time shows.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.precision.int8.leaning import look_back
from export.proof.clips import TorchStream, clip_results, interval_graphs, labelled_clips
from export.proof.probes import (
    probe_batches,
    probe_sample_shapes,
    probe_samples,
    probe_thresholds,
)
from export.proof.sheet import write_sheet
from export.tasks import task_module as export_task
from runtime.contract.bundle import Bundle
from runtime.contract.limits import judge, limits_of
from runtime.contract.manifest import Manifest
from runtime.contract.matching import Comparison, Rows, compare_detections
from runtime.contract.outputs import KEY, NONKEY
from runtime.preprocess import Letterbox
from runtime.sessions.base import Session
from runtime.tasks import load_task as runtime_task
from training.data.sample import Sample
from training.metrics.detection import GroundTruth
from training.models.base import Model
from training.tasks import task_module as training_task

NUM_CLIPS, CLIP_LENGTH, INTERVAL = 6, 10, 5
NUM_STREAMS = 3
PREFIX = "clip_"  # of the scores over clips
PROBED_FRAMES = 8

Clips = list[list[Rows]]


class OneGraph:
    """A session of which one graph alone is seen, as that of a model for images is."""

    def __init__(self, session: Session, graph: str) -> None:
        self._session, self._graph = session, graph

    def run(self, feeds: Rows, graph: str = "") -> Rows:
        """Run the one graph."""
        return self._session.run(feeds, self._graph)


class AfterKey:
    """A session each of whose frames follows a key frame: itself, as it was a frame earlier."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, feeds: Rows, graph: str = "") -> Rows:
        """Run the key frame, then the frame."""
        earlier = np.stack([look_back(frame, 0) for frame in feeds["image"]])
        self._session.run({**feeds, "image": earlier}, KEY)
        return self._session.run(feeds, NONKEY)


@dataclasses.dataclass
class ClipReference:
    """PyTorch's answers to labelled clips, and scores of the checkpoint on them.

    Attributes:
        model: float32, in eval mode. manifest: of the bundle under proof.
        clips: labelled frames of any size, clip by clip.
        frames: (L, H, W, 3) uint8 of each clip, letterboxed by the runtime's own definition.
        limits: thresholds of one frame.
        results: of PyTorch, clip by clip, frame by frame.
        scores: of the checkpoint over all frames, 0..1, their names with PREFIX.
        gated: names of the scores that count, without PREFIX.
        score_floor: results below it do not enter AP.
    """

    model: Model
    manifest: Manifest
    clips: list[list[Sample]]
    frames: list[NDArray[np.uint8]]
    limits: Rows
    results: Clips
    scores: dict[str, float]
    gated: tuple[str, ...]
    score_floor: float

    @classmethod
    def make(
        cls,
        model: Model,
        manifest: Manifest,
        data: str,
        *,
        floor: float | None,
        score_floor: float,
        gated: tuple[str, ...],
    ) -> ClipReference:
        """Run the checkpoint on clips of the validation split.

        Args:
            data: as of `labelled_clips`.
            floor: of scores, where PyTorch finds nothing at the default thresholds.
            score_floor, gated: see the attributes; none are gated where the data has other classes.
        """
        labels = training_task(manifest.task).LABELS
        clips = labelled_clips(data, NUM_CLIPS, CLIP_LENGTH, labels)
        frames = [np.stack([_fit(each, manifest) for each in clip]) for clip in clips]
        limits = runtime_task(manifest.task).thresholds(manifest, 1, floor)
        made = cls(model, manifest, clips, frames, limits, [], {}, gated, score_floor)
        made.results = made._run_torch(limits)
        if gated:
            made.scores = made._score(made._run_torch(made._low_limits()))
        return made

    def _low_limits(self) -> Rows:
        return runtime_task(self.manifest.task).thresholds(self.manifest, 1, self.score_floor)

    def _run_torch(self, limits: Rows) -> Clips:
        answers = []
        for frames in self.frames:
            stream = TorchStream(self.model)
            graphs = interval_graphs(len(frames), INTERVAL)
            answers.append(
                [
                    stream.run({"image": frame[None], **limits}, graph)
                    for frame, graph in zip(frames, graphs, strict=True)
                ]
            )
        return answers

    def run(self, session: Session, limits: Rows | None = None) -> Clips:
        """A session's outputs, clip by clip; NUM_STREAMS of its streams take turns."""
        limits = self.limits if limits is None else limits
        answers: Clips = []
        for start in range(0, len(self.frames), NUM_STREAMS):
            together = self.frames[start : start + NUM_STREAMS]
            streams = [session.open_stream() for _ in together]
            found: Clips = [[] for _ in together]
            try:
                for place in range(max(map(len, together))):
                    graph = NONKEY if place % INTERVAL else KEY
                    tickets = {
                        turn: stream.submit({"image": frames[place][None], **limits}, graph)
                        for turn, (stream, frames) in enumerate(zip(streams, together, strict=True))
                        if place < len(frames)
                    }
                    for turn, ticket in tickets.items():
                        found[turn].append(ticket.result())
            finally:
                for stream in streams:
                    stream.close()
            answers += found
        return answers

    def examine(self, session: Session, sheet: Path) -> tuple[dict[str, Any], list[str]]:
        """Figures of a session's frames, and reasons to fail it.

        Args:
            sheet: beside it a picture of the worst frames is drawn, where there are reasons.
        """
        outputs = self.run(session)
        comparison = self.compare(outputs)
        limits = limits_of(session.precision)
        figures = comparison.summary(limits.near)
        reasons = [f"clips: {reason}" for reason in judge(figures, limits)] + self.probe(session)
        if reasons:
            self.draw(sheet.with_suffix(".clips.png"), outputs)
        return figures, reasons

    def compare(self, outputs: Clips) -> Comparison:
        """Hold the outputs of `run` against PyTorch's, frame by frame."""
        comparison = Comparison()
        pairs = zip(_flat(self.results), _flat(outputs), strict=True)
        for index, (ours, theirs) in enumerate(pairs):
            compare_detections(ours, theirs, self.limits, comparison, index)
        return comparison

    def probe(self, session: Session) -> list[str]:
        """Faults of frames between key frames that parity at the default thresholds cannot see."""
        frames = np.stack([each for frames in self.frames for each in frames[1::3]])[:PROBED_FRAMES]
        limits = {name: np.repeat(value, len(frames), 0) for name, value in self.limits.items()}
        after = AfterKey(session)
        faults = [
            *probe_thresholds(after, self.manifest, frames, limits),
            *probe_batches(after, self.manifest, {"image": frames, **limits}),
        ]
        return [f"{NONKEY}: {fault}" for fault in faults]

    def check_samples(self, bundle: Bundle) -> list[str]:
        """Whether samples.npz, which engines are held against, holds PyTorch's results."""
        samples = {graph: bundle.samples(graph) for graph in (KEY, NONKEY)}
        known = {graph: each for graph, each in samples.items() if each}
        if not known:
            return []
        if known.keys() != samples.keys() or len(known[NONKEY]) % len(known[KEY]):
            counts = ", ".join(f"{len(each)} of {graph}" for graph, each in known.items())
            return [f"the samples are {counts}; expected as many of {NONKEY} for each of {KEY}"]
        for graph, each in known.items():
            specs = self.manifest.outputs_of_graph(graph)
            if faults := probe_sample_shapes(self.manifest, each, specs):
                return faults
        results = clip_results(self.model, {graph: each.feeds for graph, each in known.items()})
        return [fault for graph in known for fault in probe_samples(known[graph], results[graph])]

    def score(self, session: Session) -> dict[str, float]:
        """A session's `scores` through the runtime's own path, in source pixels."""
        if not self.scores:
            return {}
        return self._score(self.run(session, self._low_limits()))

    def _score(self, outputs: Clips) -> dict[str, float]:
        manifest = self.manifest
        truth = GroundTruth(manifest.classes, manifest.category_ids)
        found: list[dict[str, Any]] = []
        samples = itertools.chain.from_iterable(self.clips)
        for sample, rows in zip(samples, _flat(outputs), strict=True):
            letterbox = Letterbox.fit(sample.image.shape[:2], manifest.geometry)
            detections = runtime_task(manifest.task).finish(rows, [letterbox], manifest)[0]
            found.extend(detections.to_coco(sample.image_id, manifest.category_ids))
            truth.add(sample)
        scores = export_task(manifest.task).score(truth.as_coco(), found)
        named = {f"{PREFIX}{name}": float(scores[name]) for name in self.gated if name in scores}
        return {name: value for name, value in named.items() if np.isfinite(value)}

    def draw(self, path: Path, outputs: Clips) -> list[int]:
        """Write the worst frames as a picture; see `export.proof.sheet.write_sheet`."""
        frames = np.concatenate(self.frames)
        feeds = [self.limits] * len(frames)
        ours, theirs = _flat(self.results), _flat(outputs)
        return write_sheet(path, frames, ours, theirs, feeds, self.manifest.classes)


def _flat(clips: Clips) -> list[Rows]:
    return list(itertools.chain.from_iterable(clips))


def _fit(sample: Sample, manifest: Manifest) -> NDArray[np.uint8]:
    return Letterbox.fit(sample.image.shape[:2], manifest.geometry).apply(sample.image)
