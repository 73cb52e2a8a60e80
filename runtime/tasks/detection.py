"""Detection: thresholds in, boxes of the source frame out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.contract.manifest import Manifest
from runtime.contract.outputs import IOU_THRESHOLD
from runtime.preprocess import Frame, Letterbox
from runtime.results import Detections
from runtime.sessions.base import Array
from runtime.tasks import IouThreshold, ScoreThreshold


def thresholds(
    manifest: Manifest,
    batch: int,
    score_threshold: ScoreThreshold = None,
    iou_threshold: IouThreshold = None,
) -> dict[str, Array]:
    """The graph's threshold inputs.

    Args:
        manifest: gives the classes and the defaults.
        batch: B.
        score_threshold: what a score must exceed, 0 or more: one number; K numbers, one a class;
            {class name: number}, others at the default; (B, K), one row an image; None for the
            bundle's default. A class at 1 or more is filtered out.
        iou_threshold: 0..1: boxes of a class that overlap more are one object; one number, or B.

    Returns:
        {"score_threshold": (B, K) float32, "iou_threshold": (B,) float32}; the second only of a
        bundle that suppresses overlaps.

    Raises:
        ValueError: an unknown class, a wrong count, a number out of range, an iou_threshold for a
            bundle that takes none.
    """
    scores = _score_row(manifest, score_threshold)
    _check_numbers("score_threshold", scores, math.inf)
    num_classes = len(manifest.classes)
    if scores.shape not in ((), (num_classes,), (batch, num_classes)):
        raise ValueError(
            f"score_threshold has shape {scores.shape}; expected one number, {num_classes} "
            f"(one a class) or {(batch, num_classes)}."
        )
    limits = {"score_threshold": np.broadcast_to(scores, (batch, num_classes)).copy()}
    if IOU_THRESHOLD not in manifest.inputs:
        if iou_threshold is not None:
            raise ValueError(
                f"iou_threshold is {iou_threshold}; the bundle takes none, its network finds each "
                "object once and suppresses nothing. Leave it out."
            )
        return limits
    default = manifest.defaults.iou_threshold
    ious = np.asarray(default if iou_threshold is None else iou_threshold, np.float32)
    _check_numbers("iou_threshold", ious, 1.0)
    if ious.shape not in ((), (batch,)):
        raise ValueError(
            f"iou_threshold has shape {ious.shape}; expected one number or {batch}, one an image."
        )
    return limits | {"iou_threshold": np.broadcast_to(ious, (batch,)).copy()}


def finish(
    outputs: Mapping[str, Array], letterboxes: Sequence[Letterbox], manifest: Manifest
) -> list[Detections]:
    """Take the graph's outputs back to the source frames.

    Args:
        outputs: as in runtime.contract.outputs, batch B.
        letterboxes: of the first frames of the batch; rows beyond them are padding.
        manifest: gives the class names.

    Returns:
        One Detections per letterbox.
    """
    results = []
    for row, letterbox in enumerate(letterboxes):
        count = int(outputs["num_detections"][row])
        boxes_xyxy = letterbox.to_source(_as_float(outputs["boxes_xyxy"][row, :count]))
        scores = _as_float(outputs["scores"][row, :count])
        classes = np.asarray(outputs["classes"][row, :count], np.int32)
        results.append(Detections(boxes_xyxy, scores, classes, manifest.classes))
    return results


def draw(frame_bgr: Frame, result: Detections) -> Frame:
    """Draw boxes and labels into the frame, in place."""
    from runtime.draw import draw_detections

    return draw_detections(frame_bgr, result)


def _as_float(array: Array) -> NDArray[np.float32]:
    return np.asarray(array, np.float32)


def _score_row(manifest: Manifest, score_threshold: ScoreThreshold) -> NDArray[np.float32]:
    default = manifest.defaults.score_threshold
    if score_threshold is None:
        return np.asarray(default, np.float32)
    if not isinstance(score_threshold, Mapping):
        return np.asarray(score_threshold, np.float32)
    row = np.full(len(manifest.classes), default, np.float32)
    for name, value in score_threshold.items():
        if name not in manifest.classes:
            near = difflib.get_close_matches(str(name), manifest.classes, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "choose one of them."
            have = ", ".join(manifest.classes[:10])
            raise ValueError(
                f"score_threshold names the class {name!r}; the bundle has {have}"
                f"{', ...' if len(manifest.classes) > 10 else ''}; {hint}"
            )
        row[manifest.classes.index(name)] = value
    return row


def _check_numbers(name: str, values: NDArray[np.float32], limit: float) -> None:
    is_good = np.isfinite(values) & (values >= 0) & (values <= limit)
    if not is_good.all():
        bad = float(values[~is_good].flat[0])
        expected = "0 or more" if math.isinf(limit) else f"0 to {limit:g}"
        raise ValueError(f"{name} is {bad:g}; expected {expected}.")
