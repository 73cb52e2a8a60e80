"""Average precision of masks as COCO defines it, by faster-coco-eval."""

from __future__ import annotations

import math

from training.data.outlines import compress_rle, run_lengths
from training.metrics.detection import MetricError, average_precision, check_results


def score_masks(ground_truth: dict, results: list[dict]) -> dict[str, float]:
    """Score the masks of detections as COCO does (IoU 0.50:0.95, at most 100 an image).

    Args:
        ground_truth: a COCO data set with ``segmentation``, such as `GroundTruth` collects from
            samples with masks. Not changed.
        results: entries with image_id, category_id, score and ``segmentation``, run lengths of the
            size of their image; see ``detections_to_coco``. A ``mask_score`` counts in place of
            the score. Boxes are not looked at: objects are small or large by the area of their
            masks. Not changed; may be empty.

    Returns:
        mask_AP, mask_AP50, mask_AP75, mask_AP_small (below 32x32 px), mask_AP_medium,
        mask_AP_large (above 96x96 px), mask_AR100, and ``mask_AP/<class>`` of every class, 0..1.
        NaN where the ground truth has no such object.
    """
    check_results(ground_truth, results, ("segmentation", "score"))
    bare = [item for item in ground_truth["annotations"] if not item.get("segmentation")]
    if bare:
        raise MetricError(
            f"{len(bare)} of {len(ground_truth['annotations'])} objects of the ground truth have "
            f"no mask (the first of image {bare[0]['image_id']}); expected one each. Use data "
            "with masks."
        )
    sizes = {item["id"]: [item["height"], item["width"]] for item in ground_truth["images"]}
    masks = [_mask_result(result, sizes[result["image_id"]]) for result in results]
    scores = average_precision(ground_truth, masks, "segm")
    return {f"mask_{name}": value for name, value in scores.items()}


def _mask_result(result: dict, size_hw: list[int]) -> dict:
    """A result without its box, which COCO's tools would take the area of; its mask compressed."""
    where, mask = f"of image {result['image_id']}", result["segmentation"]
    size = list(mask.get("size", ())) if isinstance(mask, dict) else type(mask).__name__
    if size != size_hw:
        raise MetricError(
            f"a mask {where} has the size {size}; expected run lengths of {size_hw} (height, "
            "width), as the image. Make masks in pixels of the source frame."
        )
    score = result.get("mask_score", result["score"])
    if not math.isfinite(score):
        raise MetricError(
            f"a result {where} has score {score}; expected a finite number. "
            "Use detections_to_coco, which drops such rows."
        )
    try:
        runs = run_lengths(mask)  # COCO's own tools hang on runs that do not fill the image
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise MetricError(
            f"a mask {where} cannot be read ({error}); expected COCO's run lengths. "
            "Write the results anew."
        ) from None
    if not isinstance(mask["counts"], str | bytes):
        mask = compress_rle({"size": size_hw, "counts": runs.tolist()})
    names = ("image_id", "category_id")
    return {**{name: result[name] for name in names}, "score": score, "segmentation": mask}
