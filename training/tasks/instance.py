"""Instance segmentation: samples to targets, network output to boxes and masks, and scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.sample import Sample
from training.layers.prototypes import assemble_masks
from training.metrics.detection import GroundTruth, detections_to_coco, score_boxes
from training.metrics.instance import score_masks
from training.models.base import Candidates, Model, Spec, Targets
from training.tasks import detection
from training.tasks.detection import Boxes, fit_input, groups_of, input_to_source, to_source

LABELS = ("masks",)  # that samples carry beside boxes
MAIN_SCORE = "mask_AP"  # by which the best weights are chosen
SCORE_FLOOR = detection.SCORE_FLOOR
INSIDE = 0.5  # a soft mask above it is the object


@dataclass(slots=True)
class Instances:
    """Instances of one image, sorted by falling score.

    Attributes:
        boxes: as of detection, pixels of the network input.
        masks: (N, h, w) float32, 0..1, at prototype size, 0 outside of the boxes.
        mask_scores: (N,) float32, 0..1, of models that tell how good a mask is.
    """

    boxes: Boxes
    masks: NDArray[np.float32]
    mask_scores: NDArray[np.float32] | None = None


def collate(samples: list[Sample]) -> tuple[Tensor, Targets]:
    """Samples of one size to (B, H, W, 3) uint8 BGR and padded targets with masks."""
    images, targets = detection.collate(samples)
    masks = torch.zeros(*targets.classes.shape, *images.shape[1:3], dtype=torch.uint8)
    for row, sample in enumerate(samples):
        if sample.masks is not None:
            masks[row, : len(sample)] = torch.from_numpy(np.ascontiguousarray(sample.masks))
    targets.masks = masks
    return images, targets


@torch.no_grad()
def detect(
    model: Model,
    images: Tensor,
    *,
    score_threshold: float = SCORE_FLOOR,
    iou_threshold: float | None = None,
) -> list[Instances]:
    """Run a model in eval mode, suppress, and make masks: what the graphs compute, in the plain.

    Args:
        images: (B, H, W, 3) uint8 BGR, network size.
        score_threshold: a score must exceed it.
        iou_threshold: None takes the spec's.

    Returns:
        One `Instances` per image, at most max_detections rows.
    """
    found = detection.run_network(model, images)
    return find_instances(
        model, found, score_threshold=score_threshold, iou_threshold=iou_threshold
    )


@torch.no_grad()
def find_instances(
    model: Model,
    found: Candidates,
    *,
    score_threshold: float = SCORE_FLOOR,
    iou_threshold: float | None = None,
) -> list[Instances]:
    """Suppress the candidates of a batch and make masks; see `detect`."""
    results = []
    selected = detection.select_rows(model, found, score_threshold, iou_threshold)
    for row, rows in enumerate(selected):
        masks = assemble_masks(
            found.extras["coefficients"][row][rows.anchors].float(),
            found.maps["prototypes"][row].float(),
            rows.boxes_xyxy,
            model.spec.size_hw,
        )
        kept = (rows.boxes_xyxy.cpu(), rows.scores.float().cpu(), rows.classes.cpu())
        boxes = Boxes(*(tensor.numpy() for tensor in kept))
        mask_scores = None
        if found.rescore is not None:
            factors = found.rescore(masks[None], rows.classes[None])[0]
            mask_scores = (rows.scores * factors).float().cpu().numpy()
        results.append(Instances(boxes, masks.cpu().numpy(), mask_scores))
    return results


def masks_in_source(found: Instances, source_hw: tuple[int, int], spec: Spec) -> NDArray[np.uint8]:
    """Masks of instances in the frame: cropped maps, enlarged by bilinear sampling, above a half.

    Args:
        found: of a frame that `fit_input` fitted into the network input.
        source_hw: of that frame, pixels.
        spec: of the model.

    Returns:
        (N, H, W) uint8, 0 or 1.
    """
    factor, shift = input_to_source(source_hw, spec.size_hw, spec.resize)
    map_hw = found.masks.shape[1:]
    result = np.zeros((len(found.masks), *source_hw), np.uint8)
    pixel = [spec.size_hw[axis] / map_hw[axis] for axis in range(2)]  # input pixels, (y, x)
    for mask, target in zip(found.masks, result, strict=True):
        ends, samples = [], []
        for axis in range(2):
            filled = np.flatnonzero(mask.any(axis=1 - axis))
            if not len(filled):
                break
            low, high = np.array([filled[0] - 1, filled[-1] + 2]) * pixel[axis]
            start, stop = (np.array([low, high]) - shift[1 - axis]) * factor[1 - axis]
            start = max(0, int(start))
            stop = max(start, min(source_hw[axis], int(stop) + 1))  # none of those in the padding
            centres = (np.arange(start, stop) + 0.5) / factor[1 - axis] + shift[1 - axis]
            ends.append(slice(start, stop))
            samples.append(centres / pixel[axis] - 0.5)
        else:
            target[tuple(ends)] = _sample(mask, *samples) > INSIDE
    return result


def _sample(values: NDArray[np.float32], ys: NDArray, xs: NDArray) -> NDArray:
    """Bilinear samples of an (h, w) map at every pair of ys and xs; its edges reach outward."""
    for axis, places in ((0, ys), (1, xs)):
        last = values.shape[axis] - 1
        places = places.clip(0, last)
        below = places.astype(int)
        above = np.minimum(below + 1, last)
        share = np.expand_dims(places - below, 1 - axis)
        values = values.take(below, axis) * (1 - share) + values.take(above, axis) * share
    return values


def evaluate(
    model: Model, samples: Iterable[Sample], category_ids: tuple[int, ...], *, batch: int = 8
) -> dict[str, float]:
    """AP of masks and of boxes on samples of any size, as COCO defines it, in source pixels.

    Returns:
        {"mask_AP": 0..1, ..., "AP": ..., "AP50": ...} of `training.metrics`.
    """
    was_training = model.training
    model.eval()
    results: list[dict[str, Any]] = []
    truth, spec = GroundTruth(model.spec.classes, category_ids), model.spec
    for group in groups_of(samples, batch):
        images = np.stack([fit_input(sample, spec).image for sample in group])
        for sample, found in zip(group, detect(model, torch.from_numpy(images)), strict=True):
            masks = masks_in_source(found, sample.image_hw, spec)
            results.extend(results_of(found, masks, sample, spec, category_ids))
            truth.add(sample)
    model.train(was_training)
    return score_results(truth.as_coco(), results)


def results_of(
    found: Instances,
    masks: NDArray[np.uint8],
    sample: Sample,
    spec: Spec,
    category_ids: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Instances of a frame as COCO results, in source pixels; masks as of `masks_in_source`."""
    boxes = to_source(found.boxes, sample.image_hw, spec.size_hw, spec.resize)
    return detections_to_coco(
        sample.image_id,
        boxes.boxes_xyxy,
        boxes.scores,
        boxes.classes,
        category_ids,
        masks=masks,
        mask_scores=found.mask_scores,
    )


def score_results(coco: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """AP of masks and boxes; see `evaluate`."""
    scores = score_masks(coco, results) | score_boxes(coco, results)
    return {name: scores[name] for name in (MAIN_SCORE, "AP")} | scores
