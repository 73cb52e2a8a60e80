"""A predictor whose results have ids over the frames, and are counted; for one camera.

people = TrackedPredictor(runtime.load("runs/retinanet"))
detections = people(frame_bgr, time_s=frame_time_s)
detections.track_ids
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.contract.manifest import Manifest
from runtime.preprocess import Frame, frame_hw
from runtime.restarting import restart
from runtime.results import Detections
from runtime.smoothing import Predicts
from runtime.tasks import IouThreshold, ScoreThreshold, load_task
from runtime.tracking.byte_track import Tracker, TrackerOptions
from runtime.tracking.counting import Counting
from runtime.tracking.counts import Counts, Line, Zone, bounds_of

FILTERED_OUT = 1.0  # a class whose score threshold is this or more is not wanted

_log = logging.getLogger(__name__)


class Finds(Predicts, Protocol):
    """What is needed of a predictor."""

    @property
    def manifest(self) -> Manifest: ...

    def warm_up(self) -> None: ...

    def open_stream(self) -> Finds: ...

    def close(self) -> None: ...


class TrackedPredictor:
    """Tracks what a predictor finds; stands where a `Predictor` does.

    The predictor is asked for results of low scores, too, which ByteTrack continues tracks with. Of
    those that score below the threshold only what belongs to a track is given.

    Frames are those of one camera, in their order, and results are asked for in that order. A
    change of the frames' size begins anew.

    Args:
        predictor: of a task that gives boxes: a `Predictor`, or what stands for one.
        options: of the tracker; its `high_score` is replaced by the score threshold in use.
        counting: counts the tracks; None counts nothing.
        ids: see `Tracker`.

    Raises:
        ValueError: the bundle gives no boxes.
        ImportError: SciPy is missing.
    """

    def __init__(
        self,
        predictor: Finds,
        options: TrackerOptions | None = None,
        counting: Counting | None = None,
        ids: Iterator[int] | None = None,
    ) -> None:
        task = predictor.manifest.task
        if task == "pose_crop":
            raise ValueError(
                f"tracking is for boxes; a bundle of task {task!r} gives none. "
                "Track a detector, and give this bundle the people that it finds."
            )
        self.predictor = predictor
        self.tracker = Tracker(options, ids)
        self.counting = counting
        self._task = load_task(task)
        self._frame_hw: tuple[int, int] | None = None
        self._begins_anew = False

    @property
    def manifest(self) -> Manifest:
        """The predictor's."""
        return self.predictor.manifest

    @property
    def counts(self) -> Counts | None:
        """As of the last result; None where nothing counts."""
        return None if self.counting is None else self.counting.counts

    def __call__(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
        *,
        time_s: float | None = None,
    ) -> Detections:
        """Find and track the objects of the next frame.

        Args:
            frame_bgr, score_threshold, iou_threshold: as of `Predictor`.
            time_s: when the frame was taken; None for now.
        """
        return self.submit(frame_bgr, score_threshold, iou_threshold, time_s=time_s).result()

    def submit(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
        *,
        time_s: float | None = None,
        num_dropped: int = 0,
    ) -> TrackedTicket:
        """As of `Predictor`; the tracker goes by `time_s`, so lost frames are no matter to it."""
        taken_s = perf_counter() if time_s is None else time_s
        limits = self._limits(score_threshold)
        lowered = np.minimum(limits, self.tracker.options.low_score)
        ticket = self.predictor.submit(
            frame_bgr,
            np.where(limits < FILTERED_OUT, lowered, limits),
            iou_threshold,
            time_s=taken_s,
            num_dropped=num_dropped,
        )
        source_hw = frame_hw(frame_bgr)
        if source_hw != self._frame_hw:
            self._warn_of_places_outside(source_hw)
        begins_anew = self._begins_anew or source_hw != self._frame_hw
        self._frame_hw, self._begins_anew = source_hw, False
        return TrackedTicket(self, ticket, taken_s, limits, begins_anew)

    def restart(self, reason: str = "asked") -> None:
        """End all tracks before the next frame that is submitted, as after a reconnect."""
        self._begins_anew = True
        restart(self.predictor, reason)

    def finish(
        self, found: Detections, time_s: float, limits: NDArray[np.float32], *, begins_anew: bool
    ) -> Detections:
        """Give the results of the next frame their ids, and count them.

        Args:
            found: low scores included.
            time_s: of the frame.
            limits: (K,) score threshold of each class.
            begins_anew: end all tracks before.
        """
        if begins_anew:
            self.tracker.restart()
        tracked = self.tracker.update(found, time_s, limits)
        assert tracked.track_ids is not None
        is_wanted = (tracked.scores > limits[tracked.classes]) | (tracked.track_ids >= 0)
        tracked = tracked[np.flatnonzero(is_wanted)]
        if self.counting is None:
            return tracked
        counts = self.counting.update(tracked, self.tracker.alive_ids)
        return dataclasses.replace(tracked, counts=counts)

    def draw(self, frame_bgr: Frame, result: Any) -> Frame:
        """Draw a result into its frame, in place."""
        return self.predictor.draw(frame_bgr, result)

    def warm_up(self) -> None:
        """As of the predictor."""
        self.predictor.warm_up()

    def open_stream(self) -> TrackedPredictor:
        """One more camera on the same engine, with tracks and counts of its own."""
        counting = None if self.counting is None else self.counting.anew()
        return TrackedPredictor(self.predictor.open_stream(), self.tracker.options, counting)

    def close(self) -> None:
        """Close the predictor."""
        self.predictor.close()

    def _limits(self, score_threshold: ScoreThreshold) -> NDArray[np.float32]:
        """(K,) the score threshold of each class."""
        asked = self._task.thresholds(self.manifest, 1, score_threshold)
        return np.asarray(asked["score_threshold"][0], np.float32)

    def _warn_of_places_outside(self, source_hw: tuple[int, int]) -> None:
        if self.counting is None:
            return
        height, width = source_hw
        counts = self.counting.counts
        shapes: list[Line | Zone] = [each.line for each in counts.lines]
        shapes += [each.zone for each in counts.zones]
        for shape in shapes:
            x1, y1, x2, y2 = bounds_of(shape)
            if x2 < 0 or y2 < 0 or x1 >= width or y1 >= height:
                kind = type(shape).__name__.lower()
                _log.warning(
                    "%s %s lies outside of frames of %dx%d", kind, shape.name, width, height
                )


@dataclass(slots=True)
class TrackedTicket:
    """A frame under way."""

    owner: TrackedPredictor
    ticket: Any
    time_s: float
    limits: NDArray[np.float32]
    begins_anew: bool
    found: Detections | None = None

    def result(self) -> Detections:
        """Wait for the frame's result; again gives the same."""
        if self.found is None:
            self.found = self.owner.finish(
                self.ticket.result(), self.time_s, self.limits, begins_anew=self.begins_anew
            )
        return self.found

    @property
    def timings(self) -> Any:
        """Where the time went, as the predictor's ticket tells."""
        return self.ticket.timings
