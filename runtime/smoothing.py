"""Joints of a video, smoothed from frame to frame by the one-euro filter.

The filter (Casiez, Roussel and Vogel, CHI 2012) is a low-pass whose cutoff grows with speed: what
stands still does not tremble, what moves fast is not late.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.contract.matching import pairwise_iou
from runtime.poses import Poses
from runtime.preprocess import Frame
from runtime.restarting import restart
from runtime.tasks import IouThreshold, ScoreThreshold

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SmoothingOptions:
    """How strongly joints are smoothed.

    Attributes:
        min_cutoff_hz: of a joint that stands still; lower is smoother and later.
        beta: by how many Hz the cutoff grows with a speed of one object's size a second; higher is
            less late.
        speed_cutoff_hz: of the speed itself.
        match_iou: least overlap of an object's boxes in one frame and the next.
        min_confidence: a joint that is less sure is given as it is, and begins anew after it.
    """

    min_cutoff_hz: float = 1.5
    beta: float = 8.0
    speed_cutoff_hz: float = 1.0
    match_iou: float = 0.3
    min_confidence: float = 0.2

    def __post_init__(self) -> None:
        for name in ("min_cutoff_hz", "speed_cutoff_hz"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0.")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta is {self.beta}; expected 0 or more.")
        for name in ("match_iou", "min_confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1.")


@dataclass(frozen=True, slots=True)
class _Last:
    """What the frame before left, N objects.

    Attributes:
        time_s: of the frame. boxes_xyxy: (N, 4). classes: (N,). track_ids: (N,), -1 where none.
        points: (N, J, 2), smoothed. speeds: (N, J, 2), smoothed, pixels a second.
        is_known: (N, J) bool, joints that were sure enough.
    """

    time_s: float
    boxes_xyxy: NDArray[np.float32]
    classes: NDArray[np.int32]
    track_ids: NDArray[np.int64]
    points: Floats
    speeds: Floats
    is_known: NDArray[np.bool_]


class PoseSmoother:
    """Smooths the joints of one camera's frames.

    Objects are told by their tracks; those without, by the overlap of their boxes.

    Boxes, scores and confidences stay as they are. For one thread.
    """

    def __init__(self, options: SmoothingOptions | None = None) -> None:
        self.options = options or SmoothingOptions()
        self._last: _Last | None = None

    def restart(self) -> None:
        """Forget what was seen, as after a seek or a reconnect."""
        self._last = None

    def __call__(self, poses: Poses, time_s: float) -> Poses:
        """Smooth one frame's joints.

        Args:
            poses: of the frame.
            time_s: when it was taken. A frame that is not later than the one before begins anew.

        Returns:
            The same objects in the same order.
        """
        options, last = self.options, self._last
        raw = poses.keypoints_xyc[..., :2].astype(np.float64)
        is_known = poses.keypoints_xyc[..., 2] >= options.min_confidence
        points, speeds = raw.copy(), np.zeros_like(raw)
        if last is not None and time_s > last.time_s:
            ours, theirs = _match(poses, last, options.match_iou)
            step_s = time_s - last.time_s
            before, moved = last.points[theirs], raw[ours] - last.points[theirs]
            share = _share(options.speed_cutoff_hz, step_s)
            pace = last.speeds[theirs] + share * (moved / step_s - last.speeds[theirs])
            sides = poses.boxes_xyxy[ours, 2:] - poses.boxes_xyxy[ours, :2]
            size = np.maximum(sides.max(axis=1, initial=1.0), 1.0)[:, None]
            cutoff = options.min_cutoff_hz + options.beta * np.linalg.norm(pace, axis=2) / size
            goes_on = (is_known[ours] & last.is_known[theirs])[:, :, None]
            smooth = before + _share(cutoff, step_s)[:, :, None] * moved
            points[ours] = np.where(goes_on, smooth, points[ours])
            speeds[ours] = np.where(goes_on, pace, 0.0)
        told = _track_ids(poses)
        self._last = _Last(time_s, poses.boxes_xyxy, poses.classes, told, points, speeds, is_known)
        keypoints = poses.keypoints_xyc.copy()
        keypoints[..., :2] = points
        return dataclasses.replace(poses, keypoints_xyc=keypoints)


def _share(cutoff_hz: Floats | float, step_s: float) -> Floats:
    """How much of a new value a low-pass of first order takes."""
    return np.asarray(1 / (1 + 1 / (2 * np.pi * np.asarray(cutoff_hz, np.float64) * step_s)))


def _match(poses: Poses, last: _Last, least: float) -> tuple[list[int], list[int]]:
    """Places of objects now and in the frame before: by track, then by falling overlap, each once.

    Objects of two tracks are two, however they overlap.
    """
    now, before = _track_ids(poses)[:, None], last.track_ids[None]
    is_tracked = (now >= 0) & (before >= 0)
    same_a, same_b = np.nonzero(is_tracked & (now == before))
    ours: list[int] = same_a.tolist()
    theirs: list[int] = same_b.tolist()
    overlap = pairwise_iou(poses.boxes_xyxy, last.boxes_xyxy)
    overlap[(poses.classes[:, None] != last.classes[None]) | is_tracked] = -1.0
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        a, b = divmod(int(flat), max(1, overlap.shape[1]))
        if overlap[a, b] < max(least, 1e-9):
            break
        if a not in ours and b not in theirs:
            ours.append(a)
            theirs.append(b)
    return ours, theirs


def _track_ids(poses: Poses) -> NDArray[np.int64]:
    return np.full(len(poses), -1, np.int64) if poses.track_ids is None else poses.track_ids


class Predicts(Protocol):
    """What is needed of a predictor."""

    def submit(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
        *,
        time_s: float | None = None,
        num_dropped: int = 0,
    ) -> Any: ...

    def draw(self, frame_bgr: Frame, result: Any) -> Frame: ...


class SmoothedPredictor:
    """A predictor of poses whose results are smoothed; stands where a `Predictor` does.

    Frames are those of one camera, in their order, and results are asked for in that order.

    Args:
        predictor: a `Predictor` of a task with joints, or a `TopDown`.
        options: of the filter.
    """

    def __init__(self, predictor: Predicts, options: SmoothingOptions | None = None) -> None:
        self.predictor = predictor
        self.smoother = PoseSmoother(options)
        self._begins_anew = False
        self._size_hw: tuple[int, ...] | None = None

    def submit(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
        *,
        time_s: float | None = None,
        num_dropped: int = 0,
    ) -> SmoothedTicket:
        """As of `Predictor`; `time_s` is what the filter goes by."""
        taken_s = perf_counter() if time_s is None else time_s
        ticket = self.predictor.submit(
            frame_bgr, score_threshold, iou_threshold, time_s=taken_s, num_dropped=num_dropped
        )
        size_hw = frame_bgr.shape[:2]
        begins_anew = self._begins_anew or self._size_hw not in (None, size_hw)
        self._begins_anew, self._size_hw = False, size_hw
        return SmoothedTicket(self.smoother, ticket, taken_s, begins_anew)

    def restart(self, reason: str = "asked") -> None:
        """Begin anew with the next frame that is submitted, as after a reconnect."""
        self._begins_anew = True
        restart(self.predictor, reason)

    def draw(self, frame_bgr: Frame, result: Any) -> Frame:
        """Draw a result into its frame, in place."""
        return self.predictor.draw(frame_bgr, result)


@dataclass(slots=True)
class SmoothedTicket:
    """A frame under way."""

    smoother: PoseSmoother
    ticket: Any
    time_s: float
    begins_anew: bool = False
    found: Poses | None = None

    def result(self) -> Poses:
        """Wait for the frame's result; again gives the same.

        Raises:
            ValueError: the bundle gives no joints.
        """
        if self.found is None:
            poses = self.ticket.result()
            if not isinstance(poses, Poses):
                raise ValueError(
                    "smoothing is for joints; this bundle gives none. Leave it out, or give a "
                    "bundle of task keypoints or pose_crop."
                )
            if self.begins_anew:
                self.smoother.restart()
            self.found = self.smoother(poses, self.time_s)
        return self.found

    @property
    def timings(self) -> Any:
        """Where the time went, as the predictor's ticket tells."""
        return self.ticket.timings
