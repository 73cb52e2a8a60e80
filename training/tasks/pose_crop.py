"""Joints of one person in a crop: samples to targets, network output to joints, and scores.

A sample is a crop of network size with one person, as `training.data.crops` makes it. Boxes and
joints are in pixels of the crop, and so are scores: nothing is mapped to the frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.crops import PersonCrops
from training.data.jointed import Jointed
from training.data.sample import Sample, Source
from training.metrics.detection import GroundTruth
from training.metrics.keypoints import score_joints
from training.models.base import CropSpec, Model, Spec
from training.tasks import keypoints
from training.tasks.detection import fit_input, groups_of

LABELS = keypoints.LABELS  # that samples carry beside boxes
MAIN_SCORE = "PCK@0.2"  # by which the best weights are chosen
CONTEXT = 1.6  # of the crop, in training: what turning and scaling may bring into view

collate = keypoints.collate


def prepare_source(source: Source, spec: Spec, *, is_training: bool) -> Source:
    """A source of single people: crops of network size, in training with room around them."""
    assert isinstance(spec, CropSpec)
    context = CONTEXT if is_training else None
    return PersonCrops(Jointed(source), spec.size_hw, spec.crop_margin, context=context)


@torch.no_grad()
def detect(model: Model, images: Tensor) -> NDArray[np.float32]:
    """Run a model in eval mode: what the graphs compute, in the plain.

    Args:
        images: (B, H, W, 3) uint8 BGR, crops of network size.

    Returns:
        (B, J, 3) float32 as (x, y, confidence), pixels of the crop and 0..1.
    """
    prepared = model.prepare(images.to(model.mean.device))
    raw = model(prepared.contiguous(memory_format=torch.channels_last))
    found: Tensor = model.candidates(raw)
    return np.asarray(found.float().cpu().numpy())


def evaluate(
    model: Model, samples: Iterable[Sample], category_ids: tuple[int, ...], *, batch: int = 32
) -> dict[str, float]:
    """Scores of joints on crops, in pixels of the crop; each crop's person is given its box.

    Returns:
        {"PCK@0.2": 0..1, "NME": ..., "OKS_AP": ..., ...} of `training.metrics.keypoints`.
    """
    was_training = model.training
    model.eval()
    spec = model.spec
    assert isinstance(spec, CropSpec)
    results: list[dict[str, Any]] = []
    truth = GroundTruth(spec.classes, category_ids, spec.sigmas)
    for group in groups_of(samples, batch):
        fitted = [s if s.image_hw == spec.size_hw else fit_input(s, spec) for s in group]
        images = torch.from_numpy(np.stack([sample.image for sample in fitted]))
        for sample, joints in zip(fitted, detect(model, images), strict=True):
            results.extend(crop_result(sample.image_id, joints, spec.size_hw, category_ids))
            truth.add(sample)
    model.train(was_training)
    return score(truth.as_coco(), results)


def crop_result(
    image_id: int,
    keypoints_xyc: NDArray[Any],
    size_hw: tuple[int, int],
    category_ids: tuple[int, ...],
) -> list[dict[str, Any]]:
    """The COCO result of one crop; none where a joint is no finite number."""
    if not np.isfinite(keypoints_xyc).all():
        return []
    entry = {
        "image_id": image_id,
        "category_id": category_ids[0],
        "bbox": [0.0, 0.0, float(size_hw[1]), float(size_hw[0])],
        "score": float(keypoints_xyc[:, 2].mean()),
        "keypoints": [float(value) for value in keypoints_xyc.ravel()],
    }
    return [entry]


def score(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """All scores of COCO results of crops, each of one person, the ones that say most first.

    What box a result has does not matter: the person of a crop is known.
    """
    boxes = {item["image_id"]: item["bbox"] for item in ground_truth["annotations"]}
    placed = [e | {"bbox": boxes[e["image_id"]]} for e in results if e["image_id"] in boxes]
    scores = score_joints(ground_truth, placed)
    return {name: scores[name] for name in (MAIN_SCORE, "NME", "OKS_AP")} | scores
