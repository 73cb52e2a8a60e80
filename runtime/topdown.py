"""People by a detector, their joints by a network for crops: two bundles, one call.

people = runtime.load_topdown("runs/retinanet", "runs/hourglass")
poses = people(frame_bgr)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.contract.errors import BundleError
from runtime.contract.manifest import Joints
from runtime.crops import Crop
from runtime.poses import Poses
from runtime.predictor import FrameTicket, Predictor, Timings, load
from runtime.preprocess import Frame, frame_hw
from runtime.restarting import restart
from runtime.results import Detections
from runtime.tasks import IouThreshold, ScoreThreshold

MAX_PEOPLE = 32  # of a frame, the surest; each costs a run of the pose network


def load_topdown(
    detector: str | Path,
    pose: str | Path,
    backend: str = "auto",
    precision: str | None = None,
    *,
    max_people: int = MAX_PEOPLE,
    **options: Any,
) -> TopDown:
    """Load a detector's bundle and one of task pose_crop.

    Args:
        detector, pose: folders of bundles, or .onnx files.
        backend, precision, **options: of both; see `runtime.load`.
        max_people: see `TopDown`.

    Raises:
        BundleError, SessionError: as `runtime.load`; bundles that do not go together.
    """
    first = load(detector, backend, precision, **options)
    try:
        second = load(pose, backend, precision, **options)
        try:
            return TopDown(first, second, max_people=max_people)
        except BaseException:
            second.close()
            raise
    except BaseException:
        first.close()
        raise


class TopDown:
    """Finds people and their joints; stands where a `Predictor` does.

    Args:
        detector: of a task that gives boxes. pose: of task pose_crop. Both are closed with it.
        max_people: at most so many of a frame get joints and are given, the surest.

    Raises:
        BundleError: another task, or the detector knows none of the classes that have joints.
    """

    def __init__(
        self, detector: Predictor, pose: Predictor, *, max_people: int = MAX_PEOPLE
    ) -> None:
        manifest = pose.manifest
        if manifest.task != "pose_crop" or manifest.joints is None:
            raise BundleError(
                f"the bundle for joints is of task {manifest.task!r}; expected 'pose_crop'. "
                "Give the detector first and the bundle for crops second."
            )
        names = detector.manifest.classes
        wanted = [place for place, name in enumerate(names) if name in manifest.classes]
        if detector.manifest.task == "pose_crop" or not wanted:
            raise BundleError(
                f"the detector finds {', '.join(names[:10])}; the bundle for joints needs boxes of "
                f"{', '.join(manifest.classes)}. Give a detector of these."
            )
        if max_people < 1:
            raise ValueError(f"max_people is {max_people}; expected 1 or more.")
        self.detector, self.pose, self.max_people = detector, pose, max_people
        self._wanted = np.array(wanted)
        self._joints: Joints = manifest.joints

    @property
    def manifest(self) -> Any:
        """The detector's: its classes, ids and thresholds are those of the results."""
        return self.detector.manifest

    def __call__(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
    ) -> Poses:
        """Find people and their joints in one frame; thresholds are the detector's.

        Returns:
            Poses in pixels of the frame, by falling score: the detector's times the mean
            confidence of the joints.
        """
        return self.submit(frame_bgr, score_threshold, iou_threshold).result()

    def submit(
        self,
        frame_bgr: Frame,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
        *,
        time_s: float | None = None,
        num_dropped: int = 0,
    ) -> TopDownTicket:
        """Start on one frame and return; as `Predictor.submit`.

        The frame is read again by `result`: do not change it until then.
        """
        ticket = self.detector.submit(
            frame_bgr, score_threshold, iou_threshold, time_s=time_s, num_dropped=num_dropped
        )
        return TopDownTicket(self, ticket, frame_bgr)

    def find_joints(self, frame_bgr: Frame, boxes_xyxy: NDArray[Any]) -> NDArray[np.float32]:
        """The joints of people whose boxes are known.

        Args:
            frame_bgr: (h, w, 3) uint8 BGR.
            boxes_xyxy: (N, 4), pixels of the frame.

        Returns:
            (N, J, 3) float32 as (x, y, confidence), pixels of the frame and 0..1.
        """
        manifest, source_hw = self.pose.manifest, frame_hw(frame_bgr)
        crops = [
            Crop.around(box, source_hw, manifest.geometry, manifest.crop_margin)
            for box in boxes_xyxy
        ]
        found = self.pose.batch([crop.apply(frame_bgr) for crop in crops])
        keypoints = np.zeros((len(crops), len(self._joints.names), 3), np.float32)
        for row, (crop, one) in enumerate(zip(crops, found, strict=True)):
            assert isinstance(one, Poses)
            keypoints[row] = one.keypoints_xyc[0]
            keypoints[row, :, :2] = crop.points_to_source(keypoints[row, :, :2])
        return keypoints

    def finish(self, found: Detections, frame_bgr: Frame) -> Poses:
        """Give the people among a detector's results their joints."""
        people = found[np.flatnonzero(np.isin(found.classes, self._wanted))[: self.max_people]]
        keypoints = self.find_joints(frame_bgr, people.boxes_xyxy)
        scores = people.scores * keypoints[..., 2].mean(axis=1)
        order = np.argsort(-scores, kind="stable")
        return Poses(
            people.boxes_xyxy[order],
            scores[order].astype(np.float32),
            people.classes[order],
            people.names,
            track_ids=None if people.track_ids is None else people.track_ids[order],
            counts=people.counts,
            keypoints_xyc=keypoints[order],
            joints=self._joints,
        )

    def draw(self, frame_bgr: Frame, result: Detections) -> Frame:
        """Draw a result into its frame, in place."""
        return self.pose.draw(frame_bgr, result)

    def restart(self, reason: str = "asked") -> None:
        """Begin anew with the next frame, as after a reconnect."""
        restart(self.detector, reason)

    def warm_up(self) -> None:
        """Run both bundles once in every batch size."""
        self.detector.warm_up()
        self.pose.warm_up()

    def open_stream(self) -> TopDown:
        """One more camera or thread, on the same engines."""
        streams = self.detector.open_stream(), self.pose.open_stream()
        return TopDown(*streams, max_people=self.max_people)

    def close(self) -> None:
        """Close both predictors; twice is harmless."""
        self.detector.close()
        self.pose.close()

    def __enter__(self) -> TopDown:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(slots=True)
class TopDownTicket:
    """A frame under way: the detector has it, joints are found when the result is asked for."""

    owner: TopDown
    ticket: FrameTicket
    frame_bgr: Frame | None
    timings: Timings | None = None
    found: Poses | None = None

    def result(self) -> Poses:
        """Wait for the frame's result; again gives the same."""
        if self.found is None:
            assert self.frame_bgr is not None
            detections = self.ticket.result()
            begun = perf_counter()
            self.found = self.owner.finish(detections, self.frame_bgr)
            spent_ms = (perf_counter() - begun) * 1e3
            told = self.ticket.timings
            if told is not None:
                self.timings = replace(told, engine_ms=told.engine_ms + spent_ms)
            self.frame_bgr = None
        return self.found
