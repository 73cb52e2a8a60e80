"""Scores of joints: average precision by object keypoint similarity, PCK, normalised error."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.metrics.detection import MetricError, check_results

logger = logging.getLogger("kestrel.metrics")

LARGE_PX = 48  # people whose box has a longer side of this and more are scored apart, too
PCK_SHARE = 0.2  # of the longer side of the true box
MATCH_IOU = 0.5  # of a result's box and the object whose joints it is measured on
BODY_SHARE = 0.53  # of a person's box that the body fills, for objects without a mask
_STATS = {"AP": 0, "AP50": 1, "AP75": 2, "AP_medium": 3, "AP_large": 4, "AR": 5}

Truth = dict[str, Any]
Results = list[dict[str, Any]]


def score_joints(
    ground_truth: Truth, results: Results, *, min_score: float = 0.0
) -> dict[str, float]:
    """Score the joints of results as COCO does, and by how far they lie from the truth.

    Objects without a labelled joint, and crowds, are neither missed nor wrong. Object keypoint
    similarity takes the area of the mask; of an object without one 0.53 of its box.

    Args:
        ground_truth: a COCO data set whose annotations have ``keypoints`` and whose categories
            have ``sigmas``, the constants of object keypoint similarity, such as `GroundTruth`
            collects from samples with keypoints. Not changed.
        results: entries with image_id, category_id, bbox, score and ``keypoints``, 3 J numbers
            (x, y, anything), pixels of the ground truth's image. Not changed; may be empty.
        min_score: results of a lower score enter AP, which goes by the order of scores, but neither
            PCK nor NME, which are of what a user would see.

    Returns:
        OKS_AP (similarity 0.50:0.95, at most 20 results an image), OKS_AP50, OKS_AP75,
        OKS_AP_medium, OKS_AP_large, OKS_AR, OKS_AP_48px (objects of 48 px and more on the longer
        side), 0..1; and of results that overlap an object by 0.5 and more: PCK@0.2, the share of
        its labelled joints that lie within 0.2 of the longer side of its box, and NME, the mean
        distance of its labelled joints over the root of its box's area. NaN where there is none.
    """
    sigmas = _sigmas_of(ground_truth)
    check_joints(ground_truth, results, len(sigmas))
    truth = _with_areas(ground_truth)
    scores = similarity_precision(truth, results, sigmas)
    large = similarity_precision(_ignoring_small(truth, LARGE_PX), results, sigmas)
    errors = joint_errors(truth, [entry for entry in results if entry["score"] >= min_score])
    return {
        **{f"OKS_{name}": value for name, value in scores.items()},
        f"OKS_AP_{LARGE_PX}px": large["AP"],
        f"PCK@{PCK_SHARE}": _mean(errors["of_side"] <= PCK_SHARE),
        "NME": _mean(errors["of_size"]),
    }


def similarity_precision(
    truth: Truth, results: Results, sigmas: Sequence[float]
) -> dict[str, float]:
    """Average precision by object keypoint similarity; see `score_joints`. Runs COCO's tools."""
    from faster_coco_eval import COCO, COCOeval_faster

    copied = {key: [dict(item) for item in truth[key]] for key in ("images", "annotations")}
    copied |= {"info": {}, "categories": [dict(item) for item in truth["categories"]]}
    if not copied["annotations"]:
        return dict.fromkeys(_STATS, float("nan"))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(copied)
        found = coco.loadRes([dict(result) for result in results])
        evaluation = COCOeval_faster(
            coco,
            found,
            iouType="keypoints",
            print_function=logger.debug,
            kpt_oks_sigmas=list(sigmas),
        )
        evaluation.run()
    values = {name: float(evaluation.stats[place]) for name, place in _STATS.items()}
    return {name: value if value >= 0 else float("nan") for name, value in values.items()}


def joint_errors(truth: Truth, results: Results) -> dict[str, NDArray[np.float64]]:
    """How far the joints of found objects lie from the true ones.

    Results take objects by falling score, each the one of its class that it overlaps most, by
    0.5 and more.

    Returns:
        of_side, of_size: (n,) distances of labelled joints, over the longer side of the object's
        box, and over the root of its area.
    """
    objects: dict[tuple[int, int], list[Truth]] = {}
    for item in truth["annotations"]:
        if not item.get("iscrowd") and item.get("num_keypoints"):
            objects.setdefault((item["image_id"], item["category_id"]), []).append(item)
    of_side, of_size = [], []
    for result in sorted(results, key=lambda entry: -entry["score"]):
        rest = objects.get((result["image_id"], result["category_id"]), [])
        overlaps = [_iou(result["bbox"], item["bbox"]) for item in rest]
        if not overlaps or max(overlaps) < MATCH_IOU:
            continue
        item = rest.pop(int(np.argmax(overlaps)))
        true, found = (np.array(e["keypoints"], np.float64).reshape(-1, 3) for e in (item, result))
        distances = np.linalg.norm(true[:, :2] - found[:, :2], axis=1)[true[:, 2] > 0]
        width, height = item["bbox"][2:]
        of_side.append(distances / max(width, height))
        of_size.append(distances / math.sqrt(width * height))
    empty = [np.zeros(0)]
    return {
        "of_side": np.concatenate(of_side or empty),
        "of_size": np.concatenate(of_size or empty),
    }


