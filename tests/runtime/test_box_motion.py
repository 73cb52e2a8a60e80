"""The motion of boxes: the published Kalman filter, and time that passes in any steps."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.tracking.motion import (
    POSITION_NOISE,
    TICK_S,
    VELOCITY_NOISE,
    BoxMotion,
    xyxy_to_cxcywh,
)

NONE_HIDDEN = np.zeros(1, np.bool_)
BOX = np.array([[100.0, 50.0, 140.0, 130.0]])


def matrix_filter(boxes: list[np.ndarray], ticks: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """The same with matrices of eight by eight, as in the papers; mean and covariance."""

    def sides(mean: np.ndarray) -> np.ndarray:
        return np.tile(mean[2:4], 2)

    mean = np.concatenate([xyxy_to_cxcywh(boxes[0][None])[0], np.zeros(4)])
    first = [2 * POSITION_NOISE * sides(mean), 10 * VELOCITY_NOISE * sides(mean)]
    covariance = np.diag(np.concatenate(first) ** 2)
    see = np.eye(4, 8)
    for box, step in zip(boxes[1:], ticks, strict=True):
        q_place, q_speed = ((n * sides(mean)) ** 2 for n in (POSITION_NOISE, VELOCITY_NOISE))
        noise = np.zeros((8, 8))
        noise[:4, :4] = np.diag(step * q_place + step**3 / 3 * q_speed)
        noise[:4, 4:] = noise[4:, :4] = np.diag(step**2 / 2 * q_speed)
        noise[4:, 4:] = np.diag(step * q_speed)
        move = np.eye(8) + step * np.eye(8, k=4)
        mean, covariance = move @ mean, move @ covariance @ move.T + noise
        measured = np.diag((POSITION_NOISE * sides(mean)) ** 2)
        total = see @ covariance @ see.T + measured
        gain = covariance @ see.T @ np.linalg.inv(total)
        mean = mean + gain @ (xyxy_to_cxcywh(box[None])[0] - see @ mean)
        covariance = covariance - gain @ total @ gain.T
    return mean, covariance


def test_motion_is_the_kalman_filter_with_matrices():
    rng = np.random.default_rng(0)
    steps = [1.0, 1.0, 3.0, 0.5, 1.0, 7.0]
    boxes = [BOX[0] + 3 * n + rng.normal(0, 2, 4) for n in range(7)]
    motion = BoxMotion.begin(boxes[0][None])
    for box, ticks in zip(boxes[1:], steps, strict=True):
        motion.advance(ticks * TICK_S, keeps_size=NONE_HIDDEN)
        motion.correct(np.array([0]), box[None])
    mean, covariance = matrix_filter(boxes, steps)
    assert np.allclose(np.concatenate([motion.place[0], motion.speed[0]]), mean)
    assert np.allclose(motion.var_place[0], np.diag(covariance)[:4])
    assert np.allclose(motion.covar[0], np.diag(covariance, k=4))
    assert np.allclose(motion.var_speed[0], np.diag(covariance)[4:])


def test_a_gap_in_one_step_is_the_gap_in_many():
    at_once, by_steps = (BoxMotion.begin(BOX) for _ in range(2))
    for motion in (at_once, by_steps):
        motion.speed[0, 0] = 4.0  # of the place alone: noise goes by the size
    at_once.advance(0.7, keeps_size=NONE_HIDDEN)
    for _ in range(10):
        by_steps.advance(0.07, keeps_size=NONE_HIDDEN)
    for name in ("place", "var_place", "covar", "var_speed"):
        assert np.allclose(getattr(at_once, name), getattr(by_steps, name)), name


def test_speed_is_learnt_and_carries_over_a_gap():
    motion = BoxMotion.begin(BOX)
    for number in range(1, 30):
        motion.advance(1 / 25, keeps_size=NONE_HIDDEN)
        motion.correct(np.array([0]), BOX + [[5.0 * number, 0] * 2])
    motion.advance(10 / 25, keeps_size=NONE_HIDDEN)
    assert np.allclose(motion.boxes_xyxy, BOX + [[5.0 * 39, 0] * 2], atol=4)


def test_a_box_out_of_sight_keeps_its_size():
    motion = BoxMotion.begin(np.repeat(BOX, 2, axis=0))
    motion.speed[:, 2:] = -3.0
    motion.advance(1.0, keeps_size=np.array([True, False]))
    sides = motion.boxes_xyxy[:, 2:] - motion.boxes_xyxy[:, :2]
    assert np.allclose(sides[0], [40, 80])
    assert (sides[1] >= 1).all()  # and never turns inside out
    assert sides[1, 0] == pytest.approx(1)


def test_parts_and_joins_go_together():
    motion = BoxMotion.begin(np.vstack([BOX, BOX + 50, BOX + 90]))
    again = motion[np.array([0, 2])].joined(motion[np.array([1])])
    assert np.allclose(again.boxes_xyxy, (BOX + [[0], [90], [50]]))
    assert len(again) == 3
    assert len(BoxMotion.begin(np.zeros((0, 4)))) == 0
