"""Two runs of one detector, held against each other detection by detection.

A result over the threshold by a margin must be found by the other side at the threshold. What is
left over is listed with how close it lay to a decision: a score at its threshold, an overlap at
the suppression's. Tensors are not compared: two right answers may differ
in the order of equal scores.

Masks of matched results are compared at prototype size, where the network gives them: the overlap
of what is inside. A mask of few pixels is judged by how many of them differ: one is much of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.contract.joint_matching import CROP_SHARE, joint_distances, similarity
from runtime.contract.outputs import MASK_INSIDE

MATCH_IOU = 0.5  # below this two boxes are not the same object
SAME_PLACE_PX = 0.5  # boxes this close may be the same, also without an area that could overlap
SMALL_MASK_PX = 16  # masks of fewer pixels on both sides are small
NEAR_A_DECISION = 1e-4  # a score or an overlap this close to its threshold may fall either way


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A result that the other side lacks.

    Attributes:
        image: index of the frame. side: "reference" or "candidate", who has it.
        class_index, score: of the result.
        score_margin: its score's distance from the threshold.
        iou_margin: least distance of an overlap with a kept box from the suppression's threshold.
    """

    image: int
    side: str
    class_index: int
    score: float
    score_margin: float
    iou_margin: float

    @property
    def margin(self) -> float:
        """How far it lay from the nearest threshold, in units of a score or of an overlap."""
        return min(self.score_margin, self.iou_margin)

    @property
    def is_explained(self) -> bool:
        """Whether it lay within NEAR_A_DECISION of a threshold."""
        return self.margin <= NEAR_A_DECISION


@dataclass(slots=True)
class Comparison:
    """What came of holding results against each other.

    Attributes:
        num_matched: pairs. box_errors: (n,) largest corner difference of each pair, pixels; pairs
            of boxes without an area are left out.
        score_errors: absolute differences of the pairs' scores, and of their masks' where there
            are any. unmatched: the rest.
        mask_ious: of the pairs that have masks, but small ones.
        small_mask_errors: of pairs with small masks, how many pixels differ; none of empty ones.
        change_errors: of frames that say how far they have moved, pixels.
        joint_errors: of pairs with joints, distances of those the reference is sure of, pixels.
        similarities: of these pairs, object keypoint similarity, 0..1.
        sigmas: its constants, one a joint.
    """

    num_matched: int = 0
    box_errors: list[float] = field(default_factory=list)
    score_errors: list[float] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)
    mask_ious: list[float] = field(default_factory=list)
    small_mask_errors: list[int] = field(default_factory=list)
    change_errors: list[float] = field(default_factory=list)
    joint_errors: list[float] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    sigmas: tuple[float, ...] = ()

    @property
    def max_box_error_px(self) -> float:
        return max(self.box_errors, default=0.0)

    @property
    def max_score_error(self) -> float:
        return max(self.score_errors, default=0.0)

    def summary(self, near: float = NEAR_A_DECISION) -> dict[str, Any]:
        """The figures, for verify.json; `near` is how close to a threshold explains a result."""
        figures = {
            "matched": self.num_matched,
            "unmatched": len(self.unmatched),
            "unexplained": sum(not u.margin <= near for u in self.unmatched),  # NaN is not
            "max_box_error_px": round(self.max_box_error_px, 6),
            "p99_box_error_px": round(_percentile(self.box_errors), 6),
            "max_score_error": round(self.max_score_error, 8),
            "p99_score_error": round(_percentile(self.score_errors), 8),
        }
        if self.mask_ious or self.small_mask_errors:
            lacks = [1 - iou for iou in self.mask_ious]
            figures |= {
                "min_mask_iou": round(1 - max(lacks, default=0.0), 6),
                "p1_mask_iou": round(1 - _percentile(lacks), 6),
                "small_masks": len(self.small_mask_errors),
                "p99_small_mask_error_px": round(_percentile(self.small_mask_errors), 2),
            }
        if self.similarities:
            figures |= {
                "max_joint_error_px": round(max(self.joint_errors, default=0.0), 6),
                "p99_joint_error_px": round(_percentile(self.joint_errors), 6),
                "min_oks": round(min(self.similarities), 6),
                "p1_oks": round(1 - _percentile([1 - each for each in self.similarities]), 6),
            }
        if self.change_errors:
            figures["max_change_error_px"] = round(float(np.max(self.change_errors)), 6)
        return figures


def _percentile(errors: Sequence[float]) -> float:
    return float(np.percentile(errors, 99)) if errors else 0.0


Rows = dict[str, NDArray[Any]]
_COMPARED = ("boxes_xyxy", "scores", "classes", "masks", "mask_scores", "keypoints_xyc")


def compare_detections(
    reference: Rows, candidate: Rows, feeds: Rows, comparison: Comparison, first_image: int = 0
) -> None:
    """Add the frames of two result sets to a comparison.

    Args:
        reference, candidate: the graph's outputs: num_detections (B,), boxes_xyxy (B, M, 4),
            scores (B, M), classes (B, M), and of a task with masks, masks (B, M, h, w) uint8 and
            perhaps mask_scores (B, M); of frames between key frames change (B,); of a task with
            joints keypoints_xyc (B, M, J, 3). Of crops keypoints_xyc (B, J, 3) alone.
        feeds: score_threshold (B, K) that both ran with, and iou_threshold (B,) if they take it;
            of crops image (B, H, W, 3).
        first_image: index of the first frame.
    """
    if "num_detections" not in reference:
        height, width = feeds["image"].shape[1:3]
        for pair in zip(reference["keypoints_xyc"], candidate["keypoints_xyc"], strict=True):
            comparison.num_matched += 1
            _compare_joints(*pair, CROP_SHARE * height * width, comparison)
        return
    names = [name for name in reference if name in _COMPARED]
    for row in range(len(reference["num_detections"])):
        sides = []
        for rows in (reference, candidate):
            count = int(rows["num_detections"][row])
            sides.append({name: rows[name][row][:count] for name in names})
        overlap = float(feeds["iou_threshold"][row]) if "iou_threshold" in feeds else np.inf
        limits = feeds["score_threshold"][row], overlap
        _compare_frame(sides[0], sides[1], limits, first_image + row, comparison)
    if "change" in reference:
        errors = np.abs(reference["change"].astype(np.float64) - candidate["change"])
        comparison.change_errors.extend(errors.tolist())


