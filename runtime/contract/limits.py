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
    """

    box_px: float
    score: float
    unmatched: float
    near: float
    is_rounded: bool = False


# fp16: half has 11 bits. On 500 street frames (5905 results) a small RetinaNet in half was off by
# 0.024 px and 0.0005 in score at the 99th percentile; the most was 34 px, where the other of two
# boxes was kept. 9 results (0.15 %) were unmatched, 8 of them within 0.0005 of a threshold, and AP
# moved by 0.00001. The limits leave room for larger boxes (the error grows with the anchor) and
# other networks; AP has the last word.
LIMITS = {
    "fp32": Limits(box_px=0.05, score=1e-3, unmatched=1e-3, near=NEAR_A_DECISION),
    "fp16": Limits(box_px=0.5, score=0.01, unmatched=0.02, near=0.005, is_rounded=True),
}


def limits_of(precision: str) -> Limits:
    """The limits of a precision; one without limits of its own is judged as fp16."""
    return LIMITS.get(precision, LIMITS["fp16"])


def judge(figures: dict[str, Any], limits: Limits) -> list[str]:
    """Why an artifact differs too much, by what `Comparison.summary` counted."""
    reasons = []
    which = "p99" if limits.is_rounded else "max"
    box, score = figures[f"{which}_box_error_px"], figures[f"{which}_score_error"]
    if box > limits.box_px:
        reasons.append(f"box error {box:.3g} px ({which}) > {limits.box_px} px")
    if score > limits.score:
        reasons.append(f"score error {score:.2g} ({which}) > {limits.score}")
    share = figures["unmatched"] / max(1, figures["matched"])
    if share > limits.unmatched or (figures["unexplained"] and not limits.is_rounded):
        reasons.append(
            f"{figures['unmatched']} results unmatched of {figures['matched']}, "
            f"{figures['unexplained']} of them far from any threshold"
        )
    return reasons
