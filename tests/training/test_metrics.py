"""Average precision against hand-computed cases and second implementations."""

from __future__ import annotations

import contextlib
import copy
import io
import math

import numpy as np
import pytest

from training.data.sample import Sample
from training.metrics.detection import (
    GroundTruth,
    MetricError,
    coco_ground_truth,
    detections_to_coco,
    score_boxes,
)

KEYS = {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100"}
EXACT = 1e-9


def truth(*boxes: tuple, num_images: int = 1, crowd: bool = False) -> dict:
    """Ground truth of (image, category, x, y, w, h) with categories 3 and 8."""
    return {
        "images": [{"id": i + 1, "width": 640, "height": 480} for i in range(num_images)],
        "annotations": [
            {
                "id": place + 1,
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": int(crowd),
            }
            for place, (image, category, *box) in enumerate(boxes)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    }


def found(*rows: tuple) -> list[dict]:
    """Results of (image, category, score, x, y, w, h)."""
    return [
        {"image_id": image, "category_id": category, "score": score, "bbox": list(box)}
        for image, category, score, *box in rows
    ]


A, B = (10, 10, 40, 40), (100, 100, 50, 50)  # medium both


def test_scores_of_perfect_detections_are_one():
    scores = score_boxes(truth((1, 3, *A), (1, 8, *B)), found((1, 3, 0.9, *A), (1, 8, 0.2, *B)))
    assert set(scores) == KEYS | {"AP/cat", "AP/dog"}
    for name in ("AP", "AP50", "AP75", "AP_medium", "AR100", "AP/cat", "AP/dog"):
        assert scores[name] == pytest.approx(1, abs=EXACT)
    assert math.isnan(scores["AP_small"])
    assert math.isnan(scores["AP_large"])


HAND = {
    "a wrong box above a right one": (
        truth((1, 3, *A)),
        found((1, 3, 0.9, *B), (1, 3, 0.8, *A)),
        {"AP50": 0.5, "AP": 0.5, "AR100": 1.0},
    ),
    "a wrong box below a right one": (
        truth((1, 3, *A)),
        found((1, 3, 0.7, *B), (1, 3, 0.8, *A)),
        {"AP50": 1.0},
    ),
    "one of two": (  # recall 0, 0.01 .. 0.50 are reached: 51 of 101
        truth((1, 3, *A), (1, 3, *B)),
        found((1, 3, 0.9, *A)),
        {"AP50": 51 / 101, "AP": 51 / 101, "AR100": 0.5},
    ),
    "IoU 0.625": (  # 40x25 of 40x40: right at 0.50, 0.55 and 0.60 of ten thresholds
        truth((1, 3, *A)),
        found((1, 3, 0.9, 10, 10, 40, 25)),
        {"AP50": 1.0, "AP75": 0.0, "AP": 0.3, "AR100": 0.3},
    ),
    "the same box twice": (
        truth((1, 3, *A), (1, 3, *B)),
        found((1, 3, 0.9, *A), (1, 3, 0.8, *A), (1, 3, 0.7, *B)),
        {"AP50": (51 + 50 * 2 / 3) / 101},
    ),
    "one class of two": (
        truth((1, 3, *A), (1, 8, *B)),
        found((1, 3, 0.9, *A)),
        {"AP": 0.5, "AP/cat": 1.0, "AP/dog": 0.0},
    ),
    "the wrong image": (
        truth((1, 3, *A), num_images=2),
        found((2, 3, 0.9, *A)),
        {"AP": 0.0, "AR100": 0.0},
    ),
    "small, medium, large": (
        truth((1, 3, 0, 0, 20, 20), (1, 3, *B), (1, 3, 200, 200, 100, 100)),
        found((1, 3, 0.9, 0, 0, 20, 20), (1, 3, 0.8, 200, 200, 100, 100)),
        {"AP_small": 1.0, "AP_medium": 0.0, "AP_large": 1.0},
    ),
}


@pytest.mark.parametrize("case", list(HAND))
def test_scores_are_those_computed_by_hand(case):
    ground_truth, results, expected = HAND[case]
    scores = score_boxes(ground_truth, results)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-6), name


def test_no_results_score_zero_where_there_are_objects():
    scores = score_boxes(truth((1, 3, *A)), [])
    for name in ("AP", "AP50", "AP75", "AP_medium", "AR100", "AP/cat"):
        assert scores[name] == 0
    for name in ("AP_small", "AP_large", "AP/dog"):
        assert math.isnan(scores[name])


def test_scores_are_nan_when_there_is_nothing_to_find():
    for results in ([], found((1, 3, 0.5, *A))):
        assert all(math.isnan(value) for value in score_boxes(truth(), results).values())


def test_a_detection_on_a_crowd_is_neither_right_nor_wrong():
    ground_truth = truth((1, 3, *A))
    crowd = truth((1, 3, 200, 200, 200, 200), crowd=True)["annotations"][0] | {"id": 2}
    ground_truth["annotations"].append(crowd)
    results = found((1, 3, 0.9, 210, 210, 20, 20), (1, 3, 0.8, 250, 250, 9, 9), (1, 3, 0.5, *A))
    assert score_boxes(ground_truth, results)["AP"] == pytest.approx(1, abs=EXACT)


def test_scoring_changes_neither_truth_nor_results():
    ground_truth, results = truth((1, 3, *A)), found((1, 3, 0.9, *A))
    before = copy.deepcopy((ground_truth, results))
    score_boxes(ground_truth, results)
    assert (ground_truth, results) == before


def test_results_of_an_unknown_image_are_an_error():
    with pytest.raises(MetricError, match=r"image ids \[5\]"):
        score_boxes(truth((1, 3, *A)), found((5, 3, 0.9, *A)))


def test_results_that_are_not_finite_are_an_error():
    with pytest.raises(MetricError, match="finite"):
        score_boxes(truth((1, 3, *A)), found((1, 3, float("nan"), *A)))


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Shifted copies of the truth, wrong boxes and missed ones, on 8 images."""
    rng = np.random.default_rng(seed)
    boxes, rows = [], []
    for image in range(1, 9):
        for _ in range(rng.integers(0, 6)):
            category = int(rng.choice([3, 8]))
            box = np.concatenate([rng.uniform(0, 400, 2), rng.uniform(8, 150, 2)])
            boxes.append((image, category, *box.tolist()))
            for _ in range(rng.integers(0, 3)):
                moved = box + rng.normal(0, 0.1, 4) * np.tile(box[2:], 2)
                rows.append((image, category, float(rng.random()), *moved.tolist()))
        for _ in range(rng.integers(0, 3)):
            wrong = np.concatenate([rng.uniform(0, 400, 2), rng.uniform(8, 150, 2)])
            rows.append((image, int(rng.choice([3, 8])), float(rng.random()), *wrong.tolist()))
    return truth(*boxes, num_images=8), found(*rows)


def box_iou(a: list[float], b: list[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def ap_at(ground_truth: dict, results: list[dict], category: int, threshold: float) -> float:
    """AP of one class at one IoU, written again from its definition."""
    objects = [entry for entry in ground_truth["annotations"] if entry["category_id"] == category]
    taken: set[int] = set()
    is_right = []
    mine = [result for result in results if result["category_id"] == category]
    for result in sorted(mine, key=lambda entry: -entry["score"]):
        ious = [
            (box_iou(entry["bbox"], result["bbox"]), entry["id"])
            for entry in objects
            if entry["image_id"] == result["image_id"] and entry["id"] not in taken
        ]
        best, key = max(ious, default=(0.0, 0))
        is_right.append(best >= threshold)
        if best >= threshold:
            taken.add(key)
    right = np.cumsum(is_right)
    recall, precision = right / len(objects), right / np.arange(1, len(right) + 1)
    reached = [precision[recall >= level].max(initial=0) for level in np.linspace(0, 1, 101)]
    return float(np.mean(reached))


@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_the_definition_written_again(seed):
    ground_truth, results = random_case(seed)
    scores = score_boxes(ground_truth, results)
    by_class = {
        category: [ap_at(ground_truth, results, category, t / 100) for t in range(50, 100, 5)]
        for category in (3, 8)
    }
    assert scores["AP50"] == pytest.approx((by_class[3][0] + by_class[8][0]) / 2, abs=1e-6)
    assert scores["AP75"] == pytest.approx((by_class[3][5] + by_class[8][5]) / 2, abs=1e-6)
    assert scores["AP/cat"] == pytest.approx(np.mean(by_class[3]), abs=1e-6)
    assert scores["AP"] == pytest.approx(np.mean(list(by_class.values())), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_scores_agree_with_pycocotools(seed):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    cocoeval = pytest.importorskip("pycocotools.cocoeval", reason="pycocotools is not installed")
    ground_truth, results = random_case(seed)
    scores = score_boxes(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = coco.COCO()
        theirs.dataset = copy.deepcopy(ground_truth)
        theirs.createIndex()
        evaluation = cocoeval.COCOeval(theirs, theirs.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    order = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    expected = [math.nan if value < 0 else value for value in evaluation.stats[:6]]
    ours = [scores[name] for name in order]
    np.testing.assert_allclose(ours, expected, atol=1e-9, equal_nan=True)
    assert scores["AR100"] == pytest.approx(evaluation.stats[8], abs=1e-9)


def make_sample(image_id: int, *, masks: bool = False) -> Sample:
    boxes = np.array([[10, 20, 50, 60], [0, 0, 8, 8]], np.float32)
    mask = np.zeros((2, 80, 90), np.uint8)
    mask[0, 20:40, 10:50] = 1
    return Sample(
        image=np.zeros((80, 90, 3), np.uint8),
        boxes_xyxy=boxes,
        classes=np.array([1, 0]),
        is_crowd=np.array([False, True]),
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        masks=mask if masks else None,
    )


class Samples:
    classes = ("cat", "dog")
    category_ids = (3, 8)

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return make_sample(self.ids[index])


def test_ground_truth_keeps_category_ids_crowds_and_areas():
    content = coco_ground_truth(Samples([4, 5, 5]))  # 5 stands in for a broken image
    assert [image["id"] for image in content["images"]] == [4, 5]
    assert content["categories"] == [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    first, second = content["annotations"][:2]
    assert (first["category_id"], first["bbox"], first["area"]) == (8, [10, 20, 40, 40], 1600)
    assert (first["iscrowd"], second["iscrowd"]) == (0, 1)
    assert len({entry["id"] for entry in content["annotations"]}) == 4
    masked = coco_ground_truth([make_sample(1, masks=True)], classes=["a", "b"])
    assert masked["annotations"][0]["area"] == 20 * 40
    assert [entry["id"] for entry in masked["categories"]] == [1, 2]


def test_ground_truth_refuses_what_it_cannot_name_or_has_seen():
    with pytest.raises(MetricError, match="class names"):
        coco_ground_truth([make_sample(1)])
    collected = GroundTruth(["a", "b"], [1, 2])
    collected.add(make_sample(1))
    with pytest.raises(MetricError, match="came twice"):
        collected.add(make_sample(1))
    with pytest.raises(MetricError, match="one id of its own"):
        GroundTruth(["a", "b"], [1, 1])


def test_detections_drop_padding_and_rows_that_are_not_finite():
    boxes = np.array([[1, 2, 5, 9], [0, 0, 0, 0], [np.nan, 0, 1, 1], [0, 0, 2, 2]], np.float32)
    scores = np.array([0.5, 0.0, 0.9, np.inf], np.float32)
    rows = detections_to_coco(4, boxes, scores, np.array([1, -1, 0, 0], np.int32), (3, 8))
    assert rows == [{"image_id": 4, "category_id": 8, "bbox": [1, 2, 4, 7], "score": 0.5}]
    assert detections_to_coco(4, np.zeros((0, 4)), np.zeros(0), np.zeros(0), (3, 8)) == []


def test_samples_found_exactly_score_one():
    content = coco_ground_truth(Samples([1, 2]))
    results = []
    for sample in (make_sample(1), make_sample(2)):
        results += detections_to_coco(
            sample.image_id, sample.boxes_xyxy, np.array([0.9, 0.8]), sample.classes, (3, 8)
        )
    assert score_boxes(content, results)["AP/dog"] == pytest.approx(1, abs=EXACT)
