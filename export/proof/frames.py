"""Frames to prove an export on, at network size, and the samples they come from."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from runtime.contract.manifest import Manifest
from runtime.contract.outputs import SCORE_THRESHOLD
from runtime.sessions.base import Array
from runtime.tasks import load_task
from training.data import each_once, open_data
from training.data.sample import Sample, Source
from training.models.base import CropSpec, Spec
from training.tasks import open_source
from training.tasks.detection import fit_input

SCORE_FLOOR = 0.001  # results below it do not enter AP


def open_labelled(manifest: Manifest, data: str, split: str) -> Source:
    """Open a split of a data set with the labels that a bundle's task is scored by."""
    return open_source(manifest.task, _spec_of(manifest), data, split)


def has_labels_of(source: Source, manifest: Manifest) -> bool:
    """Whether a data set has a bundle's classes, and its joints where it has any."""
    joints = () if manifest.joints is None else manifest.joints.names
    is_same = tuple(source.classes) == tuple(manifest.classes)
    return is_same and (not joints or tuple(getattr(source, "joints", ())) == joints)


def opener_for(like: Manifest | Spec, task: str) -> Callable[[str, str], Source]:
    """What opens frames for a bundle, labels or not: of task pose_crop crops, else whole frames."""
    if task != "pose_crop":
        return open_data
    spec = _spec_of(like) if isinstance(like, Manifest) else like
    return functools.partial(open_source, task, spec)


def _spec_of(manifest: Manifest) -> Spec:
    """As much of the spec as says what samples are."""
    return CropSpec(
        size_hw=(manifest.geometry.height, manifest.geometry.width),
        joints=() if manifest.joints is None else manifest.joints.names,
        crop_margin=manifest.crop_margin,
    )


def scoring_thresholds(manifest: Manifest, batch: int) -> dict[str, Array]:
    """The threshold inputs at which everything that enters AP comes out."""
    has_scores = SCORE_THRESHOLD in manifest.inputs
    floor = SCORE_FLOOR if has_scores else None
    return load_task(manifest.task).thresholds(manifest, batch, floor)


def proof_samples(source: Source, count: int | None) -> Iterator[Sample]:
    """The first `count` labelled frames of an open split (None: all), in source pixels."""
    return itertools.islice(each_once(source), count)


def network_frames(
    data: str,
    spec: Spec,
    count: int,
    opened: Callable[[str, str], Source] = open_data,
) -> np.ndarray:
    """(N, H, W, 3) uint8 BGR, fitted as the spec has it; N is smaller where the data set is."""
    samples = proof_samples(opened(data, "val"), count)
    return np.stack([fit_input(sample, spec).image for sample in samples])
