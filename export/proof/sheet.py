"""A picture of the worst disagreements: PyTorch's detections and masks beside the artifact's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.contract.files import write_bytes
from runtime.contract.joint_matching import TOLD
from runtime.contract.matching import SMALL_MASK_PX, Comparison, Rows, compare_detections
from runtime.contract.outputs import MASK_INSIDE

AGREED_BGR = (120, 180, 60)
ALONE_BGR = (40, 40, 230)
TINTS_BGR = ((200, 90, 30), (30, 160, 220), (170, 60, 170), (60, 170, 60), (30, 90, 200))
BAR_HEIGHT = 22  # pixels, for the words over a pair
MOST_PAIRS = 6


def frame_badness(reference: Rows, candidate: Rows, feeds: Rows) -> float:
    """How far one frame's results lie apart: unmatched ones count most, then masks and pixels."""
    comparison = Comparison()
    compare_detections(reference, candidate, feeds, comparison)
    mask_lack = 1 - min(comparison.mask_ious, default=1.0)
    worst_small = max(comparison.small_mask_errors, default=0) / SMALL_MASK_PX
    masks = 50.0 * max(mask_lack, worst_small)
    joints = 50.0 * (1 - min(comparison.similarities, default=1.0))
    return 100.0 * len(comparison.unmatched) + masks + joints + comparison.max_box_error_px


def write_sheet(
    path: Path,
    frames: NDArray[np.uint8],
    reference: Sequence[Rows],
    candidate: Sequence[Rows],
    feeds: Sequence[Rows],
    classes: Sequence[str],
) -> list[int]:
    """Write the worst frames as a PNG, PyTorch on the left, the artifact on the right.

    Args:
        frames: (N, H, W, 3) uint8 BGR, as the graph took them.
        reference, candidate, feeds: one of each a frame, batch 1.
        classes: names by index.

    Returns:
        The frames shown, worst first; empty, and no file, where all agree to the last pixel.
    """
    badness = [
        frame_badness(ours, theirs, given)
        for ours, theirs, given in zip(reference, candidate, feeds, strict=True)
    ]
    order = sorted(range(len(badness)), key=lambda index: -badness[index])[:MOST_PAIRS]
    order = [index for index in order if badness[index] > 0]
    if not order:
        return []
    rows = []
    for index in order:
        left = _drawn(frames[index], reference[index], candidate[index], classes)
        right = _drawn(frames[index], candidate[index], reference[index], classes)
        bar = np.full((BAR_HEIGHT, 2 * left.shape[1], 3), 32, np.uint8)
        words = f"frame {index}: PyTorch left, artifact right; red has no partner"
        cv2.putText(bar, words, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1)
        rows.append(np.vstack([bar, np.hstack([left, right])]))
    _, png = cv2.imencode(".png", np.vstack(rows))
    write_bytes(path, png.tobytes())
    return order


def _drawn(
    frame: NDArray[np.uint8], ours: Rows, theirs: Rows, classes: Sequence[str]
) -> NDArray[Any]:
    picture = frame.copy()
    _tint_masks(picture, ours)
    _draw_joints(picture, ours)
    partners = _boxes_of(theirs)
    for box, score, label in _boxes_of(ours):
        is_alone = not any(
            other == label and np.abs(box - place).max() <= 2.0 for place, _, other in partners
        )
        colour = ALONE_BGR if is_alone else AGREED_BGR
        x1, y1, x2, y2 = (round(float(side)) for side in box)
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, 1)
        words = f"{classes[label]} {score:.2f}"
        place = (x1, max(10, y1 - 2))
        cv2.putText(picture, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour, 1, cv2.LINE_AA)
    return picture


def _tint_masks(picture: NDArray[np.uint8], rows: Rows) -> None:
    """Mix the colours of the rows into what their masks say is inside, at network size."""
    if "masks" not in rows:
        return
    size_wh = picture.shape[1::-1]
    for index in reversed(range(int(rows["num_detections"][0]))):
        soft = cv2.resize(rows["masks"][0][index], size_wh, interpolation=cv2.INTER_LINEAR)
        inside = soft >= MASK_INSIDE
        tint = np.array(TINTS_BGR[int(rows["classes"][0][index]) % len(TINTS_BGR)])
        picture[inside] = (picture[inside] * 0.5 + tint * 0.5).astype(np.uint8)


def _draw_joints(picture: NDArray[np.uint8], rows: Rows) -> None:
    """A cross at each joint that the rows are sure of, in the joint's colour."""
    if "keypoints_xyc" not in rows:
        return
    keypoints = rows["keypoints_xyc"][0]
    people = keypoints[: int(rows["num_detections"][0])] if keypoints.ndim == 3 else keypoints[None]
    for person in people:
        for place, (x, y, confidence) in enumerate(person.tolist()):
            if confidence >= TOLD and np.isfinite((x, y)).all():
                tint = TINTS_BGR[place % len(TINTS_BGR)]
                at = (round(x), round(y))
                cv2.drawMarker(picture, at, tint, cv2.MARKER_CROSS, 4, 1)


def _boxes_of(rows: Rows) -> list[tuple[NDArray[Any], float, int]]:
    count = int(rows["num_detections"][0]) if "num_detections" in rows else 0
    return [
        (rows["boxes_xyxy"][0][i], float(rows["scores"][0][i]), int(rows["classes"][0][i]))
        for i in range(count)
    ]
