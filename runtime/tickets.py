"""Frames under way in a predictor, and where their time went."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from runtime.contract.errors import SessionError
from runtime.feeding import Prepared
from runtime.keyframes import Choice
from runtime.results import Detections
from runtime.sessions.base import Ticket

if TYPE_CHECKING:
    from runtime.predictor import Predictor


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one frame or batch went, in milliseconds.

    Attributes:
        preprocess_ms: frames to the network's input.
        engine_ms: from submission until the results are read; with overlap, other work included.
        finish_ms: outputs to results in source pixels.
        graph: that ran: "model", or "key" or "nonkey" of a temporal model.
    """

    preprocess_ms: float
    engine_ms: float
    finish_ms: float
    graph: str = "model"


class FrameTicket:
    """A frame under way, by itself or as a row of a batch."""

    def __init__(self, ticket: BatchTicket, row: int = 0) -> None:
        self._ticket = ticket
        self._row = row

    def result(self) -> Detections:
        """Wait for the frame's result; again gives the same."""
        return self._ticket.results()[self._row]

    @property
    def timings(self) -> Timings | None:
        """Where the time went; None until `result` was called."""
        return self._ticket.timings


class BatchTicket:
    """A batch under way; its memory goes back when the engine has read it."""

    def __init__(
        self,
        predictor: Predictor,
        ticket: Ticket,
        prepared: Prepared,
        marks: tuple[float, float],
        choice: Choice | None,
    ) -> None:
        self.timings: Timings | None = None
        self._predictor = predictor
        self._ticket = ticket
        self._prepared: Prepared | None = prepared
        self._marks = marks
        self._choice = choice
        self._results: list[Detections] = []

    def results(self) -> list[Detections]:
        if self._prepared is None:
            return self._results
        predictor, choice, (start, submitted) = self._predictor, self._choice, self._marks
        try:
            outputs = self._ticket.result()
        except SessionError:
            predictor.restart("error")
            raise
        answered = perf_counter()
        prepared, self._prepared = self._prepared, None
        self._results = predictor.finish(prepared, outputs, choice, self._ticket.compute_ms)
        end = perf_counter()
        self.timings = Timings(
            (submitted - start) * 1e3,
            (answered - submitted) * 1e3,
            (end - answered) * 1e3,
            "model" if choice is None else choice.graph,
        )
        predictor.timings = self.timings
        return self._results
