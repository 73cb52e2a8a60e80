"""Average precision of boxes as COCO defines it, by faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Sequence

import numpy as np

from training.data.outlines import compress_rle, encode_rle
from training.data.records import each_once
from training.data.sample import Sample, Source

logger = logging.getLogger("kestrel.metrics")

_STATS = {  # places in COCO's list of twelve
    "AP": 0,
    "AP50": 1,
    "AP75": 2,
    "AP_small": 3,
    "AP_medium": 4,
    "AP_large": 5,
    "AR100": 8,
}


class MetricError(ValueError):
    """Results and ground truth do not belong together: says what came and what was expected."""


class GroundTruth:
    """Collects samples into COCO's format one by one, so that a loop reads each image once.

    Masks are kept as compressed run lengths, about 100 bytes each.

    Args:
        classes: K names.
        category_ids: K ids, in the order of the classes.
        sigmas: constants of the joints, where scores of joints are to be taken.
    """

    def __init__(
        self, classes: Sequence[str], category_ids: Sequence[int], sigmas: Sequence[float] = ()
    ) -> None:
        if len(classes) != len(category_ids) or len(set(category_ids)) != len(category_ids):
            raise MetricError(
                f"{len(classes)} classes with category ids {list(category_ids)}; "
                "expected one id of its own for each class."
            )
        self.category_ids = tuple(int(category) for category in category_ids)
        self._categories = [
            {"id": category, "name": str(name), **({"sigmas": [*sigmas]} if sigmas else {})}
            for category, name in zip(self.category_ids, classes, strict=True)
        ]
        self._images: dict[int, dict] = {}
        self._annotations: list[dict] = []

    def add(self, sample: Sample) -> None:
        """Take one sample; an image id that was taken before is a MetricError."""
        if sample.image_id in self._images:
            raise MetricError(
                f"image id {sample.image_id} ({sample.file_name}) came twice; expected each image "
                "once. Go through a source with training.data.each_once."
            )
        height, width = sample.image_hw
        self._images[sample.image_id] = {
            "id": sample.image_id,
            "file_name": sample.file_name,
            "width": width,
            "height": height,
        }
        corners = sample.boxes_xyxy.astype(np.float64)
        sides = corners[:, 2:] - corners[:, :2]
        for row in range(len(corners)):
            annotation = {
                "id": len(self._annotations) + 1,
                "image_id": sample.image_id,
                "category_id": self.category_ids[sample.classes[row]],
                "bbox": [*corners[row, :2].tolist(), *sides[row].tolist()],
                "area": float(sides[row].prod()),
                "iscrowd": int(sample.is_crowd[row]),
            }
            if sample.masks is not None:
                runs = encode_rle(sample.masks[row])
                annotation["area"] = float(sum(runs["counts"][1::2]))
                annotation["segmentation"] = compress_rle(runs)
            if sample.keypoints_xyv is not None:
                joints = sample.keypoints_xyv[row].astype(np.float64)
                annotation["keypoints"] = joints.ravel().tolist()
                annotation["num_keypoints"] = int((joints[:, 2] > 0).sum())
            self._annotations.append(annotation)

    def as_coco(self) -> dict:
        """The collection as a COCO data set."""
        return {
            "images": list(self._images.values()),
            "annotations": self._annotations,
            "categories": self._categories,
        }


def coco_ground_truth(
    samples: Source | Iterable[Sample],
    *,
    classes: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
) -> dict:
    """Write samples as a COCO data set.

    Boxes stay in the pixels they are in: letterboxed samples give ground truth in pixels of the
    network input, and results have to be in the same pixels.

    Args:
        samples: a source (each readable image once), or any samples.
        classes: K names; taken from the source if there is one.
        category_ids: K ids; from the source, else 1..K.

    Returns:
        ``images``, ``annotations`` and ``categories``. Where a sample has masks, annotations have a
        ``segmentation`` and ``area`` is the mask's, else it is the box's, in square pixels.
    """
    if classes is None:
        classes = getattr(samples, "classes", None)
        category_ids = category_ids or getattr(samples, "category_ids", None)
    if classes is None:
        raise MetricError("samples without class names; expected a source, or pass classes=.")
    sigmas = getattr(samples, "sigmas", ())
    truth = GroundTruth(classes, category_ids or range(1, len(classes) + 1), sigmas)
    is_source = hasattr(samples, "__getitem__") and hasattr(samples, "classes")
    for sample in each_once(samples) if is_source else samples:  # type: ignore[arg-type]
        truth.add(sample)
    return truth.as_coco()


def detections_to_coco(
    image_id: int,
    boxes_xyxy: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    category_ids: Sequence[int],
    *,
    masks: np.ndarray | None = None,
    mask_scores: np.ndarray | None = None,
) -> list[dict]:
    """Write the detections of one image as COCO results.

    Args:
        image_id: of the image in the ground truth.
        boxes_xyxy: (M, 4), in the pixels of the ground truth.
        scores: (M,).
        classes: (M,), 0..K-1; rows of class -1 are padding and left out, and so are rows with a
            number that is not finite.
        category_ids: K ids.
        masks: (M, H, W) uint8, 0 or 1, H and W of the ground truth's image; None: boxes alone.
        mask_scores: (M,), by which masks are ranked; None: by the scores.

    Returns:
        At most M entries with image_id, category_id, bbox (x, y, width, height) and score, and
        with masks ``segmentation``, compressed run lengths, and perhaps ``mask_score``.
    """
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    scores = np.asarray(scores, np.float64).reshape(-1)
    labels = np.asarray(classes).astype(np.int64).reshape(-1)
    is_real = np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & (labels >= 0)
    results = []
    for row in np.flatnonzero(is_real):
        result = {
            "image_id": int(image_id),
            "category_id": int(category_ids[labels[row]]),
            "bbox": [*boxes[row, :2].tolist(), *(boxes[row, 2:] - boxes[row, :2]).tolist()],
            "score": float(scores[row]),
        }
        if masks is not None:
            result["segmentation"] = compress_rle(encode_rle(masks[row]))
        if mask_scores is not None:
            result["mask_score"] = float(mask_scores[row])
        results.append(result)
    return results


def score_boxes(ground_truth: dict, results: list[dict]) -> dict[str, float]:
    """Score detections as COCO does (IoU 0.50:0.95, at most 100 detections an image).

    Args:
        ground_truth: a COCO data set; see ``coco_ground_truth``. Not changed.
        results: entries with image_id, category_id, bbox (x, y, width, height) and score; see
            ``detections_to_coco``. Not changed; may be empty.

    Returns:
        AP, AP50, AP75, AP_small (below 32x32 px), AP_medium, AP_large (above 96x96 px), AR100, and
        ``AP/<class>`` of every class, 0..1. NaN where the ground truth has no such object.
    """
    check_results(ground_truth, results)
    numbers = np.array([[*result["bbox"], result["score"]] for result in results], np.float64)
    is_finite = np.isfinite(numbers.reshape(-1, 5)).all(axis=1)
    if not is_finite.all():
        first = results[int(np.argmin(is_finite))]
        raise MetricError(
            f"a result of image {first['image_id']} holds {first['bbox']} with score "
            f"{first['score']}; expected finite numbers. Use detections_to_coco, which drops "
            "such rows."
        )
    return average_precision(ground_truth, results, "bbox")


def average_precision(ground_truth: dict, results: list[dict], iou_type: str) -> dict[str, float]:
    """Run COCO's evaluation on checked results; see ``score_boxes``. ``iou_type``: bbox or segm."""
    from faster_coco_eval import COCO, COCOeval_faster

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(_copied(ground_truth))
        found = truth.loadRes([dict(result) for result in results])
        evaluation = COCOeval_faster(truth, found, iouType=iou_type, print_function=logger.debug)
        evaluation.run()
    scores = {name: _or_nan(evaluation.stats[place]) for name, place in _STATS.items()}
    precision = evaluation.eval["precision"]  # (IoU, recall, class, size, detections)
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    is_unique = len(set(names.values())) == len(names)
    for place, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, place, 0, -1]
        values = values[values > -1]
        name = names[category] if is_unique else f"{names[category]} ({category})"
        scores[f"AP/{name}"] = float(values.mean()) if values.size else float("nan")
    return scores


