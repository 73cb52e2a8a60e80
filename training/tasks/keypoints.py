"""Keypoints: samples to targets, network output to boxes with joints, and scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.jointed import Jointed
from training.data.sample import Sample, Source
from training.metrics.detection import GroundTruth, detections_to_coco, score_boxes
from training.metrics.keypoints import joints_to_coco, score_joints
from training.models.base import KeypointSpec, Model, Spec, Targets
from training.tasks import detection
from training.tasks.detection import Boxes, fit_input, groups_of, input_to_source, to_source

LABELS = ("keypoints",)  # that samples carry beside boxes
MAIN_SCORE = "OKS_AP"  # by which the best weights are chosen
SCORE_FLOOR = detection.SCORE_FLOOR


@dataclass(slots=True)
class Poses:
    """Objects with joints of one image, sorted by falling score.

    Attributes:
        boxes: as of detection, pixels of the network input.
        keypoints_xyc: (N, J, 3) float32 as (x, y, confidence), pixels of the network input, 0..1.
    """

    boxes: Boxes
    keypoints_xyc: NDArray[np.float32]


def prepare_source(source: Source, spec: Spec, *, is_training: bool) -> Source:  # noqa: ARG001
    """A source without the classes that have no joints."""
    return Jointed(source)


def collate(samples: list[Sample]) -> tuple[Tensor, Targets]:
    """Samples of one size to (B, H, W, 3) uint8 BGR and padded targets with keypoints."""
    images, targets = detection.collate(samples)
    num_joints = max(
        (s.keypoints_xyv.shape[1] for s in samples if s.keypoints_xyv is not None), default=0
    )
    keypoints = torch.zeros(*targets.classes.shape, num_joints, 3)
    for row, sample in enumerate(samples):
        if sample.keypoints_xyv is not None:
            keypoints[row, : len(sample)] = torch.from_numpy(sample.keypoints_xyv)
    targets.keypoints = keypoints
    return images, targets


@torch.no_grad()
def detect(
    model: Model,
    images: Tensor,
    *,
    score_threshold: float = SCORE_FLOOR,
    iou_threshold: float | None = None,
) -> list[Poses]:
    """Run a model in eval mode, suppress, and decode joints: what the graphs compute, in the plain.

    Args:
        images: (B, H, W, 3) uint8 BGR, network size.
        score_threshold: a score must exceed it.
        iou_threshold: None takes the spec's.

    Returns:
        One `Poses` per image, at most max_detections rows.
    """
    found = detection.run_network(model, images)
    assert found.decode_keypoints is not None, "models of task keypoints decode joints"
    selected = list(detection.select_rows(model, found, score_threshold, iou_threshold))
    most = max((len(rows.anchors) for rows in selected), default=0)
    anchors = torch.zeros(len(selected), max(1, most), dtype=torch.long, device=images.device)
    anchors = anchors.to(found.logits.device)
    for row, rows in enumerate(selected):
        anchors[row, : len(rows.anchors)] = rows.anchors
    keypoints = found.decode_keypoints(anchors).float().cpu().numpy()
    results = []
    for row, rows in enumerate(selected):
        kept = (rows.boxes_xyxy.cpu(), rows.scores.float().cpu(), rows.classes.cpu())
        boxes = Boxes(*(tensor.numpy() for tensor in kept))
        results.append(Poses(boxes, keypoints[row, : len(rows.anchors)]))
    return results


def joints_in_source(found: Poses, source_hw: tuple[int, int], spec: Spec) -> NDArray[np.float32]:
    """(N, J, 3) joints in pixels of the frame that `fit_input` fitted; not clipped to it."""
    factor, shift = input_to_source(source_hw, spec.size_hw, spec.resize)
    keypoints = found.keypoints_xyc.copy()
    keypoints[..., :2] = (keypoints[..., :2] - shift) * factor
    return keypoints


def evaluate(
    model: Model, samples: Iterable[Sample], category_ids: tuple[int, ...], *, batch: int = 8
) -> dict[str, float]:
    """Scores of joints and of boxes on samples of any size, as COCO defines them, in source pixels.

    Returns:
        {"OKS_AP": 0..1, "OKS_AP_48px": ..., "AP": ..., "AP50": ..., "PCK@0.2": ..., "NME": ...} of
        `training.metrics`.
    """
    was_training = model.training
    model.eval()
    spec = model.spec
    assert isinstance(spec, KeypointSpec)
    results: list[dict[str, Any]] = []
    truth = GroundTruth(spec.classes, category_ids, spec.sigmas)
    for group in groups_of(samples, batch):
        images = np.stack([fit_input(sample, spec).image for sample in group])
        for sample, found in zip(group, detect(model, torch.from_numpy(images)), strict=True):
            boxes = to_source(found.boxes, sample.image_hw, spec.size_hw, spec.resize)
            keypoints = joints_in_source(found, sample.image_hw, spec)
            is_real = np.isfinite(keypoints).all(axis=(1, 2)) & np.isfinite(boxes.boxes_xyxy).all(1)
            entries = detections_to_coco(
                sample.image_id,
                boxes.boxes_xyxy[is_real],
                boxes.scores[is_real],
                boxes.classes[is_real],
                category_ids,
            )
            results.extend(joints_to_coco(entries, keypoints[is_real]))
            truth.add(sample)
    model.train(was_training)
    return score(truth.as_coco(), results, min_score=spec.score_threshold)


def score(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], *, min_score: float = 0.0
) -> dict[str, float]:
    """All scores of COCO results with keypoints, the ones that say most first.

    PCK and NME are of results of `min_score` and more.
    """
    bare = [{k: v for k, v in entry.items() if k != "keypoints"} for entry in results]
    scores = score_joints(ground_truth, results, min_score=min_score) | score_boxes(
        ground_truth, bare
    )
    first = (MAIN_SCORE, "OKS_AP_48px", "AP50", "NME")
    return {name: scores[name] for name in first} | scores
