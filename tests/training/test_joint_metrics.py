"""Scores of joints against their definition, and against what COCO's tools say of its rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tiny_joints import SIGMAS, TinyCropSpec, TinyJointSpec, TinyPoses, tiny_crops, tiny_poses
from tiny_samples import make_sample

from training.data.sample import Sample
from training.metrics.detection import GroundTruth, MetricError
from training.metrics.keypoints import (
    BODY_SHARE,
    joints_to_coco,
    object_similarity,
    score_joints,
)
from training.tasks import keypoints, pose_crop

NUM_JOINTS = len(SIGMAS)
BOXES = np.array([[10, 10, 50, 90], [100, 20, 180, 100], [60, 60, 80, 75]], np.float32)


def frame(image_id: int = 1, crowd: int | None = None, bare: int | None = None) -> Sample:
    """Three people, the third 20 px wide; one may be a crowd, one without joints."""
    rng = np.random.default_rng(image_id)
    shares = rng.uniform(0.1, 0.9, (3, NUM_JOINTS, 2))
    points = BOXES[:, None, :2] + shares * (BOXES[:, None, 2:] - BOXES[:, None, :2])
    joints = np.concatenate([points, np.full((3, NUM_JOINTS, 1), 2.0)], axis=2)
    joints[0, 1] = 0
    is_crowd = np.zeros(3, bool)
    if crowd is not None:
        is_crowd[crowd] = True
    if bare is not None:
        joints[bare] = 0
    return Sample(
        image=np.zeros((120, 200, 3), np.uint8),
        boxes_xyxy=BOXES.copy(),
        classes=np.zeros(3, np.int64),
        is_crowd=is_crowd,
        image_id=image_id,
        file_name=f"{image_id}.png",
        keypoints_xyv=joints.astype(np.float32),
    )


def truth_of(*samples: Sample) -> dict:
    truth = GroundTruth(("person",), (1,), SIGMAS)
    for sample in samples:
        truth.add(sample)
    return truth.as_coco()


def results_of(sample: Sample, rows: list[int], shift_px: float = 0.0) -> list[dict]:
    entries = [
        {
            "image_id": sample.image_id, "category_id": 1, "score": 0.9 - 0.1 * row,
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
        }
        for row, box in ((row, sample.boxes_xyxy[row]) for row in rows)
    ]  # fmt: skip
    return joints_to_coco(entries, sample.keypoints_xyv[rows] + np.float32([shift_px, 0, 0]))


def test_right_joints_score_one_and_no_error():
    sample = frame()
    scores = score_joints(truth_of(sample), results_of(sample, [0, 1, 2]))
    for name in ("OKS_AP", "OKS_AP50", "OKS_AP_48px", "PCK@0.2"):
        assert scores[name] == pytest.approx(1.0), name
    assert scores["NME"] == pytest.approx(0.0, abs=1e-6)


def test_precision_is_that_of_the_similarities_by_definition():
    """One person an image: AP at each threshold is whether its similarity passes."""
    sample = frame(bare=1)
    sample.is_crowd[2] = True
    for shift in (1.0, 3.0, 6.0, 12.0):
        width, height = BOXES[0, 2:] - BOXES[0, :2]
        area = BODY_SHARE * float(width * height)
        found = sample.keypoints_xyv[0] + np.float32([shift, 0, 0])
        likeness = object_similarity(found, sample.keypoints_xyv[0], area, SIGMAS)
        expected = np.mean([likeness >= limit for limit in np.arange(0.5, 0.96, 0.05)])
        scores = score_joints(truth_of(sample), results_of(sample, [0], shift))
        assert scores["OKS_AP"] == pytest.approx(float(expected), abs=1e-3), (shift, likeness)


def test_similarity_is_the_formula_in_plain_numbers():
    true = np.array([[0, 0, 2], [10, 0, 1], [5, 5, 0], [3, 4, 2]], float)
    found = true.copy()
    found[:, 0] += (1, 2, 50, 0)
    area = 400.0
    each = [
        np.exp(-(gap**2) / (2 * area * (2 * sigma) ** 2))
        for gap, sigma in ((1, SIGMAS[0]), (2, SIGMAS[1]), (0, SIGMAS[3]))
    ]
    assert object_similarity(found, true, area, SIGMAS) == pytest.approx(np.mean(each))
    assert np.isnan(object_similarity(found, np.zeros((4, 3)), area, SIGMAS))


def test_joint_that_is_not_labelled_may_lie_anywhere():
    sample = frame()
    results = results_of(sample, [0, 1, 2])
    results[0]["keypoints"][3:5] = [190.0, 110.0]
    scores = score_joints(truth_of(sample), results)
    assert scores["OKS_AP"] == pytest.approx(1.0)
    assert scores["PCK@0.2"] == 1.0


@pytest.mark.parametrize("kind", ["crowd", "bare"])
def test_crowds_and_people_without_joints_are_neither_missed_nor_wrong(kind: str):
    sample = frame(**{kind: 1})
    truth = truth_of(sample)
    assert score_joints(truth, results_of(sample, [0, 2]))["OKS_AP"] == pytest.approx(1.0)
    found = results_of(frame(), [1, 0, 2])  # the person that is not to be found comes first
    found[0]["score"] = 0.99
    assert score_joints(truth, found)["OKS_AP"] == pytest.approx(1.0)


def test_large_people_are_scored_apart():
    sample = frame()
    scores = score_joints(truth_of(sample), results_of(sample, [0, 1]))
    assert scores["OKS_AP_48px"] == pytest.approx(1.0)
    assert scores["OKS_AP"] < 0.75


def test_distances_are_over_the_side_and_the_root_of_the_area():
    sample = frame()
    scores = score_joints(truth_of(sample), results_of(sample, [1], shift_px=8.0))
    assert scores["NME"] == pytest.approx(8 / 80)
    assert scores["PCK@0.2"] == 1.0
    assert score_joints(truth_of(sample), results_of(sample, [1], 17.0))["PCK@0.2"] == 0.0


def test_result_takes_the_object_that_it_overlaps_and_no_other_takes_it_again():
    sample = frame()
    twice = results_of(sample, [1]) + results_of(sample, [1], shift_px=40.0)
    twice[1]["score"] = 0.1
    assert score_joints(truth_of(sample), twice)["NME"] == pytest.approx(0.0, abs=1e-6)


def test_unsure_results_enter_precision_and_no_distance():
    sample = frame()
    results = results_of(sample, [0, 1, 2])
    results[2]["score"] = 0.1
    results[2]["keypoints"][0] += 10
    truth = truth_of(sample)
    sure = score_joints(truth, results, min_score=0.3)
    assert sure["NME"] == pytest.approx(0.0, abs=1e-6)
    assert sure["OKS_AP"] < 1
    assert score_joints(truth, results)["NME"] > 0.01


def test_nothing_found_scores_nothing():
    scores = score_joints(truth_of(frame()), [])
    assert scores["OKS_AP"] == 0
    assert np.isnan(scores["NME"])
    empty = frame()
    bare = Sample(
        image=empty.image, boxes_xyxy=empty.boxes_xyxy[:0], classes=empty.classes[:0],
        is_crowd=empty.is_crowd[:0], image_id=1, file_name="x",
        keypoints_xyv=empty.keypoints_xyv[:0],
    )  # fmt: skip
    assert np.isnan(score_joints(truth_of(bare), [])["OKS_AP"])


def test_other_number_of_joints_is_refused():
    sample = frame()
    results = results_of(sample, [0])
    results[0]["keypoints"] = results[0]["keypoints"][:-3]
    with pytest.raises(MetricError, match="9 numbers as keypoints; expected 12"):
        score_joints(truth_of(sample), results)
    results = results_of(sample, [0])
    results[0]["keypoints"][0] = float("nan")
    with pytest.raises(MetricError, match="finite"):
        score_joints(truth_of(sample), results)
    bare = GroundTruth(("person",), (1,))
    bare.add(sample)
    with pytest.raises(MetricError, match="has sigmas"):
        score_joints(bare.as_coco(), [])


# ------------------------------------------------------------------------------------------- tasks


def drawn(image_id: int, hw: tuple[int, int]) -> Sample:
    sample = make_sample(hw)
    joints = np.zeros((3, NUM_JOINTS, 3), np.float32)
    joints[:, :3] = sample.keypoints_xyv
    return Sample(
        image=sample.image, boxes_xyxy=sample.boxes_xyxy, classes=np.zeros(3, np.int64),
        is_crowd=sample.is_crowd, image_id=image_id, file_name="x", keypoints_xyv=joints,
    )  # fmt: skip


class Oracle(TinyPoses):
    """Answers with the objects of the samples it was shown, by their first pixels."""

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__(TinyJointSpec(size_hw=(120, 200)))
        self.told = samples

    def candidates(self, raw):
        found = super().candidates(raw)
        batch = len(raw.logits)
        boxes = torch.zeros(batch, 3, 4)
        joints = torch.zeros(batch, 3, NUM_JOINTS, 3)
        for row, sample in zip(range(batch), self.told, strict=False):
            boxes[row] = torch.from_numpy(sample.boxes_xyxy)
            joints[row] = torch.from_numpy(sample.keypoints_xyv)
        logits = torch.full((batch, 3, 1), 4.0) - torch.arange(3)[None, :, None]

        def rows_of(table, anchors):
            return torch.stack([each[rows] for each, rows in zip(table, anchors, strict=True)])

        return found._replace(
            logits=logits,
            decode=lambda anchors: rows_of(boxes, anchors),
            decode_keypoints=lambda anchors: rows_of(joints, anchors),
        )


def test_task_keypoints_gives_a_model_that_knows_all_the_full_score():
    samples = [drawn(1, (120, 200)), drawn(2, (120, 200))]
    scores = keypoints.evaluate(Oracle(samples), samples, (1,), batch=2)
    assert scores["OKS_AP"] == pytest.approx(1.0)
    assert scores["AP"] == pytest.approx(1.0)
    assert scores["NME"] == pytest.approx(0, abs=1e-6)
    assert next(iter(scores)) == keypoints.MAIN_SCORE


def test_joints_find_their_way_back_to_the_frame():
    found = keypoints.Poses(None, np.float32([[[24.0, 40.0, 0.5]]]))
    spec = TinyJointSpec(size_hw=(64, 96))
    back = keypoints.joints_in_source(found, (64, 48), spec)
    np.testing.assert_allclose(back, [[[0.0, 40.0, 0.5]]])
    assert found.keypoints_xyc[0, 0, 0] == 24


def test_detect_gives_what_the_batch_s_images_give_alone():
    model = tiny_poses(score_threshold=0.5)
    images = torch.randint(0, 255, (3, 64, 96, 3), dtype=torch.uint8)
    together = keypoints.detect(model, images, score_threshold=0.5)
    for row in range(3):
        alone = keypoints.detect(model, images[row : row + 1], score_threshold=0.5)[0]
        assert len(alone.boxes.scores)
        np.testing.assert_allclose(together[row].keypoints_xyc, alone.keypoints_xyc, atol=1e-3)


def test_task_pose_crop_scores_what_its_model_says():
    model = tiny_crops()
    rng = np.random.default_rng(0)
    samples = []
    for number in range(3):
        image = rng.integers(0, 255, (48, 32, 3), np.uint8)
        joints = pose_crop.detect(model, torch.from_numpy(image[None]))[0].copy()
        joints[:, 2] = 2
        samples.append(
            Sample(
                image=image, boxes_xyxy=np.float32([[4, 4, 28, 44]]), classes=np.zeros(1, np.int64),
                is_crowd=np.zeros(1, bool), image_id=number, file_name="x",
                keypoints_xyv=joints[None],
            )
        )  # fmt: skip
    scores = pose_crop.evaluate(model, samples, (1,), batch=2)
    assert scores["PCK@0.2"] == 1.0
    assert scores["OKS_AP"] == pytest.approx(1.0)
    for sample in samples:
        sample.keypoints_xyv[..., 0] += 10
    moved = pose_crop.evaluate(model, samples, (1,))
    assert moved["PCK@0.2"] == 0.0
    assert moved["NME"] == pytest.approx(10 / (24 * 40) ** 0.5, rel=1e-4)
    assert isinstance(model.spec, TinyCropSpec)
    assert list(itertools.islice(moved, 1)) == [pose_crop.MAIN_SCORE]
