"""Results with joints: parts of them, COCO and JSON, faces laid on a template, drawing."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from runtime.contract.manifest import Joints
from runtime.draw_poses import LEFT_BGR, MIDDLE_BGR, RIGHT_BGR, draw_poses, joint_colours
from runtime.poses import FACE_JOINTS, FACE_TEMPLATE_XY, Faces, Poses, fit_similarity

JOINTS = Joints(("nose", "left_hand", "right_hand"), ((0, 1), (0, 2)), ((1, 2),), (0.03,) * 3)


def make_poses(count: int = 2) -> Poses:
    rng = np.random.default_rng(0)
    boxes = np.array([[10, 20, 60, 90], [40, 10, 100, 80], [0, 0, 30, 30]], np.float32)[:count]
    keypoints = rng.uniform(20, 70, (3, 3, 3)).astype(np.float32)[:count]
    keypoints[..., 2] = (0.9, 0.4, 0.05)
    scores = np.array([0.9, 0.6, 0.5], np.float32)[:count]
    classes = np.zeros(count, np.int32)
    return Poses(boxes, scores, classes, ("person",), keypoints_xyc=keypoints, joints=JOINTS)


def test_parts_of_poses_keep_their_joints():
    poses = make_poses(3)
    for index in (slice(1, 3), [2, 0], poses.scores > 0.55):
        part = poses[index]
        assert type(part) is Poses
        assert part.joints is JOINTS
        np.testing.assert_array_equal(part.keypoints_xyc, poses.keypoints_xyc[index])
        np.testing.assert_array_equal(part.boxes_xyxy, poses.boxes_xyxy[index])
    assert len(poses[:0]) == 0


def test_coco_results_hold_three_numbers_a_joint():
    poses = make_poses()
    entries = poses.to_coco(7, (18,))
    assert [entry["category_id"] for entry in entries] == [18, 18]
    found = np.array([entry["keypoints"] for entry in entries]).reshape(2, 3, 3)
    np.testing.assert_allclose(found, poses.keypoints_xyc, atol=6e-4)


def test_json_names_the_joints():
    document = json.loads(json.dumps(make_poses().to_json()))
    first = document["detections"][0]
    assert [*first["keypoints"]] == ["nose", "left_hand", "right_hand"]
    assert first["keypoints"]["nose"][2] == pytest.approx(0.9)
    assert first["name"] == "person"


def test_nothing_found_is_drawn_and_written():
    empty = make_poses()[:0]
    frame = np.full((50, 60, 3), 90, np.uint8)
    assert (draw_poses(frame, empty) == 90).all()
    assert empty.to_coco(1, (1,)) == []
    assert empty.to_json() == {"detections": []}


def test_similarity_is_the_one_that_made_the_points():
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 100, (5, 2))
    scale, turn = 1.7, 0.4
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    found = fit_similarity(points, points @ matrix.T + (3, -5))
    np.testing.assert_allclose(found, np.column_stack([matrix, (3, -5)]), atol=1e-9)


def test_similarity_of_points_that_do_not_fit_has_no_better_neighbour():
    rng = np.random.default_rng(2)
    source = FACE_TEMPLATE_XY + rng.normal(0, 2, (5, 2))
    found = fit_similarity(source, FACE_TEMPLATE_XY)
    left = ((source @ found[:, :2].T + found[:, 2] - FACE_TEMPLATE_XY) ** 2).sum()
    for change in np.vstack([np.eye(4), -np.eye(4)]) * 1e-3:  # no neighbour is better
        a, b, x, y = np.array([found[0, 0], found[1, 0], *found[:, 2]]) + change
        other = np.array([[a, -b, x], [b, a, y]])
        assert ((source @ other[:, :2].T + other[:, 2] - FACE_TEMPLATE_XY) ** 2).sum() > left


def test_face_is_laid_on_the_template():
    turn = cv2.getRotationMatrix2D((56, 56), 25, 1.4)
    landmarks = FACE_TEMPLATE_XY @ turn[:, :2].T + turn[:, 2] + (20, 10)
    frame = np.zeros((200, 220, 3), np.uint8)
    for x, y in landmarks:
        cv2.circle(frame, (round(x - 0.5), round(y - 0.5)), 4, (255, 255, 255), -1)
    keypoints = np.column_stack([landmarks, np.ones(5)])[None].astype(np.float32)
    faces = Faces(
        np.array([[10, 10, 200, 180]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32),
        ("face",), keypoints_xyc=keypoints, joints=Joints(FACE_JOINTS),
    )  # fmt: skip
    chip = faces.align(frame, 0)
    assert chip.shape == (112, 112, 3)
    for x, y in FACE_TEMPLATE_XY:
        assert chip[int(y), int(x), 0] > 200
    assert (chip > 128).all(axis=2).mean() < 0.05
    assert faces.align(frame, 0, 56).shape == (56, 56, 3)


def test_sides_of_the_body_have_colours_of_their_own():
    assert joint_colours(JOINTS) == [MIDDLE_BGR, LEFT_BGR, RIGHT_BGR]
    assert joint_colours(Joints(("a", "b", "c"), (), ((2, 1),))) == [
        MIDDLE_BGR, RIGHT_BGR, LEFT_BGR,
    ]  # fmt: skip


def test_drawing_shows_sure_joints_full_and_hardly_seen_ones_not_at_all():
    frame = np.zeros((100, 100, 3), np.uint8)
    keypoints = np.array([[[20, 20, 0.9], [70, 20, 0.3], [20, 70, 0.05]]], np.float32)
    poses = Poses(
        np.array([[0, 0, 99, 99]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32),
        ("person",), keypoints_xyc=keypoints, joints=JOINTS,
    )  # fmt: skip
    draw_poses(frame, poses, boxes=False)
    assert tuple(frame[20, 20]) == MIDDLE_BGR
    assert tuple(frame[20, 70]) != LEFT_BGR  # a ring is hollow
    assert frame[20, 45].any()  # the limb
    assert not frame[60:80, 10:30].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_drawing_survives_joints_that_are_nowhere(value: float):
    poses = make_poses()
    poses.keypoints_xyc[0, 0, :2] = value
    draw_poses(np.zeros((50, 60, 3), np.uint8), poses)
