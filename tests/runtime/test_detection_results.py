import dataclasses
import json

import numpy as np
import pytest
from tiny_bundle import CATEGORY_IDS, CLASSES, write_tiny_bundle

from runtime.contract.bundle import Bundle
from runtime.contract.manifest import InputGeometry
from runtime.contract.outputs import inputs_of
from runtime.preprocess import Letterbox
from runtime.results import Detections
from runtime.tasks.detection import finish, thresholds

PIXELS = 1e-4


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("tiny"))).manifest


@pytest.fixture
def detections():
    boxes = np.float32([[1, 2, 11, 22], [5, 5, 6, 6], [0, 0, 3, 4]])
    return Detections(boxes, np.float32([0.9, 0.5, 0.25]), np.int32([2, 0, 2]), CLASSES)


ACCEPTED_SCORES = {
    "default": (None, [[0.3] * 3] * 2),
    "one number": (0.7, [[0.7] * 3] * 2),
    "integer": (1, [[1.0] * 3] * 2),
    "one a class": ([0.1, 0.2, 0.3], [[0.1, 0.2, 0.3]] * 2),
    "by name": ({"green cone": 0.9}, [[0.3, 0.9, 0.3]] * 2),
    "one row an image": ([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]),
    "filter above one": ({"blue ball": 2.0}, [[2.0, 0.3, 0.3]] * 2),
}


@pytest.mark.parametrize(("given", "rows"), ACCEPTED_SCORES.values(), ids=ACCEPTED_SCORES)
def test_score_threshold_becomes_one_number_per_image_and_class(manifest, given, rows):
    feeds = thresholds(manifest, 2, given)
    assert feeds["score_threshold"].dtype == np.float32
    np.testing.assert_array_equal(feeds["score_threshold"], np.float32(rows))


@pytest.mark.parametrize(
    ("given", "row"), [(None, [0.5, 0.5]), (0.7, [0.7, 0.7]), ([0.1, 0.9], [0.1, 0.9])]
)
def test_iou_threshold_becomes_one_number_per_image(manifest, given, row):
    feeds = thresholds(manifest, 2, iou_threshold=given)
    np.testing.assert_array_equal(feeds["iou_threshold"], np.float32(row))


REFUSED = {
    "unknown class": ({"score_threshold": {"green con": 0.5}}, "did you mean 'green cone'"),
    "nothing like it": ({"score_threshold": {"zebra": 0.5}}, "'zebra'; the bundle has blue ball"),
    "wrong count": ({"score_threshold": [0.1, 0.2]}, r"shape \(2,\); expected one number, 3"),
    "negative": ({"score_threshold": -0.1}, "score_threshold is -0.1; expected 0 or more"),
    "nan": ({"score_threshold": {"red car": float("nan")}}, "score_threshold is nan"),
    "iou above one": ({"iou_threshold": 1.5}, "iou_threshold is 1.5; expected 0 to 1"),
    "iou count": ({"iou_threshold": [0.5] * 3}, r"shape \(3,\); expected one number or 2"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_thresholds_are_refused_with_the_reason(manifest, given, message):
    with pytest.raises(ValueError, match=message):
        thresholds(manifest, 2, **given)


def test_finish_gives_each_image_its_own_boxes_in_its_own_pixels(manifest):
    letterboxes = [
        Letterbox.fit((96, 128), InputGeometry(48, 64)),
        Letterbox.fit((48, 32), InputGeometry(48, 64)),
    ]
    boxes = np.zeros((4, 5, 4), np.float32)
    boxes[0, :2] = [[1, 2, 3, 4], [0, 0, 64, 48]]
    boxes[1, 0] = [16, 0, 48, 48]
    outputs = {
        "num_detections": np.int32([2, 1, 0, 0]),
        "boxes_xyxy": boxes,
        "scores": np.zeros((4, 5), np.float32),
        "classes": np.full((4, 5), -1, np.int32),
    }
    results = finish(outputs, letterboxes, manifest)
    assert [len(result) for result in results] == [2, 1]
    np.testing.assert_allclose(results[0].boxes_xyxy, [[2, 4, 6, 8], [0, 0, 128, 96]], atol=PIXELS)
    np.testing.assert_allclose(results[1].boxes_xyxy, [[0, 0, 32, 48]], atol=PIXELS)


def test_finish_gives_nothing_when_the_graph_found_nothing(manifest):
    outputs = {
        "num_detections": np.int32([0]),
        "boxes_xyxy": np.zeros((1, 5, 4), np.float32),
        "scores": np.zeros((1, 5), np.float32),
        "classes": np.full((1, 5), -1, np.int32),
    }
    letterbox = Letterbox.fit((10, 10), InputGeometry(48, 64))
    (result,) = finish(outputs, [letterbox], manifest)
    assert (len(result), result.boxes_xyxy.shape, list(result)) == (0, (0, 4), [])


def test_coco_entries_have_the_data_sets_ids_and_widths(detections):
    entries = detections.to_coco(42, CATEGORY_IDS)
    assert entries[0] == {
        "image_id": 42,
        "category_id": 20,
        "bbox": [1.0, 2.0, 10.0, 20.0],
        "score": pytest.approx(0.9),
    }
    assert [entry["category_id"] for entry in entries] == [20, 3, 20]


def test_results_are_plain_json(detections):
    document = json.loads(json.dumps(detections.to_json()))
    assert [each["name"] for each in document["detections"]] == ["red car", "blue ball", "red car"]
    assert json.loads(json.dumps(detections.to_coco(1, CATEGORY_IDS)))[0]["image_id"] == 1


def test_part_of_the_detections_is_detections(detections):
    sure = detections[detections.scores > 0.4]
    assert [each.name for each in sure] == ["red car", "blue ball"]
    assert len(detections[:1]) == 1
    assert len(detections[:0]) == 0


def test_detection_is_named_by_its_class(detections):
    first = next(iter(detections))
    assert (first.name, first.class_index, first.score) == ("red car", 2, pytest.approx(0.9))


def test_bundle_that_suppresses_nothing_takes_no_iou_threshold(manifest):
    bare = dataclasses.replace(manifest, inputs=inputs_of("detection", is_suppressed=False))
    assert list(thresholds(bare, 2, 0.4)) == ["score_threshold"]
    with pytest.raises(ValueError, match=r"iou_threshold is 0\.5; the bundle takes none"):
        thresholds(bare, 2, 0.4, 0.5)
