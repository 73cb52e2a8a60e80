"""Scores of a network for video: over frames, by their distance from the key frame, over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.data.clips import Clip
from training.data.sample import Sample
from training.metrics.consistency import Consistency
from training.metrics.detection import GroundTruth
from training.models.base import Raw, State, TemporalModel
from training.tasks import instance
from training.tasks.detection import fit_input
from training.tasks.instance import Instances, find_instances, masks_in_source, results_of

MODES = ("warped", "copied", "keys")


@dataclass(frozen=True, slots=True)
class VideoScores:
    """What a schedule scored.

    Attributes:
        scores: mask_AP ... and AP ... of `training.tasks.instance` over all frames, and
            mask_consistency and tracks_kept of `training.metrics.consistency`; 0..1.
        by_distance: mask_AP of the frames that lie so many frames behind their key frame.
        change_px: mean `change` of those frames, pixels of the network input.
        num_frames: that were scored.
    """

    scores: dict[str, float]
    by_distance: dict[int, float]
    change_px: dict[int, float]
    num_frames: int


class _Found(NamedTuple):
    sample: Sample
    distance: int
    change: float
    instances: Instances


def score_clips(
    model: TemporalModel,
    clips: Iterable[Clip],
    category_ids: tuple[int, ...],
    *,
    interval: int,
    mode: str = "warped",
) -> VideoScores:
    """Run clips with a key frame every `interval` frames, and score what is found in each.

    Args:
        model: left in the mode that it was in.
        clips: with masks.
        category_ids: of the classes.
        interval: 1 or more; the clip's first frame is a key frame.
        mode: "warped" is the model as it is. Two baselines: "keys" makes every frame a key frame,
            "copied" leaves what the key frame left where it lay.
    """
    assert mode in MODES
    was_training = model.training
    model.eval()
    spec = model.spec
    everything = _Scored(spec.classes, category_ids)
    steady, distances = Consistency(), {}
    changes: dict[int, list[float]] = {}
    for clip in clips:
        steady.begin_clip()
        for index, found in enumerate(_run(model, clip, interval, mode)):
            masks = masks_in_source(found.instances, found.sample.image_hw, spec)
            results = results_of(found.instances, masks, found.sample, spec, category_ids)
            if found.distance not in distances:
                distances[found.distance] = _Scored(spec.classes, category_ids)
            for scored in (everything, distances[found.distance]):
                scored.truth.add(found.sample)
                scored.results += results
            changes.setdefault(found.distance, []).append(found.change)
            tracks = clip.track_ids(index)
            if tracks is not None:
                sure = found.instances.boxes.scores > spec.score_threshold
                labels = found.instances.boxes.classes[sure]
                flow = clip.flow(index, index - 1) if index else None
                steady.add(masks[sure], labels, found.sample, tracks, flow)
    model.train(was_training)
    scores = instance.score_results(everything.truth.as_coco(), everything.results)
    return VideoScores(
        scores | steady.scores(),
        {key: distances[key].mask_ap() for key in sorted(distances)},
        {key: float(np.mean(changes[key])) for key in sorted(changes)},
        len(everything.truth.as_coco()["images"]),
    )


class _Scored:
    """Frames and what was found in them."""

    def __init__(self, classes: tuple[str, ...], category_ids: tuple[int, ...]) -> None:
        self.truth = GroundTruth(classes, category_ids)
        self.results: list[dict[str, Any]] = []

    def mask_ap(self) -> float:
        return instance.score_results(self.truth.as_coco(), self.results)[instance.MAIN_SCORE]


@torch.no_grad()
def _run(model: TemporalModel, clip: Clip, interval: int, mode: str) -> Iterator[_Found]:
    state: State = {}
    for index in range(len(clip)):
        sample = clip.frame(index)
        frame = fit_input(sample, model.spec).image
        images = model.prepare(torch.from_numpy(frame)[None].to(model.mean.device))
        images = images.contiguous(memory_format=torch.channels_last)
        distance = 0 if mode == "keys" else index % interval
        change = images.new_zeros(1)
        if distance == 0:
            raw, state = model.key(images)
        else:
            raw, change = _follow(model, images, state, is_copied=mode == "copied")
        found = find_instances(model, model.candidates(raw))[0]
        yield _Found(sample, distance, float(change[0]), found)


def _follow(
    model: TemporalModel, images: Tensor, state: State, *, is_copied: bool
) -> tuple[Raw, Tensor]:
    with _warping(model, is_on=not is_copied):
        return model.nonkey(images, state)


@contextmanager
def _warping(model: TemporalModel, *, is_on: bool) -> Iterator[None]:
    before = model.is_warping
    model.is_warping = is_on
    try:
        yield
    finally:
        model.is_warping = before
