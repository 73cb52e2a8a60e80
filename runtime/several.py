"""Several bundles on the frames of one stream: each finds its own, all are drawn and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.predictor import Timings
from runtime.preprocess import Frame
from runtime.restarting import restart
from runtime.smoothing import Predicts
from runtime.tasks import IouThreshold, ScoreThreshold


@dataclass(frozen=True, slots=True)
class Findings:
    """What several bundles found in one frame.

    Attributes:
        first: of the first bundle. others: name -> of each other.
    """

    first: Any
    others: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As the first's, and "also": {name: as of that bundle}."""
        also = {name: each.to_json() for name, each in self.others.items()}
        return {**self.first.to_json(), "also": also}


class Several:
    """Runs several predictors on each frame; stands where a `Predictor` does.

    Thresholds are the first one's; the others keep their bundles'. None is closed by it.

    Args:
        first: a `Predictor`, or what stands for one.
        others: name -> likewise.
    """

    def __init__(self, first: Predicts, others: Mapping[str, Predicts]) -> None:
        self.first, self.others = first, dict(others)

    def submit(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
        *,
        time_s: float | None = None,
        num_dropped: int = 0,
    ) -> SeveralTicket:
        """Start all on one frame and return; as `Predictor.submit`."""
        about: dict[str, Any] = {"time_s": time_s, "num_dropped": num_dropped}
        first = self.first.submit(frame_bgr, score_threshold, iou_threshold, **about)
        others = {name: each.submit(frame_bgr, **about) for name, each in self.others.items()}
        return SeveralTicket(first, others)

    def restart(self, reason: str = "asked") -> None:
        """All begin anew with the next frame, as after a reconnect."""
        for each in (self.first, *self.others.values()):
            restart(each, reason)

    def draw(self, frame_bgr: Frame, result: Findings) -> Frame:
        """Draw all results into the frame, in place; the first one's lie on top."""
        for name, each in self.others.items():
            each.draw(frame_bgr, result.others[name])
        return self.first.draw(frame_bgr, result.first)


@dataclass(slots=True)
class SeveralTicket:
    """A frame under way in several predictors."""

    first: Any
    others: dict[str, Any]
    found: Findings | None = None

    def result(self) -> Findings:
        """Wait for all; again gives the same."""
        if self.found is None:
            others = {name: ticket.result() for name, ticket in self.others.items()}
            self.found = Findings(self.first.result(), others)
        return self.found

    @property
    def timings(self) -> Timings | None:
        """Of all: what the host did is added up, of the engines' times the longest counts."""
        told: list[Timings | None] = [each.timings for each in (self.first, *self.others.values())]
        known = [each for each in told if each is not None]
        if not known:
            return None
        return dataclasses.replace(
            known[0],
            preprocess_ms=sum(each.preprocess_ms for each in known),
            engine_ms=max(each.engine_ms for each in known),
            finish_ms=sum(each.finish_ms for each in known),
        )
