"""Average precision of masks against hand-made cases and its definition written again."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest

from training.data import each_once
from training.data.outlines import compress_rle, decode_rle, encode_rle
from training.data.sample import Sample
from training.data.street import Street
from training.metrics.detection import (
    GroundTruth,
    MetricError,
    coco_ground_truth,
    detections_to_coco,
    score_boxes,
)
from training.metrics.instance import score_masks

pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval")

HW = (240, 320)
EXACT = 1e-6
KEYS = {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100", "AP/cat", "AP/dog"}
CAT, DOG = 3, 8  # category ids with a gap


def block(x: int, y: int, width: int, height: int) -> np.ndarray:
    """(H, W) mask of a rectangle."""
    mask = np.zeros(HW, np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def truth(*objects: tuple, num_images: int = 2) -> dict:
    """Ground truth of (image, category, mask) or (image, category, mask, "crowd")."""
    collected = GroundTruth(("cat", "dog"), (CAT, DOG))
    for image_id in range(1, num_images + 1):
        mine = [entry for entry in objects if entry[0] == image_id]
        masks = np.array([entry[2] for entry in mine], np.uint8).reshape(-1, *HW)
        collected.add(
            Sample(
                image=np.zeros((*HW, 3), np.uint8),
                boxes_xyxy=np.array([box_around(mask) for mask in masks], np.float32).reshape(
                    -1, 4
                ),
                classes=np.array([(CAT, DOG).index(entry[1]) for entry in mine], np.int64),
                is_crowd=np.array([len(entry) > 3 for entry in mine], bool),
                image_id=image_id,
                file_name=f"{image_id}.png",
                masks=masks,
            )
        )
    return collected.as_coco()


def box_around(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


def found(*rows: tuple) -> list[dict]:
    """Results of (image, category, score, mask)."""
    results = []
    for image_id, category, score, mask in rows:
        label = np.array([(CAT, DOG).index(category)])
        results += detections_to_coco(
            image_id,
            box_around(mask),
            np.array([score]),
            label,
            (CAT, DOG),
            masks=mask[None],
        )
    return results


A, B = block(10, 10, 40, 40), block(100, 100, 50, 50)  # medium both
SMALL, LARGE = block(0, 0, 20, 20), block(150, 100, 100, 100)
FRAME = block(60, 60, 110, 110) - block(70, 70, 90, 90)  # its box is large, its mask medium
CROWD = block(180, 20, 120, 80)

HAND = {
    "all found": (
        truth((1, CAT, A), (1, DOG, B), (2, CAT, FRAME)),
        found((1, CAT, 0.9, A), (1, DOG, 0.2, B), (2, CAT, 0.6, FRAME)),
        {"AP": 1.0, "AP50": 1.0, "AR100": 1.0, "AP/cat": 1.0, "AP/dog": 1.0},
    ),
    "nothing found": (
        truth((1, CAT, A), (2, DOG, B)),
        [],
        {"AP": 0.0, "AR100": 0.0, "AP_small": math.nan, "AP/dog": 0.0},
    ),
    "nothing there": (truth(), found((1, CAT, 0.9, A)), {"AP": math.nan, "AP/cat": math.nan}),
    "a detection on an image without objects": (
        truth((1, CAT, A)),
        found((2, CAT, 0.9, A), (1, CAT, 0.8, A)),
        {"AP": 0.5, "AR100": 1.0},
    ),
    "IoU 0.625": (  # 40x25 of 40x40: right at 0.50, 0.55 and 0.60 of ten thresholds
        truth((1, CAT, A)),
        found((1, CAT, 0.9, block(10, 10, 40, 25))),
        {"AP50": 1.0, "AP75": 0.0, "AP": 0.3, "AR100": 0.3},
    ),
    "the right box with a wrong mask": (  # 4,000 of 12,100 px
        truth((1, CAT, block(60, 60, 110, 110))),
        found((1, CAT, 0.9, FRAME)),
        {"AP": 0.0, "AR100": 0.0},
    ),
    "one of two": (  # recall 0, 0.01 .. 0.50 are reached: 51 of 101
        truth((1, CAT, A), (1, CAT, B)),
        found((1, CAT, 0.9, A)),
        {"AP": 51 / 101, "AR100": 0.5},
    ),
    "an empty mask": (
        truth((1, CAT, A)),
        [entry | {"segmentation": encode_rle(block(0, 0, 0, 0))} for entry in found((1, 3, 1, A))],
        {"AP": 0.0},
    ),
    "a detection in a crowd is neither right nor wrong": (
        truth((1, CAT, A), (1, CAT, CROWD, "crowd")),
        found((1, CAT, 0.9, block(200, 30, 20, 20)), (1, CAT, 0.8, A)),
        {"AP": 1.0},
    ),
    "a detection half in a crowd is wrong at 0.55": (  # right objects come second at 9 of 10
        truth((1, CAT, A), (1, CAT, CROWD, "crowd")),
        found((1, CAT, 0.9, block(160, 30, 40, 40)), (1, CAT, 0.8, A)),
        {"AP50": 1.0, "AP": (1 + 9 * 0.5) / 10},
    ),
    "sizes are those of masks": (
        truth((1, CAT, SMALL), (1, CAT, FRAME), (1, CAT, LARGE)),
        found((1, CAT, 0.9, SMALL), (1, CAT, 0.8, LARGE)),
        {"AP_small": 1.0, "AP_medium": 0.0, "AP_large": 1.0},
    ),
    "a wrong mask counts in the size of its mask": (  # 197 px in a box of 99x99
        truth((1, CAT, SMALL)),
        found((1, CAT, 0.9, block(99, 9, 1, 99) | block(99, 9, 99, 1)), (1, CAT, 0.8, SMALL)),
        {"AP_small": 0.5},
    ),
}


@pytest.mark.parametrize("case", list(HAND))
def test_scores_of_masks_are_those_computed_by_hand(case):
    ground_truth, results, expected = HAND[case]
    scores = score_masks(ground_truth, results)
    assert set(scores) == {f"mask_{name}" for name in KEYS}
    for name, value in expected.items():
        assert scores[f"mask_{name}"] == pytest.approx(value, abs=EXACT, nan_ok=True), name


def test_boxes_score_one_where_only_the_mask_is_wrong():
    ground_truth, results, _ = HAND["the right box with a wrong mask"]
    assert score_boxes(ground_truth, results)["AP"] == pytest.approx(1, abs=EXACT)


def test_scores_do_not_depend_on_how_run_lengths_are_written():
    ground_truth, results, expected = HAND["IoU 0.625"]
    written = {
        "numbers": [
            entry | {"segmentation": encode_rle(decode_rle(entry["segmentation"]))}
            for entry in results
        ],
        "bytes": [
            entry
            | {
                "segmentation": {
                    "size": entry["segmentation"]["size"],
                    "counts": entry["segmentation"]["counts"].encode(),
                }
            }
            for entry in results
        ],
        "after JSON": json.loads(json.dumps(results)),
        "without boxes": [
            {key: value for key, value in entry.items() if key != "bbox"} for entry in results
        ],
    }
    for name, rows in written.items():
        assert score_masks(ground_truth, rows)["mask_AP"] == pytest.approx(expected["AP"]), name


def test_scoring_masks_changes_neither_truth_nor_results():
    ground_truth, results, _ = HAND["all found"]
    before = copy.deepcopy((ground_truth, results))
    score_masks(ground_truth, results)
    assert (ground_truth, results) == before


def blob(rng: np.random.Generator, near: np.ndarray | None = None) -> np.ndarray:
    """A random rectangle with a bite, or one like another, moved a little."""
    if near is not None:
        return np.roll(near, rng.integers(-9, 10, 2), axis=(0, 1))
    x, y = rng.integers(0, 200), rng.integers(0, 150)
    width, height = rng.integers(15, 110, 2)
    return block(x, y, width, height) & (1 - block(x, y, width // 3, height // 2))


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Moved copies of the truth, wrong masks and missed ones, on 6 images."""
    rng = np.random.default_rng(seed)
    objects, rows = [], []
    for image in range(1, 7):
        for _ in range(rng.integers(0, 5)):
            category, mask = int(rng.choice([CAT, DOG])), blob(rng)
            objects.append((image, category, mask))
            for _ in range(rng.integers(0, 3)):
                rows.append((image, category, float(rng.random()), blob(rng, mask)))
        for _ in range(rng.integers(0, 3)):
            rows.append((image, int(rng.choice([CAT, DOG])), float(rng.random()), blob(rng)))
    return truth(*objects, num_images=6), found(*rows)


