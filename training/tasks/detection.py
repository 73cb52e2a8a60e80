"""Detection: samples to targets, network output to results, results to scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.geometry import KEEP_ALL, letterbox, letterbox_wh, warp
from training.data.sample import Sample
from training.layers.suppression import keep_rows
from training.metrics.detection import GroundTruth, detections_to_coco, score_boxes
from training.models.base import Candidates, Model, Spec, Targets

LABELS: tuple[str, ...] = ()  # that samples carry beside boxes
MAIN_SCORE = "AP"  # by which the best weights are chosen
SCORE_FLOOR = 0.001  # results below it do not enter AP


@dataclass(slots=True)
class Boxes:
    """Detections of one image, sorted by falling score.

    Attributes:
        boxes_xyxy: (N, 4) float32, pixels; of the network input until `to_source`.
        scores: (N,) float32, 0..1. classes: (N,) int64.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]


def collate(samples: list[Sample]) -> tuple[Tensor, Targets]:
    """Samples of one size to (B, H, W, 3) uint8 BGR and padded targets."""
    images = torch.from_numpy(np.stack([s.image for s in samples]))
    most = max((len(s.classes) for s in samples), default=0)
    boxes = torch.zeros(len(samples), most, 4)
    classes = torch.full((len(samples), most), -1, dtype=torch.long)
    is_crowd = torch.zeros(len(samples), most, dtype=torch.bool)
    for row, sample in enumerate(samples):
        count = len(sample.classes)
        boxes[row, :count] = torch.from_numpy(np.asarray(sample.boxes_xyxy, np.float32))
        classes[row, :count] = torch.from_numpy(np.asarray(sample.classes, np.int64))
        is_crowd[row, :count] = torch.from_numpy(np.asarray(sample.is_crowd, bool))
    return images, Targets(boxes, classes, is_crowd)


@torch.no_grad()
def detect(
    model: Model,
    images: Tensor,
    *,
    score_threshold: float = SCORE_FLOOR,
    iou_threshold: float | None = None,
) -> list[Boxes]:
    """Run a model in eval mode and suppress: the plain reference of what the graphs compute.

    Args:
        images: (B, H, W, 3) uint8 BGR, network size.
        score_threshold: a score must exceed it.
        iou_threshold: None takes the spec's.

    Returns:
        One `Boxes` per image, at most max_detections rows, pixels of the network input.
    """
    results = []
    for rows in select_rows(model, run_network(model, images), score_threshold, iou_threshold):
        kept = (rows.boxes_xyxy.cpu(), rows.scores.float().cpu(), rows.classes.cpu())
        results.append(Boxes(*(tensor.numpy() for tensor in kept)))
    return results


def run_network(model: Model, images: Tensor) -> Candidates:
    """The candidates of frames (B, H, W, 3) uint8 BGR of network size."""
    prepared = model.prepare(images.to(model.mean.device))
    return model.candidates(model(prepared.contiguous(memory_format=torch.channels_last)))


class Rows(NamedTuple):
    """What suppression keeps of one image, sorted by falling score.

    Attributes:
        boxes_xyxy: (N, 4), pixels of the network input. scores, classes: (N,).
        anchors: (N,) rows of the candidates.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    classes: Tensor
    anchors: Tensor


def select_rows(
    model: Model, found: Candidates, score_threshold: float, iou_threshold: float | None
) -> Iterator[Rows]:
    """Select and suppress the candidates of a batch, image by image; see `detect`."""
    spec = model.spec
    iou_threshold = spec.iou_threshold if iou_threshold is None else iou_threshold
    scores = torch.sigmoid(found.logits) if found.activation == "sigmoid" else found.logits
    scores = torch.where(scores > score_threshold, scores, 0.0)  # NaN becomes 0 too
    num_classes = scores.shape[-1]
    flat = scores.flatten(1)  # (B, A * K)
    top, pairs = flat.topk(min(spec.num_candidates, flat.shape[1]), dim=1)
    anchors = pairs // num_classes
    boxes = found.decode(anchors)
    classes = pairs % num_classes
    for row in range(len(top)):
        frame = (boxes[row].float(), top[row], classes[row], top.new_tensor(iou_threshold))
        keep = keep_rows(*frame, spec.nms)[: spec.max_detections]
        yield Rows(boxes[row, keep], top[row, keep], classes[row, keep], anchors[row, keep])


def to_source(
    boxes: Boxes, source_hw: tuple[int, int], size_hw: tuple[int, int], resize: str = "letterbox"
) -> Boxes:
    """Map boxes from the network input back to the frame that `fit_input` fitted into it."""
    factor, shift = input_to_source(source_hw, size_hw, resize)
    mapped = (boxes.boxes_xyxy - np.tile(shift, 2)) * np.tile(factor, 2)
    limit = np.array([source_hw[1], source_hw[0]] * 2, np.float32)
    return Boxes(np.clip(mapped, 0, limit).astype(np.float32), boxes.scores, boxes.classes)


def input_to_source(
    source_hw: tuple[int, int], size_hw: tuple[int, int], resize: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(x, y) factor and shift: a point of the frame is (point of the input - shift) * factor."""
    (height, width), (net_h, net_w) = source_hw, size_hw
    new_w, new_h = (net_w, net_h) if resize == "stretch" else letterbox_wh(source_hw, size_hw)
    shift = np.array([(net_w - new_w) // 2, (net_h - new_h) // 2], np.float32)
    return np.array([width / new_w, height / new_h], np.float32), shift


def fit_input(sample: Sample, spec: Spec) -> Sample:
    """A sample of network size, made as the runtime makes frames: letterboxed or stretched."""
    if spec.resize == "letterbox":
        return letterbox(sample, spec.size_hw)
    (height, width), (net_h, net_w) = sample.image_hw, spec.size_hw
    matrix = np.array([[net_w / width, 0, 0], [0, net_h / height, 0]])
    fitted = warp(sample, matrix, spec.size_hw, keep=KEEP_ALL)
    fitted.image = cv2.resize(sample.image, (net_w, net_h), interpolation=cv2.INTER_LINEAR)
    return fitted


def evaluate(
    model: Model, samples: Iterable[Sample], category_ids: tuple[int, ...], *, batch: int = 8
) -> dict[str, float]:
    """AP of a model on samples of any size, as COCO defines it, in source pixels.

    Returns:
        {"AP": 0..1, "AP50": ..., "AP_small": ..., ...} of `training.metrics.detection`.
    """
    was_training = model.training
    model.eval()
    results: list[dict[str, Any]] = []
    truth = GroundTruth(model.spec.classes, category_ids)
    for group in groups_of(samples, batch):
        fitted = [fit_input(sample, model.spec) for sample in group]
        images, _ = collate(fitted)
        for sample, boxes in zip(group, detect(model, images), strict=True):
            mapped = to_source(boxes, sample.image_hw, model.spec.size_hw, model.spec.resize)
            results.extend(
                detections_to_coco(
                    sample.image_id, mapped.boxes_xyxy, mapped.scores, mapped.classes, category_ids
                )
            )
            truth.add(sample)
    model.train(was_training)
    return score_boxes(truth.as_coco(), results)


def groups_of(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Samples in lists of a size; the last may be shorter."""
    group: list[Sample] = []
    for sample in samples:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
