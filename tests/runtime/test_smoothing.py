"""Smoothed joints: the one-euro filter against its definition, and objects kept apart."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.contract.manifest import Joints
from runtime.poses import Poses
from runtime.smoothing import PoseSmoother, SmoothedPredictor, SmoothingOptions

STEP_S = 0.04
SIDE_PX = 100.0


def pose(points: np.ndarray, confidence: float = 0.9, left: float = 0.0) -> Poses:
    """One object with a box of 100 px; points (J, 2)."""
    rows = np.column_stack([points, np.full(len(points), confidence)]).astype(np.float32)
    box = np.array([[left, 0, left + SIDE_PX, SIDE_PX]], np.float32)
    names = tuple(f"joint{place}" for place in range(len(points)))
    return Poses(
        box, np.ones(1, np.float32), np.zeros(1, np.int32), ("person",),
        keypoints_xyc=rows[None], joints=Joints(names),
    )  # fmt: skip


def joined(*poses: Poses) -> Poses:
    first = poses[0]
    return Poses(
        np.concatenate([p.boxes_xyxy for p in poses]), np.ones(len(poses), np.float32),
        np.zeros(len(poses), np.int32), first.names,
        keypoints_xyc=np.concatenate([p.keypoints_xyc for p in poses]), joints=first.joints,
    )  # fmt: skip


def one_euro(values: list[complex], options: SmoothingOptions) -> list[complex]:
    """The filter as the paper has it, for one point; its speed in units of the object's size."""

    def share(cutoff: float) -> float:
        return 1 / (1 + 1 / (2 * math.pi * cutoff) / STEP_S)

    found, speed = [values[0]], 0j
    for value in values[1:]:
        speed += share(options.speed_cutoff_hz) * ((value - found[-1]) / STEP_S - speed)
        cutoff = options.min_cutoff_hz + options.beta * abs(speed) / SIDE_PX
        found.append(found[-1] + share(cutoff) * (value - found[-1]))
    return found


def test_filter_is_the_paper_s():
    rng = np.random.default_rng(0)
    path = rng.normal(50, 5, (30, 2)) + np.linspace(0, 60, 30)[:, None]
    smoother = PoseSmoother()
    found = [
        smoother(pose(place[None]), number * STEP_S).keypoints_xyc[0, 0]
        for number, place in enumerate(path)
    ]
    expected = one_euro([complex(*place) for place in path], SmoothingOptions())
    np.testing.assert_allclose([complex(x, y) for x, y, _ in found], expected, atol=1e-3)


def test_trembling_of_a_still_joint_is_less_than_half():
    rng = np.random.default_rng(1)
    path = 50 + rng.normal(0, 1, (200, 2))
    smoother = PoseSmoother()
    found = [
        smoother(pose(place[None]), number * STEP_S).keypoints_xyc[0, 0, :2]
        for number, place in enumerate(path)
    ]
    assert np.std(found[50:]) < 0.5 * np.std(path[50:])


def test_fast_joint_is_late_by_less_than_two_frames():
    smoother, speed = PoseSmoother(), 400.0  # px a second: four times its size
    for number in range(50):
        true = speed * number * STEP_S
        found = smoother(pose(np.array([[true, 0.0]])), number * STEP_S).keypoints_xyc[0, 0, 0]
    assert true - found < 2 * speed * STEP_S


def test_objects_are_told_apart_by_their_boxes_in_any_order():
    smoother = PoseSmoother()
    here, there = pose(np.array([[10.0, 10]])), pose(np.array([[310.0, 10]]), left=300)
    smoother(joined(here, there), 0.0)
    found = smoother(joined(there, here), STEP_S).keypoints_xyc
    np.testing.assert_allclose(found[:, 0, 0], [310, 10], atol=1e-4)


def test_new_object_and_unsure_joint_are_given_as_they_are():
    smoother = PoseSmoother()
    smoother(pose(np.array([[10.0, 10]])), 0.0)
    new = pose(np.array([[350.0, 40]]), left=300)
    np.testing.assert_array_equal(smoother(new, STEP_S).keypoints_xyc, new.keypoints_xyc)
    unsure = pose(np.array([[390.0, 90]]), confidence=0.1, left=300)
    np.testing.assert_array_equal(smoother(unsure, 2 * STEP_S).keypoints_xyc, unsure.keypoints_xyc)
    sure = pose(np.array([[320.0, 20]]), left=300)
    np.testing.assert_array_equal(smoother(sure, 3 * STEP_S).keypoints_xyc, sure.keypoints_xyc)


def test_time_that_does_not_advance_begins_anew():
    smoother = PoseSmoother()
    smoother(pose(np.array([[10.0, 10]])), 1.0)
    moved = pose(np.array([[30.0, 30]]))
    np.testing.assert_array_equal(smoother(moved, 1.0).keypoints_xyc, moved.keypoints_xyc)
    smoother.restart()
    np.testing.assert_array_equal(smoother(moved, 2.0).keypoints_xyc, moved.keypoints_xyc)


class TwoPoses:
    """A predictor that finds a pose at (10, 10), then at (30, 30)."""

    def __init__(self):
        self.found = iter((pose(np.array([[10.0, 10]])), pose(np.array([[30.0, 30]]))))

    def submit(self, *_, **__):
        found = next(self.found)
        return SimpleNamespace(result=lambda: found)


@pytest.mark.parametrize("grows", [False, True])
def test_change_of_the_frames_size_begins_anew(grows: bool):
    smoothed = SmoothedPredictor(TwoPoses())
    smoothed.submit(np.zeros((200, 200, 3), np.uint8), time_s=0.0).result()
    frame = np.zeros((300 if grows else 200, 200, 3), np.uint8)
    found = smoothed.submit(frame, time_s=STEP_S).result()
    is_as_found = bool((found.keypoints_xyc[0, 0, :2] == 30).all())
    assert is_as_found == grows


def test_frames_without_objects_are_survived():
    smoother = PoseSmoother()
    empty = pose(np.array([[10.0, 10]]))[:0]
    assert len(smoother(empty, 0.0)) == 0
    assert len(smoother(pose(np.array([[10.0, 10]])), STEP_S)) == 1
    assert len(smoother(empty, 2 * STEP_S)) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_cutoff_hz", 0), ("speed_cutoff_hz", math.inf), ("beta", -1), ("match_iou", 2)],
)
def test_wrong_option_is_refused(field: str, value: float):
    with pytest.raises(ValueError, match=f"{field} is"):
        SmoothingOptions(**{field: value})