def ap_at(ground_truth: dict, results: list[dict], category: int, threshold: float) -> float:
    """AP of one class at one mask IoU, written again from its definition."""
    objects = [entry for entry in ground_truth["annotations"] if entry["category_id"] == category]
    masks = {entry["id"]: decode_rle(entry["segmentation"]) for entry in objects}
    taken: set[int] = set()
    is_right = []
    mine = [result for result in results if result["category_id"] == category]
    for result in sorted(mine, key=lambda entry: -entry["score"]):
        mask = decode_rle(result["segmentation"])
        ious = [
            ((masks[entry["id"]] & mask).sum() / (masks[entry["id"]] | mask).sum(), entry["id"])
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


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_masks_agree_with_the_definition_written_again(seed):
    ground_truth, results = random_case(seed)
    scores = score_masks(ground_truth, results)
    by_class = {
        category: [ap_at(ground_truth, results, category, t / 100) for t in range(50, 100, 5)]
        for category in (CAT, DOG)
    }
    assert 0.05 < scores["mask_AP"] < 0.95
    assert scores["mask_AP50"] == pytest.approx((by_class[CAT][0] + by_class[DOG][0]) / 2, abs=1e-6)
    assert scores["mask_AP75"] == pytest.approx((by_class[CAT][5] + by_class[DOG][5]) / 2, abs=1e-6)
    assert scores["mask_AP/cat"] == pytest.approx(np.mean(by_class[CAT]), abs=1e-6)
    assert scores["mask_AP"] == pytest.approx(np.mean(list(by_class.values())), abs=1e-6)


GOOD = found((1, CAT, 0.9, A))[0]
BAD = {
    "another image": (GOOD | {"image_id": 5}, r"image ids \[5\].*expected its own ids"),
    "another size": (
        GOOD | {"segmentation": encode_rle(np.ones((24, 32), np.uint8))},
        r"size \[24, 32\]; expected run lengths of \[240, 320\]",
    ),
    "a polygon": (GOOD | {"segmentation": [[1, 1, 9, 1, 9, 9]]}, "the size list; expected run"),
    "no mask": ({"image_id": 1, "category_id": 3, "score": 1.0}, "result 0 has no 'segmentation'"),
    "no score": ({"image_id": 1, "category_id": 3, "segmentation": {}}, "has no 'score'"),
    "a score that is no number": (GOOD | {"score": math.nan}, "score nan; expected a finite"),
    "too few runs": (
        GOOD | {"segmentation": {"size": list(HW), "counts": "23"}},
        "cannot be read.*run lengths sum to 5, expected 240x320",
    ),
    "half a number": (GOOD | {"segmentation": {"size": list(HW), "counts": "o"}}, "within a numb"),
    "no runs": (GOOD | {"segmentation": {"size": list(HW)}}, "cannot be read"),
    "words": (GOOD | {"segmentation": {"size": list(HW), "counts": ["a"]}}, "cannot be read"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_results_that_are_not_masks_of_the_images_are_one_line(case):
    result, expected = BAD[case]
    with pytest.raises(MetricError, match=expected) as caught:
        score_masks(truth((1, CAT, A)), [result])
    assert "\n" not in str(caught.value)


def test_ground_truth_without_masks_is_refused():
    ground_truth = truth((1, CAT, A), (2, CAT, B))
    del ground_truth["annotations"][1]["segmentation"]
    with pytest.raises(MetricError, match=r"1 of 2 objects.*no mask \(the first of image 2\)"):
        score_masks(ground_truth, found((1, CAT, 0.9, A)))
    with pytest.raises(MetricError, match="no images"):
        score_masks(truth(num_images=0), [])


def test_ground_truth_holds_the_masks_of_the_street_in_little_memory():
    source = Street("val", 3, labels=("masks",))
    ground_truth = coco_ground_truth(source)
    annotations = iter(ground_truth["annotations"])
    results, num_masks = [], 0
    for sample in each_once(source):
        for mask in sample.masks:
            annotation = next(annotations)
            np.testing.assert_array_equal(decode_rle(annotation["segmentation"]), mask)
            assert annotation["area"] == mask.sum()
            num_masks += 1
        results += detections_to_coco(
            sample.image_id,
            sample.boxes_xyxy,
            np.linspace(1, 0.5, len(sample)),
            sample.classes,
            source.category_ids,
            masks=sample.masks,
        )
    assert num_masks > 15
    assert len(json.dumps(ground_truth["annotations"])) < 500 * num_masks
    assert score_masks(ground_truth, results)["mask_AP"] == pytest.approx(1, abs=EXACT)


def test_detections_that_are_dropped_take_their_masks_with_them():
    boxes = np.array([[1, 2, 5, 9], [0, 0, 0, 0], [np.nan, 0, 1, 1], [3, 3, 9, 9]], np.float32)
    masks = np.stack([A, B, SMALL, LARGE])
    rows = detections_to_coco(
        4, boxes, np.full(4, 0.5), np.array([1, -1, 0, 0]), (CAT, DOG), masks=masks
    )
    assert [row["segmentation"] for row in rows] == [
        compress_rle(encode_rle(A)),
        compress_rle(encode_rle(LARGE)),
    ]
    none = detections_to_coco(4, np.zeros((0, 4)), [], [], (CAT,), masks=np.zeros((0, *HW)))
    assert none == []
