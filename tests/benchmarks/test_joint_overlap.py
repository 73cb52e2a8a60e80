"""Joints in the place of boxes: similarity and AP against COCO's own tools."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.measure.average_precision import Matches
from benchmarks.measure.joint_overlap import joint_overlap
from training.metrics.keypoints import BODY_SHARE, object_similarity, similarity_precision

SIGMAS = (0.03, 0.06, 0.06, 0.09)
NUM_JOINTS = len(SIGMAS)


def scene(seed: int) -> tuple[dict, list[dict], list[tuple]]:
    """COCO ground truth and results of six images, and the same as arrays; one crowd each."""
    rng = np.random.default_rng(seed)
    truth: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    results, arrays = [], []
    for image in range(1, 7):
        truth["images"].append({"id": image, "width": 300, "height": 300})
        low = rng.uniform(0, 150, (4, 2))
        boxes = np.hstack([low, low + rng.uniform(50, 120, (4, 2))])
        sides = boxes[:, 2:] - boxes[:, :2]
        points = boxes[:, None, :2] + rng.uniform(0, 1, (4, NUM_JOINTS, 2)) * sides[:, None]
        visible = rng.integers(0, 3, (4, NUM_JOINTS, 1)).astype(float)
        visible[:, 0] = 2
        joints = np.concatenate([points, visible], axis=2)
        is_crowd = np.arange(4) == 3
        areas = BODY_SHARE * sides.prod(axis=1)
        for row in range(4):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1, "image_id": image, "category_id": 1,
                    "bbox": [*boxes[row, :2], *sides[row]], "area": areas[row],
                    "iscrowd": int(is_crowd[row]), "keypoints": joints[row].ravel().tolist(),
                    "num_keypoints": int((visible[row] > 0).sum()),
                }
            )  # fmt: skip
        found = np.concatenate([joints + np.pad(rng.normal(0, s, (4, NUM_JOINTS, 2)),
                                ((0, 0), (0, 0), (0, 1))) for s in (2, 8)])  # fmt: skip
        scores = rng.permutation(8) / 8 + 0.05 * rng.random(8)
        results += [
            {"image_id": image, "category_id": 1, "bbox": [0, 0, 9, 9], "score": float(score),
             "keypoints": each.ravel().tolist()} for each, score in zip(found, scores, strict=True)
        ]  # fmt: skip
        arrays.append((found, scores, joints, boxes, areas, is_crowd))
    return truth, results, arrays


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_of_joints_is_coco_s(seed: int):
    truth, results, arrays = scene(seed)
    matches = Matches(1, limit=20)
    for found, scores, joints, boxes, areas, is_crowd in arrays:
        overlaps = joint_overlap(found, joints, boxes, areas, SIGMAS)
        kinds = np.zeros(len(found), int), np.zeros(len(boxes), int)
        matches.add(np.zeros((8, 4)), scores, kinds[0], boxes, kinds[1], is_crowd, overlaps)
    expected = similarity_precision(truth, results, SIGMAS)["AP"]
    assert 0.1 < expected < 0.95
    assert matches.average_precision() == pytest.approx(expected, abs=1e-9)


def test_similarity_is_that_of_each_pair():
    _, _, arrays = scene(0)
    found, _, joints, boxes, areas, _ = arrays[0]
    overlaps = joint_overlap(found, joints, boxes, areas, SIGMAS)
    for row in range(len(found)):
        for column in range(len(joints)):
            expected = object_similarity(found[row], joints[column], areas[column], SIGMAS)
            assert overlaps[row, column] == pytest.approx(expected)


def test_object_without_joints_takes_what_lies_within_its_box_doubled():
    box = np.array([[100.0, 100, 150, 150]])
    inside, outside = np.full((2, 1, NUM_JOINTS, 3), 60.0)
    outside = outside - 30
    bare = np.zeros((1, NUM_JOINTS, 3))
    near = joint_overlap(np.concatenate([inside, outside]), bare, box, np.array([100.0]), SIGMAS)
    assert near[0, 0] == pytest.approx(1.0)
    assert near[1, 0] < 0.01


def test_nothing_found_and_nothing_there():
    empty = np.zeros((0, NUM_JOINTS, 3))
    assert joint_overlap(empty, empty, np.zeros((0, 4)), np.zeros(0), SIGMAS).shape == (0, 0)
    assert joint_overlap(empty, np.ones((2, NUM_JOINTS, 3)), np.zeros((2, 4)), np.ones(2),
                         SIGMAS).shape == (0, 2)  # fmt: skip
