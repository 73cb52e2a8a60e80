"""A detector and a pose network as one: crops, batches, the way back, what does not go together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.contract.errors import BundleError
from runtime.contract.manifest import InputGeometry, Joints
from runtime.crops import Crop
from runtime.poses import Poses
from runtime.predictor import Timings
from runtime.results import Detections
from runtime.smoothing import SmoothedPredictor
from runtime.topdown import TopDown

JOINTS = Joints(("left_hand", "right_hand"), ((0, 1),), ((0, 1),), (0.05, 0.05))
GEOMETRY = InputGeometry(48, 32)
MARGIN = 1.25
BOXES = np.array([[10, 20, 60, 110], [90, 5, 150, 80], [110, 85, 140, 115]], np.float32)


class Detector:
    """Finds three things in every frame: a person, a car and another person."""

    def __init__(self, classes: tuple[str, ...] = ("car", "person")) -> None:
        self.manifest = SimpleNamespace(task="detection", classes=classes, joints=None)
        self.is_closed = False

    def submit(self, frame_bgr: Any, *thresholds: Any, **about: Any) -> Any:
        kinds = np.array([1, 0, 1], np.int32)
        scores = np.array([0.9, 0.8, 0.7], np.float32)
        found = Detections(BOXES, scores, kinds, self.manifest.classes)
        return SimpleNamespace(result=lambda: found, timings=Timings(1.0, 2.0, 3.0))

    def open_stream(self) -> Detector:
        return Detector(self.manifest.classes)

    def warm_up(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True


class Pose:
    """Puts one joint where the crop is brightest, the other into its middle."""

    def __init__(self, task: str = "pose_crop") -> None:
        self.manifest = SimpleNamespace(
            task=task, classes=("person",), joints=JOINTS, geometry=GEOMETRY, crop_margin=MARGIN
        )
        self.seen: list[int] = []

    def batch(self, frames: list[np.ndarray]) -> list[Poses]:
        self.seen.append(len(frames))
        return [self._find(frame) for frame in frames]

    def _find(self, frame: np.ndarray) -> Poses:
        assert frame.shape == (48, 32, 3)
        y, x = np.unravel_index(frame[..., 0].argmax(), frame.shape[:2])
        found = np.array([[x + 0.5, y + 0.5, 0.8], [16, 24, 0.4]], np.float32)
        box = np.array([[0, 0, 32, 48]], np.float32)
        one = np.ones(1, np.float32)
        return Poses(
            box, one, np.zeros(1, np.int32), ("person",), keypoints_xyc=found[None], joints=JOINTS
        )

    def draw(self, frame_bgr: np.ndarray, result: Poses) -> np.ndarray:
        frame_bgr[:] = len(result)
        return frame_bgr

    def warm_up(self) -> None: ...

    def close(self) -> None: ...


def spotted() -> np.ndarray:
    """A dark frame with a bright spot on each person."""
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[38:43, 28:33] = 255
    frame[98:102, 118:122] = 255
    return frame


def test_people_get_joints_in_pixels_of_the_frame():
    pose = Pose()
    found = TopDown(Detector(), pose)(spotted())
    assert isinstance(found, Poses)
    assert pose.seen == [2]  # one batch for both
    assert found.names == ("car", "person")
    assert found.classes.tolist() == [1, 1]
    np.testing.assert_array_equal(found.boxes_xyxy, BOXES[[0, 2]])
    np.testing.assert_allclose(found.keypoints_xyc[0, 0, :2], (30.5, 40.5), atol=3)
    np.testing.assert_allclose(found.keypoints_xyc[1, 0, :2], (120, 100), atol=2)
    middles = (BOXES[[0, 2], :2] + BOXES[[0, 2], 2:]) / 2
    np.testing.assert_allclose(found.keypoints_xyc[:, 1, :2], middles, atol=1e-3)
    np.testing.assert_allclose(found.scores, np.float32([0.9, 0.7]) * 0.6, rtol=1e-6)


def test_joints_of_a_box_are_what_its_crop_says_alone():
    people, frame = TopDown(Detector(), Pose()), spotted()
    together = people.find_joints(frame, BOXES)
    for box, found in zip(BOXES, together, strict=True):
        crop = Crop.around(box, frame.shape[:2], GEOMETRY, MARGIN)
        alone = Pose()._find(crop.apply(frame)).keypoints_xyc[0]
        np.testing.assert_allclose(crop.to_network(found[:, :2]), alone[:, :2], atol=1e-3)
    assert people.find_joints(frame, BOXES[:0]).shape == (0, 2, 3)


def test_only_the_surest_people_are_looked_at():
    pose = Pose()
    found = TopDown(Detector(), pose, max_people=1)(spotted())
    assert len(found) == 1
    assert pose.seen == [1]
    with pytest.raises(ValueError, match="max_people is 0"):
        TopDown(Detector(), Pose(), max_people=0)


def test_ticket_gives_the_same_again_and_the_time_of_both():
    pose = Pose()
    ticket = TopDown(Detector(), pose).submit(spotted(), time_s=1.0)
    assert ticket.result() is ticket.result()
    assert pose.seen == [2]
    assert ticket.timings.preprocess_ms == 1.0
    assert ticket.timings.engine_ms > 2.0


def test_bundles_that_do_not_go_together_are_refused():
    with pytest.raises(BundleError, match="expected 'pose_crop'"):
        TopDown(Detector(), Pose(task="keypoints"))
    with pytest.raises(BundleError, match="finds cat, car; .* needs boxes of person"):
        TopDown(Detector(("cat", "car")), Pose())


def test_smoothing_stands_before_a_top_down_pair():
    smoothed = SmoothedPredictor(TopDown(Detector(), Pose()))
    first = smoothed.submit(spotted(), time_s=0.0).result()
    still = smoothed.submit(spotted(), time_s=0.04)
    np.testing.assert_allclose(still.result().keypoints_xyc, first.keypoints_xyc, atol=1e-4)
    assert still.result() is still.result()
    assert still.timings is not None
    with pytest.raises(ValueError, match="smoothing is for joints"):
        SmoothedPredictor(Detector()).submit(spotted(), time_s=0.0).result()


def test_closing_and_streams_reach_the_detector():
    detector = Detector()
    with TopDown(detector, Pose()) as people:
        drawn = people.draw(spotted(), people(spotted()))
        assert (drawn == 2).all()
    assert detector.is_closed
