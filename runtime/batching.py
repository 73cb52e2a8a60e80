"""Frames of several cameras in one engine call, each camera seeing a predictor of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.contract.manifest import Manifest
from runtime.predictor import FrameTicket, Predictor, Timings
from runtime.preprocess import Frame
from runtime.results import Detections
from runtime.tasks import IouThreshold, ScoreThreshold


class MicroBatcher:
    """Collects what cameras submit until `flush`, then runs it in batches that are full.

    A batch is never padded: on a CPU a padded row costs as much as a frame. Of a model without
    state only; one with state gives each camera a stream (`Predictor.open_stream`). For one thread.

    Args:
        predictor: runs them; not closed.
    """

    def __init__(self, predictor: Predictor) -> None:
        assert not predictor.manifest.state
        self.predictor = predictor
        self._waiting: list[BatchedTicket] = []

    @property
    def batches(self) -> tuple[int, ...]:
        """How many frames one engine call may take, rising, from 1."""
        return self.predictor.batches

    def open_stream(self) -> BatchedPredictor:
        """A predictor for one camera."""
        return BatchedPredictor(self)

    def submit(self, frame_bgr: Frame, score: ScoreThreshold, iou: IouThreshold) -> BatchedTicket:
        """Note a frame for the next `flush`."""
        ticket = BatchedTicket(self, frame_bgr, score, iou)
        self._waiting.append(ticket)
        return ticket

    def flush(self) -> None:
        """Start everything that was submitted."""
        waiting, self._waiting = self._waiting, []
        while waiting:
            first = waiting[0]
            # Thresholds of numbers are the same for all; others are of one camera.
            num_alike = next(
                (place for place, other in enumerate(waiting) if not first.goes_with(other)),
                len(waiting),
            )
            size = max(batch for batch in self.batches if batch <= num_alike)
            together, waiting = waiting[:size], waiting[size:]
            tickets = self.predictor.submit_together(
                [each.take_frame() for each in together], first.score, first.iou
            )
            for each, ticket in zip(together, tickets, strict=True):
                each.ticket = ticket


class BatchedPredictor:
    """Stands where a `Predictor` of one camera does; its frames go with those of others.

    A frame is read when the batcher is flushed, or its result asked for: not to be changed before.
    """

    def __init__(self, batcher: MicroBatcher) -> None:
        self._batcher = batcher

    @property
    def manifest(self) -> Manifest:
        """The bundle's."""
        return self._batcher.predictor.manifest

    def submit(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
        *,
        time_s: float | None = None,
        num_dropped: int = 0,
    ) -> BatchedTicket:
        """Note a frame and return; as `Predictor.submit`."""
        return self._batcher.submit(frame_bgr, score_threshold, iou_threshold)

    def draw(self, frame_bgr: Frame, result: Detections) -> Frame:
        """Draw a result into its frame, in place."""
        return self._batcher.predictor.draw(frame_bgr, result)

    def close(self) -> None:
        """Nothing: the engine is the batcher's."""


class BatchedTicket:
    """A frame that waits for its batch, or is under way in it."""

    def __init__(
        self, batcher: MicroBatcher, frame_bgr: Frame, score: ScoreThreshold, iou: IouThreshold
    ) -> None:
        self.score, self.iou = score, iou
        self.ticket: FrameTicket | None = None
        self._batcher = batcher
        self._frame: Frame | None = frame_bgr

    def goes_with(self, other: BatchedTicket) -> bool:
        """Whether both may be in one batch by their thresholds."""
        return _are_same(self.score, other.score) and _are_same(self.iou, other.iou)

    def take_frame(self) -> Frame:
        """The frame, once."""
        frame, self._frame = self._frame, None
        assert frame is not None
        return frame

    def result(self) -> Detections:
        """Wait for the frame's result; again gives the same."""
        if self.ticket is None:
            self._batcher.flush()
        assert self.ticket is not None
        return self.ticket.result()

    @property
    def timings(self) -> Timings | None:
        """Where the batch's time went; None until `result` was called."""
        return None if self.ticket is None else self.ticket.timings


def _are_same(first: Any, second: Any) -> bool:
    if isinstance(first, Mapping):
        return bool(first == second)
    is_per_frame = np.ndim(first) > 1 or np.ndim(second) > 1
    if first is None or second is None or is_per_frame:
        return first is second and not is_per_frame
    return np.array_equal(np.asarray(first), np.asarray(second))
