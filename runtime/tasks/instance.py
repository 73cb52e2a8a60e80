"""Instance segmentation: detection's thresholds and boxes, and a mask for each box."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from runtime.contract.manifest import Manifest
from runtime.masks import Masks
from runtime.preprocess import Letterbox
from runtime.results import Detections
from runtime.sessions.base import Array
from runtime.tasks import detection

thresholds = detection.thresholds
draw = detection.draw


def finish(
    outputs: Mapping[str, Array], letterboxes: Sequence[Letterbox], manifest: Manifest
) -> list[Detections]:
    """Take the graph's outputs back to the source frames; masks stay small until asked for.

    Args:
        outputs: as in runtime.contract.outputs, batch B; mask_scores only of some models.
        letterboxes: of the first frames of the batch; rows beyond them are padding.
        manifest: gives the class names.

    Returns:
        One Detections per letterbox, with masks.
    """
    results = []
    found = detection.finish(outputs, letterboxes, manifest)
    for row, (result, letterbox) in enumerate(zip(found, letterboxes, strict=True)):
        # A copy of the rows that are filled: the batch's array is not held by one result.
        soft = np.array(outputs["masks"][row, : len(result)], np.uint8)
        masks = Masks(soft, letterbox)
        told = outputs.get("mask_scores")
        scores = None if told is None else np.array(told[row, : len(result)], np.float32)
        results.append(dataclasses.replace(result, masks=masks, mask_scores=scores))
    return results
