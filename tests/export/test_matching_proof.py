"""Matching of detections: pairs, their errors, and what is left over with its margins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from runtime.contract.matching import NEAR_A_DECISION, Comparison, compare_detections, pairwise_iou

THRESHOLD, IOU_THRESHOLD = 0.3, 0.5
ROWS = 8


def results(*rows: tuple[list[float], float, int]) -> dict[str, np.ndarray]:
    """Outputs of one frame from (box, score, class) rows."""
    made = {
        "num_detections": np.array([len(rows)], np.int32),
        "boxes_xyxy": np.zeros((1, ROWS, 4), np.float32),
        "scores": np.zeros((1, ROWS), np.float32),
        "classes": np.full((1, ROWS), -1, np.int32),
    }
    for index, (box, score, label) in enumerate(rows):
        made["boxes_xyxy"][0, index] = box
        made["scores"][0, index] = score
        made["classes"][0, index] = label
    return made


def compare(ours: dict, theirs: dict) -> Comparison:
    feeds = {
        "score_threshold": np.full((1, 2), THRESHOLD, np.float32),
        "iou_threshold": np.array([IOU_THRESHOLD], np.float32),
    }
    comparison = Comparison()
    compare_detections(ours, theirs, feeds, comparison, first_image=7)
    return comparison


BOX = [10.0, 10, 50, 50]
FAR = [60.0, 60, 90, 90]


def test_iou_is_torchvisions():
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0, 50, (20, 4)).astype(np.float32) for _ in range(2))
    a[:, 2:] += a[:, :2]
    b[:, 2:] += b[:, :2]
    expected = box_iou(torch.from_numpy(a).double(), torch.from_numpy(b).double()).numpy()
    assert np.allclose(pairwise_iou(a, b), expected, atol=1e-12)


def test_equal_results_in_another_order_match_without_error():
    ours = results((BOX, 0.9, 0), (FAR, 0.8, 1))
    theirs = results((FAR, 0.8, 1), (BOX, 0.9, 0))
    found = compare(ours, theirs)
    assert (found.num_matched, found.unmatched) == (2, [])
    assert (found.max_box_error_px, found.max_score_error) == (0, 0)


def test_nothing_on_both_sides_is_nothing():
    found = compare(results(), results())
    assert (found.num_matched, found.unmatched) == (0, [])


def test_errors_are_the_largest_corner_and_the_score():
    moved = [10.0, 10.25, 50, 49]
    found = compare(results((BOX, 0.9, 0)), results((moved, 0.85, 0)))
    assert found.max_box_error_px == 1
    assert found.max_score_error == pytest.approx(0.05)


def test_twins_are_paired_by_score():
    ours = results((BOX, 0.9, 0), (BOX, 0.6, 0))
    theirs = results((BOX, 0.6, 0), (BOX, 0.9, 0))
    assert compare(ours, theirs).max_score_error == 0


def test_other_class_is_no_match():
    found = compare(results((BOX, 0.9, 0)), results((BOX, 0.9, 1)))
    assert found.num_matched == 0
    assert [(u.side, u.class_index) for u in found.unmatched] == [
        ("reference", 0),
        ("candidate", 1),
    ]


def test_box_without_area_matches_its_twin():
    edge = [96.0, 0, 96, 4]
    assert compare(results((edge, 0.9, 0)), results((edge, 0.9, 0))).unmatched == []


def test_box_without_area_matches_one_a_rounding_away_and_its_error_says_nothing():
    """Clipped to the frame's edge it hides how far off it lay, and how coarse float32 is there."""
    edge, moved = [96.0, 2.045, 96, 128], [96.0, 1.985, 96, 128]
    found = compare(results((edge, 0.9, 0)), results((moved, 0.9, 0)))
    assert (found.num_matched, found.unmatched, found.box_errors) == (1, [], [])


def test_box_that_loses_its_area_tells_the_error():
    found = compare(results(([95.9, 0, 96, 4], 0.9, 0)), results(([96.0, 0, 96, 4], 0.9, 0)))
    assert found.max_box_error_px == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("place", ["boxes_xyxy", "scores"])
def test_nan_matches_nothing_and_is_not_explained(place):
    spoilt = results((BOX, 0.9, 0))
    spoilt[place][0, 0] = np.nan
    found = compare(results((BOX, 0.9, 0)), spoilt)
    assert found.num_matched == 0
    assert sum(not u.is_explained for u in found.unmatched) == 2


def test_result_near_the_score_threshold_is_listed_with_its_margin_and_explained():
    score = THRESHOLD + NEAR_A_DECISION / 2
    found = compare(results((BOX, 0.9, 0), (FAR, score, 1)), results((BOX, 0.9, 0)))
    (left,) = found.unmatched
    assert (left.image, left.side, left.class_index) == (7, "reference", 1)
    assert left.score_margin == pytest.approx(NEAR_A_DECISION / 2, abs=1e-7)
    assert left.is_explained


def test_result_near_the_suppression_threshold_is_listed_with_its_margin_and_explained():
    # 40x40 against itself moved: IoU = (40 - d) / (40 + d) is one half at d = 40 / 3.
    neighbour = [10 + 40 / 3, 10, 50 + 40 / 3, 50]
    found = compare(results((BOX, 0.9, 0), (neighbour, 0.7, 0)), results((BOX, 0.9, 0)))
    (left,) = found.unmatched
    assert left.iou_margin < 1e-6
    assert left.is_explained


def test_result_far_from_any_threshold_is_not_explained():
    found = compare(results((BOX, 0.9, 0)), results((BOX, 0.9, 0), (FAR, 0.7, 0)))
    (left,) = found.unmatched
    assert left.side == "candidate"
    assert left.score_margin == pytest.approx(0.4)
    assert not left.is_explained
    assert found.summary()["unexplained"] == 1


def test_rows_beyond_the_count_are_not_looked_at():
    padded = results((BOX, 0.9, 0))
    padded["boxes_xyxy"][0, 1:] = np.nan
    assert compare(results((BOX, 0.9, 0)), padded).unmatched == []
