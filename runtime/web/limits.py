"""Thresholds of one source, as they are asked for by HTTP and as a graph takes them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.contract.manifest import Manifest
from runtime.contract.outputs import IOU_THRESHOLD, SCORE_THRESHOLD


class LimitsError(ValueError):
    """Thresholds that a bundle does not take."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds in use, 0..1; a score must exceed its own, and 1 filters a class out.

    Attributes:
        score: of classes that have none of their own; None of a bundle that takes none.
        per_class: class name -> score threshold.
        iou: boxes of a class that overlap more are one object; None likewise.
        row: (K,) float32, the same for the graph.
    """

    score: float | None
    per_class: Mapping[str, float]
    iou: float | None
    row: NDArray[np.float32] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, manifest: Manifest, score: float | None = None, iou: float | None = None) -> Limits:
        """A bundle's own thresholds, or those that the command line gives for it; above 1 is 1."""
        defaults = manifest.defaults
        takes_score, takes_iou = takes(manifest)
        own = cls(
            min(defaults.score_threshold if score is None else score, 1.0) if takes_score else None,
            {},
            min(defaults.iou_threshold if iou is None else iou, 1.0) if takes_iou else None,
        )
        return own._with_row(manifest)

    def changed(self, manifest: Manifest, asked: Mapping[str, Any]) -> Limits:
        """These limits with what a request asks for.

        Args:
            manifest: gives the classes, and says which thresholds there are.
            asked: {"score": {"default": 0..1, "per_class": {name: 0..1}, "classes": {name: 0..1
                or None}}, "iou": 0..1}, each of them optional; what is left out stays. `per_class`
                replaces the table before; `classes` changes these alone, None lets go of one.

        Raises:
            LimitsError: an unknown field or class, no number of 0 to 1, a threshold that the
                bundle does not take.
        """
        _refuse_unknown("thresholds", asked, ("score", "iou"))
        limits = self
        takes_score, takes_iou = takes(manifest)
        if asked.get("score") is not None:
            if not takes_score:
                raise LimitsError(f"a bundle of task {manifest.task} takes no score threshold")
            table = _as_table("score", asked["score"])
            _refuse_unknown("score", table, ("default", "per_class", "classes"))
            if table.get("default") is not None:
                limits = replace(limits, score=_as_share("score.default", table["default"]))
            if table.get("per_class") is not None:
                own = _per_class(manifest, "per_class", table["per_class"])
                limits = replace(limits, per_class=own)
            if table.get("classes") is not None:
                changes = _as_table("score.classes", table["classes"])
                given = {name: value for name, value in changes.items() if value is not None}
                _per_class(manifest, "classes", dict.fromkeys(changes, 0))  # the names
                own = {**limits.per_class, **_per_class(manifest, "classes", given)}
                own = {name: own[name] for name in own if name not in changes or name in given}
                limits = replace(limits, per_class=own)
        if asked.get("iou") is not None:
            if not takes_iou:
                raise LimitsError("the bundle takes no iou: its network finds each object once")
            limits = replace(limits, iou=_as_share("iou", asked["iou"]))
        return limits._with_row(manifest)

    def to_json(self) -> dict[str, Any]:
        """{"score": {"default", "per_class"}, "iou"}."""
        return {
            "score": {"default": self.score, "per_class": dict(self.per_class)},
            "iou": self.iou,
        }

    def _with_row(self, manifest: Manifest) -> Limits:
        if self.score is None:
            return self
        given = [self.per_class.get(name, self.score) for name in manifest.classes]
        return replace(self, row=np.asarray(given, np.float32))


def takes(manifest: Manifest) -> tuple[bool, bool]:
    """Whether a bundle takes score thresholds, and one of overlap."""
    return SCORE_THRESHOLD in manifest.inputs, IOU_THRESHOLD in manifest.inputs


def _per_class(manifest: Manifest, field_name: str, given: Any) -> dict[str, float]:
    table = _as_table(f"score.{field_name}", given)
    for name in table:
        if name not in manifest.classes:
            near = difflib.get_close_matches(name, manifest.classes, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "choose one of GET /api/thresholds"
            raise LimitsError(f"the bundle has no class {name[:60]!r}; {hint}")
    where = f"score.{field_name} of"
    return {name: _as_share(f"{where} {name}", value) for name, value in table.items()}


def _as_share(name: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:  # of NaN neither is true
        raise LimitsError(f"{name} is {_shown(value)}; expected a number of 0 to 1")
    return float(value)


def _as_table(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LimitsError(f"{name} is {_shown(value)}; expected an object")
    return value


def _refuse_unknown(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in table:
        if name not in known:
            raise LimitsError(
                f"{where} has the unknown field {_shown(name)}; expected {' or '.join(known)}"
            )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