def _or_nan(value: float) -> float:
    return float("nan") if value < 0 else float(value)


def _copied(ground_truth: dict) -> dict:
    """A copy that the evaluation may write into, with the lists it insists on."""
    return {
        "info": dict(ground_truth.get("info", {})),
        "images": [dict(image) for image in ground_truth["images"]],
        "annotations": [dict(annotation) for annotation in ground_truth["annotations"]],
        "categories": [dict(category) for category in ground_truth["categories"]],
    }


def check_results(
    ground_truth: dict, results: list[dict], keys: Sequence[str] = ("bbox", "score")
) -> None:
    """Refuse results that lack a key or are of images that the ground truth does not have."""
    known = {image["id"] for image in ground_truth["images"]}
    if not known:
        raise MetricError("the ground truth has no images; expected at least one.")
    needed = ("image_id", "category_id", *keys)
    for place, result in enumerate(results):
        missing = [key for key in needed if key not in result]
        if missing:
            raise MetricError(
                f"result {place} has no {missing[0]!r}; expected COCO results with "
                f"{', '.join(needed)}. Write them anew."
            )
    unknown = sorted({result["image_id"] for result in results} - known)
    if unknown:
        raise MetricError(
            f"results for image ids {unknown[:3]}{'...' if len(unknown) > 3 else ''} that the "
            f"ground truth ({len(known)} images) does not have; expected its own ids."
        )
