"""COCO's average precision of boxes, kept per image so that it can be resampled quickly.

Detections are matched to objects once, image by image. The precision of any multiset of the images
is then an accumulation with a weight for each image: a bootstrap resamples thousands of times
without matching again. Definitions are COCO's (IoU 0.50:0.95, area "all", at most 100 detections of
a class and image); with all weights 1 the result is that of faster-coco-eval. Of detections with
equal scores all copies of one come before those of the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The detections of one class, by falling score.

    Attributes:
        images: (N,) places of their images.
        is_counted: (10, N) False where a crowd took the detection.
        hits: for each threshold, places of the detections that found an object.
        num_objects: (images,) objects of the class.
    """

    images: NDArray[np.intp]
    is_counted: NDArray[np.bool_]
    hits: tuple[NDArray[np.intp], ...]
    num_objects: NDArray[np.int64]


class Matches:
    """Detections of one model on one set of images, held against the objects there.

    Args:
        num_classes: K.
        limit: of a class's results on an image, the surest count: 100 of boxes, 20 of joints.
    """

    def __init__(self, num_classes: int, limit: int = MAX_DETECTIONS) -> None:
        self.limit = limit
        self.num_images = 0
        self._found: list[list[tuple[Floats, NDArray[np.int8]]]] = [[] for _ in range(num_classes)]
        self._objects: list[list[int]] = [[] for _ in range(num_classes)]
        self._rows: list[_Rows] | None = None

    def add(
        self,
        boxes_xyxy: NDArray,
        scores: NDArray,
        classes: NDArray,
        true_boxes_xyxy: NDArray,
        true_classes: NDArray,
        is_crowd: NDArray,
        overlaps: NDArray | None = None,
    ) -> None:
        """Take one image.

        Args:
            boxes_xyxy: (N, 4) detections. scores: (N,). classes: (N,), 0..K-1.
            true_boxes_xyxy: (G, 4), in the same pixels. true_classes: (G,). is_crowd: (G,) bool.
            overlaps: (N, G) 0..1, by which results find objects; None is that of the boxes.
        """
        if overlaps is None:
            overlaps = overlap(boxes_xyxy, true_boxes_xyxy, is_crowd)
        for place in range(len(self._found)):
            mine, theirs = classes == place, true_classes == place
            order = np.argsort(-scores[mine], kind="stable")[: self.limit]
            flags = match(overlaps[mine][order][:, theirs], is_crowd[theirs])
            self._found[place].append((scores[mine][order].astype(np.float64), flags))
            self._objects[place].append(int((~is_crowd[theirs]).sum()))
        self.num_images += 1
        self._rows = None

    def average_precision(self, weights: NDArray | None = None) -> float:
        """AP (0..1), the mean over classes that have objects and over the IoU thresholds.

        Args:
            weights: (images,) how often each image counts, in the order they came; None is once.

        Returns:
            NaN where no image of weight has an object.
        """
        each = self.class_precisions(weights)
        return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")

    def class_precisions(self, weights: NDArray | None = None) -> Floats:
        """(K,) AP of each class; NaN where it has no object. `weights` as above."""
        if self._rows is None:
            self._rows = [
                _arrange(found, objects)
                for found, objects in zip(self._found, self._objects, strict=True)
            ]
        given = np.ones(self.num_images) if weights is None else np.asarray(weights, np.float64)
        return np.array([_accumulate(rows, given) for rows in self._rows])


def match(overlaps: NDArray, is_crowd: NDArray) -> NDArray[np.int8]:
    """Give each detection its object, greedily by falling score, at each IoU threshold.

    Args:
        overlaps: (N, G) of detections, by falling score, and objects. is_crowd: (G,) bool.

    Returns:
        (10, N): 1 found an object, 0 found none, -1 lies in a crowd and does not count.
    """
    flags = np.zeros((len(IOU_THRESHOLDS), len(overlaps)), np.int8)
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    objects, crowds = np.flatnonzero(~is_crowd)[::-1], np.flatnonzero(is_crowd)
    is_free = np.ones((len(limits), len(objects)), bool)
    rows = np.arange(len(limits))
    for place, overlap_row in enumerate(overlaps):
        if len(objects) and overlap_row[objects].max() >= limits[0]:
            open_iou = np.where(is_free, overlap_row[objects], -1.0)  # (10, objects)
            best = open_iou.argmax(axis=1)  # of equal ones COCO takes the last: they are reversed
            is_hit = open_iou[rows, best] >= limits
            is_free[rows[is_hit], best[is_hit]] = False
            flags[is_hit, place] = 1
        if len(crowds):
            in_crowd = overlap_row[crowds].max() >= limits
            flags[in_crowd & (flags[:, place] == 0), place] = -1
    return flags


def overlap(boxes_xyxy: NDArray, true_boxes_xyxy: NDArray, is_crowd: NDArray) -> Floats:
    """(N, G) IoU; with a crowd it is the share of the detection that lies in it."""
    a = np.asarray(boxes_xyxy, np.float64).reshape(-1, 1, 4)
    b = np.asarray(true_boxes_xyxy, np.float64).reshape(1, -1, 4)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inter = np.clip(sides, 0, None).prod(axis=-1)
    area_a = (a[..., 2:] - a[..., :2]).prod(axis=-1)
    area_b = (b[..., 2:] - b[..., :2]).prod(axis=-1)
    union = np.where(is_crowd, area_a, area_a + area_b - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _arrange(found: list[tuple[Floats, NDArray[np.int8]]], objects: list[int]) -> _Rows:
    scores = np.concatenate([each[0] for each in found])
    flags = np.concatenate([each[1] for each in found], axis=1)
    images = np.repeat(np.arange(len(found)), [len(each[0]) for each in found])
    order = np.argsort(-scores, kind="stable")
    flags = flags[:, order]
    hits = tuple(np.flatnonzero(row == 1) for row in flags)
    return _Rows(images[order], flags >= 0, hits, np.array(objects, np.int64))


def _accumulate(rows: _Rows, weights: Floats) -> float:
    total = float((rows.num_objects * weights).sum())
    if not total:
        return float("nan")
    carried = weights[rows.images]
    plain = np.cumsum(carried)
    precisions = []
    for is_counted, hits in zip(rows.is_counted, rows.hits, strict=True):
        counted = plain if is_counted.all() else np.cumsum(carried * is_counted)
        true = np.cumsum(carried[hits])
        seen = np.maximum(counted[hits], 1e-12)
        best = np.maximum.accumulate((true / seen)[::-1])[::-1]  # precision at this recall or more
        places = np.searchsorted(true / total, RECALLS, side="left")
        reached = places < len(best)
        precisions.append(best[places[reached]].sum() / len(RECALLS))
    return float(np.mean(precisions))
