"""How far an artifact's detections may lie from PyTorch's and still pass, by precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.contract.matching import NEAR_A_DECISION


@dataclass(frozen=True, slots=True)
class Limits:
    """What an artifact may differ by and still pass.

    Attributes:
        box_px, score: largest errors of matched results.
        unmatched: share of all results.
        near: a result this close to a threshold may be unmatched.
        is_rounded: the worst hundredth of matched results may exceed box_px and score, and
            unmatched results may lie anywhere: where two boxes of one object score nearly the same,
            rounding decides which one is kept, and what that one suppresses.
        mask_iou: least overlap of the masks of matched results, but for the worst hundredth.
        worst_mask_iou: of all of them.
        small_mask_px: how many pixels of a small mask may differ, but for the worst hundredth.
        joint_px: largest distance of matched joints, but for the worst hundredth.
        oks: least object keypoint similarity of matched results, but for the worst hundredth.
        change_px: how far `change` of a frame between key frames may be off, network pixels.
    """

    box_px: float
    score: float
    unmatched: float
    near: float
    is_rounded: bool = False
    mask_iou: float = 0.9
    worst_mask_iou: float = 0.0
    small_mask_px: float = 4.0
    change_px: float = 0.25
    joint_px: float = 2.0
    oks: float = 0.95


# fp16: half has 11 bits. On 500 street frames (5905 results) a small RetinaNet in half was off by
# 0.024 px and 0.0005 in score at the 99th percentile; the most was 34 px, where the other of two
# boxes was kept. 9 results (0.15 %) were unmatched, 8 of them within 0.0005 of a threshold, and AP
# moved by 0.00001. The limits leave room for larger boxes (the error grows with the anchor) and
# other networks; AP has the last word.
# int8: 255 levels. On 64 street frames (740 results) the same network was off by 5.4 px and 0.03 in
# score at the 99th percentile, and 4.4 % of the results were unmatched, nearly all of them close to
# a threshold, while AP moved by 0.0008. AP judges int8; the limits catch what is broken.
# Masks: on 64 street frames (751 results) a trained small YOLACT had a mask IoU of 0.987 (p1) and
# 0.91 (min) in half, with small masks the same to the pixel; in int8 0.74 (p1) and 0.21 (min), and
# 3.3 px of small masks (p99), while mask AP moved by 0.0003 and 0.0013.
LIMITS = {
    "fp32": Limits(
        box_px=0.05,
        score=1e-3,
        unmatched=1e-3,
        near=NEAR_A_DECISION,
        mask_iou=0.99,
        worst_mask_iou=0.8,
        small_mask_px=1.0,
        change_px=0.01,
        joint_px=0.1,
        oks=0.999,
    ),
    "fp16": Limits(
        box_px=0.5,
        score=0.01,
        unmatched=0.02,
        near=0.005,
        is_rounded=True,
        mask_iou=0.93,
        small_mask_px=2.0,
    ),
    "int8": Limits(
        box_px=16.0,
        score=0.1,
        unmatched=0.15,
        near=0.05,
        is_rounded=True,
        mask_iou=0.6,
        small_mask_px=8.0,
        change_px=4.0,
        joint_px=16.0,
        oks=0.5,
    ),
}
LIMITS["mixed"] = LIMITS["int8"]  # it may be int8 throughout


def limits_of(precision: str) -> Limits:
    """The limits of a precision; one without limits of its own is judged as fp16."""
    return LIMITS.get(precision, LIMITS["fp16"])


def _judge_masks(figures: dict[str, Any], limits: Limits) -> list[str]:
    checks = (
        ("p1_mask_iou", "mask IoU {:.3g} (p1) < {:g}", limits.mask_iou, -1),
        ("min_mask_iou", "mask IoU {:.3g} (min) < {:g}", limits.worst_mask_iou, -1),
        ("p99_small_mask_error_px", "small masks differ in {:g} px (p99) > {:g} px",
         limits.small_mask_px, 1),
    )  # fmt: skip
    return [
        text.format(figures[name], limit)
        for name, text, limit, sign in checks
        if sign * figures[name] > sign * limit
    ]


def _judge_joints(figures: dict[str, Any], limits: Limits) -> list[str]:
    reasons = []
    if not figures["p99_joint_error_px"] <= limits.joint_px:
        error = figures["p99_joint_error_px"]
        reasons.append(f"joint error {error:.3g} px (p99) > {limits.joint_px} px")
    if not figures["p1_oks"] >= limits.oks:
        reasons.append(f"OKS {figures['p1_oks']:.4g} (p1) < {limits.oks}")
    return reasons


def judge(figures: dict[str, Any], limits: Limits) -> list[str]:
    """Why an artifact differs too much, by what `Comparison.summary` counted."""
    reasons = []
    which = "p99" if limits.is_rounded else "max"
    box, score = figures[f"{which}_box_error_px"], figures[f"{which}_score_error"]
    if box > limits.box_px:
        reasons.append(f"box error {box:.3g} px ({which}) > {limits.box_px} px")
    if score > limits.score:
        reasons.append(f"score error {score:.2g} ({which}) > {limits.score}")
    reasons += _judge_masks(figures, limits) if "p1_mask_iou" in figures else []
    reasons += _judge_joints(figures, limits) if "p1_oks" in figures else []
    if not figures.get("max_change_error_px", 0.0) <= limits.change_px:
        change = figures["max_change_error_px"]
        reasons.append(f"change error {change:.3g} px (max) > {limits.change_px} px")
    share = figures["unmatched"] / max(1, figures["matched"])
    if share > limits.unmatched or (figures["unexplained"] and not limits.is_rounded):
        reasons.append(
            f"{figures['unmatched']} results unmatched of {figures['matched']}, "
            f"{figures['unexplained']} of them far from any threshold"
        )
    return reasons