def _compare_frame(
    ours: Rows, theirs: Rows, limits: tuple[NDArray[Any], float], image: int, out: Comparison
) -> None:
    boxes_a, boxes_b = ours["boxes_xyxy"], theirs["boxes_xyxy"]
    iou = pairwise_iou(boxes_a, boxes_b)
    distance_px = np.abs(boxes_a[:, None] - boxes_b[None]).max(-1)  # (N, M)
    iou = np.where(distance_px <= SAME_PLACE_PX, np.maximum(iou, 1 - distance_px), iou)
    same = ours["classes"][:, None] == theirs["classes"][None, :]
    iou = np.where(same, iou, -1.0)
    # Equal boxes of one class may both be kept at other scores: prefer the pair nearest in score.
    gap = np.abs(ours["scores"][:, None].astype(np.float64) - theirs["scores"][None, :])
    quality = np.where((iou >= MATCH_IOU) & np.isfinite(gap), iou - gap, -2.0)
    free_ours = np.ones(len(ours["scores"]), bool)
    free_theirs = np.ones(len(theirs["scores"]), bool)
    for flat in np.argsort(-quality, axis=None, kind="stable"):
        a, b = divmod(int(flat), max(1, len(free_theirs)))
        if quality[a, b] < -1.5:
            break
        if free_ours[a] and free_theirs[b]:
            free_ours[a] = free_theirs[b] = False
            if not (_is_flat(boxes_a[a]) and _is_flat(boxes_b[b])):
                out.box_errors.append(float(distance_px[a, b]))
            out.score_errors.append(float(gap[a, b]))
            out.num_matched += 1
            if "masks" in ours:
                _compare_masks(ours["masks"][a], theirs["masks"][b], out)
            if "keypoints_xyc" in ours:
                area = float((boxes_a[a, 2:] - boxes_a[a, :2]).prod())
                _compare_joints(ours["keypoints_xyc"][a], theirs["keypoints_xyc"][b], area, out)
            if "mask_scores" in ours:
                error = abs(float(ours["mask_scores"][a]) - float(theirs["mask_scores"][b]))
                out.score_errors.append(error)
    for side, rows, free in (("reference", ours, free_ours), ("candidate", theirs, free_theirs)):
        others = theirs if side == "reference" else ours
        for index in np.flatnonzero(free):
            out.unmatched.append(_explain(rows, int(index), others, limits, image, side))


def _compare_joints(ours: NDArray[Any], theirs: NDArray[Any], area: float, out: Comparison) -> None:
    out.joint_errors.extend(joint_distances(ours, theirs).tolist())
    out.similarities.append(similarity(ours, theirs, area, out.sigmas))
    gap = float(np.abs(ours[:, 2].astype(np.float64) - theirs[:, 2]).max(initial=0.0))
    out.score_errors.append(gap if np.isfinite(gap) else np.inf)


def _compare_masks(ours: NDArray[Any], theirs: NDArray[Any], out: Comparison) -> None:
    inside_a, inside_b = ours >= MASK_INSIDE, theirs >= MASK_INSIDE
    num_differing = int(np.count_nonzero(inside_a != inside_b))
    num_larger = max(np.count_nonzero(inside_a), np.count_nonzero(inside_b))
    if num_larger < SMALL_MASK_PX:
        out.small_mask_errors.append(num_differing)
    else:
        num_either = int(np.count_nonzero(inside_a | inside_b))
        out.mask_ious.append(1 - num_differing / num_either)


def _is_flat(box_xyxy: NDArray[Any]) -> bool:
    """Whether a box has no area: it lay outside the frame and was clipped to its edge.

    Where it lay may be thousands of pixels off, and rounding with it: its error says nothing.
    """
    return bool(box_xyxy[2] <= box_xyxy[0] or box_xyxy[3] <= box_xyxy[1])


def _explain(
    rows: Rows,
    index: int,
    others: Rows,
    limits: tuple[NDArray[Any], float],
    image: int,
    side: str,
) -> Unmatched:
    label, score = int(rows["classes"][index]), float(rows["scores"][index])
    box = rows["boxes_xyxy"][index : index + 1]
    overlaps = [
        pairwise_iou(box, kept["boxes_xyxy"][kept["classes"] == label])[0]
        for kept in (rows, others)
    ]
    overlap = np.concatenate(overlaps)
    overlap = overlap[overlap < 1 - 1e-9]  # not the box itself
    iou_margin = float(np.abs(overlap - limits[1]).min()) if len(overlap) else float("inf")
    score_margin = abs(score - float(limits[0][label]))
    return Unmatched(image, side, label, score, score_margin, iou_margin)


def pairwise_iou(boxes_a: NDArray[Any], boxes_b: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union in float64: (N, 4) and (M, 4) xyxy to (N, M)."""
    a, b = boxes_a.astype(np.float64)[:, None], boxes_b.astype(np.float64)[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).prod(-1)
    iou: NDArray[np.float64] = inter / np.maximum(area_a + area_b - inter, 1e-12)
    return iou