def object_similarity(
    keypoints: NDArray[Any], true_xyv: NDArray[Any], area: float, sigmas: Sequence[float]
) -> float:
    """Object keypoint similarity as COCO defines it.

    Args:
        keypoints: (J, 2) or more columns, x and y in pixels.
        true_xyv: (J, 3); joints with v = 0 do not count.
        area: of the object, square pixels.
        sigmas: (J,).

    Returns:
        0..1; NaN where no joint is labelled.
    """
    gaps = np.asarray(keypoints, np.float64)[:, :2] - np.asarray(true_xyv, np.float64)[:, :2]
    spread = 2 * (2 * np.asarray(sigmas, np.float64)) ** 2 * (area + np.spacing(1.0))
    likeness = np.exp(-(gaps**2).sum(axis=1) / spread)
    return _mean(likeness[np.asarray(true_xyv)[:, 2] > 0])


def joints_to_coco(results: Results, keypoints_xyc: NDArray[Any]) -> Results:
    """Give COCO results of one image their ``keypoints``.

    Args:
        results: N entries, as of ``detections_to_coco``.
        keypoints_xyc: (N, J, 3), in the same order and pixels.
    """
    rows = np.asarray(keypoints_xyc, np.float64).reshape(len(results), -1)
    return [{**entry, "keypoints": row.tolist()} for entry, row in zip(results, rows, strict=True)]


def check_joints(ground_truth: Truth, results: Results, num_joints: int) -> None:
    """Refuse results or objects that have no joints, or another number of them."""
    check_results(ground_truth, results, ("bbox", "score", "keypoints"))
    for what, entries in (("an object", ground_truth["annotations"]), ("a result", results)):
        for entry in entries:
            numbers = entry.get("keypoints", ())
            if len(numbers) != 3 * num_joints or not np.isfinite(numbers).all():
                raise MetricError(
                    f"{what} of image {entry['image_id']} has {len(numbers)} numbers as keypoints; "
                    f"expected {3 * num_joints} finite ones, (x, y, v) of {num_joints} joints. "
                    "Use data and results of the same joints."
                )


def _sigmas_of(truth: Truth) -> list[float]:
    """The constants of the first category that has any; all have the same joints."""
    for category in truth["categories"]:
        if category.get("sigmas"):
            return list(category["sigmas"])
    raise MetricError(
        "no category of the ground truth has sigmas; expected one for each joint. Give them to "
        "GroundTruth."
    )


def _with_areas(truth: Truth) -> Truth:
    """The ground truth with the body's area where there is no mask to know it from."""
    annotations = []
    for item in truth["annotations"]:
        width, height = item["bbox"][2:]
        area = item["area"] if item.get("segmentation") else BODY_SHARE * width * height
        labelled = int(np.count_nonzero(np.array(item["keypoints"][2::3]) > 0))
        annotations.append({**item, "area": area, "num_keypoints": labelled})
    return {**truth, "annotations": annotations}


def _ignoring_small(truth: Truth, side_px: float) -> Truth:
    """Objects of a shorter box have no joints that count; where they are is still known."""
    annotations = [
        item if max(item["bbox"][2:]) >= side_px else {**item, "num_keypoints": 0}
        for item in truth["annotations"]
    ]
    return {**truth, "annotations": annotations}


def _iou(box_a: Sequence[float], box_b: Sequence[float]) -> float:
    """Of two boxes (x, y, width, height)."""
    sides = [
        min(box_a[axis] + box_a[axis + 2], box_b[axis] + box_b[axis + 2])
        - max(box_a[axis], box_b[axis])
        for axis in range(2)
    ]
    inter = max(0.0, sides[0]) * max(0.0, sides[1])
    union = box_a[2] * box_a[3] + box_b[2] * box_b[3] - inter
    return inter / union if union > 0 else 0.0


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")
