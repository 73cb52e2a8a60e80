"""Scores of masks, which only some models give, from the graph's output to results."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_bundle import write_tiny_bundle

from runtime.contract.bundle import Bundle
from runtime.contract.manifest import Manifest
from runtime.contract.matching import Comparison, compare_detections
from runtime.contract.outputs import OUTPUTS, outputs_of
from runtime.preprocess import Letterbox
from runtime.results import Detections
from runtime.tasks.instance import finish

TOLD = np.float32([[0.5, 0.125, 0], [0.25, 0, 0]])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    tiny = Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("tiny"))).manifest
    outputs = outputs_of("instance", ("mask_scores",))
    return dataclasses.replace(tiny, task="instance", outputs=outputs, mask_hw=(12, 16))


def make_outputs() -> dict[str, np.ndarray]:
    """Two frames, of two objects and of one."""
    boxes = np.zeros((2, 3, 4), np.float32)
    boxes[..., 2:] = 40
    boxes[0, 1] += 3
    return {
        "num_detections": np.int32([2, 1]),
        "boxes_xyxy": boxes,
        "scores": np.float32([[0.75, 0.5, 0], [0.5, 0, 0]]),
        "classes": np.int32([[0, 1, -1], [0, -1, -1]]),
        "masks": np.full((2, 3, 12, 16), 255, np.uint8),
        "mask_scores": TOLD,
    }


def finished(manifest: Manifest, outputs: dict[str, np.ndarray]) -> list[Detections]:
    return finish(outputs, [Letterbox.fit((96, 128), manifest.geometry)] * 2, manifest)


def test_optional_outputs_come_last_and_unknown_ones_are_refused():
    assert outputs_of("instance") == OUTPUTS["instance"]
    assert outputs_of("instance", ("mask_scores",))[-1].shape == ("B", "M")
    with pytest.raises(KeyError):
        outputs_of("detection", ("mask_scores",))


def test_manifest_with_the_optional_output_survives_json(manifest):
    again = Manifest.from_json(manifest.to_json(), origin="manifest.json")
    assert again.outputs == manifest.outputs
    assert again.outputs[-1].resolved(again.sizes(2)) == (2, again.max_detections)


def test_finish_gives_each_object_the_score_of_its_mask(manifest):
    first, second = finished(manifest, make_outputs())
    assert first.mask_scores.tolist() == [0.5, 0.125]
    assert second.mask_scores.tolist() == [0.25]
    assert first.scores.tolist() == [0.75, 0.5]


def test_model_without_scores_of_masks_has_none(manifest):
    outputs = make_outputs()
    del outputs["mask_scores"]
    first, _ = finished(manifest, outputs)
    assert first.mask_scores is None
    assert first[:1].mask_scores is None
    assert all("mask_score" not in entry for entry in first.to_coco(1, (3, 7, 9)))


def test_part_of_the_results_keeps_the_scores_of_its_masks(manifest):
    first, _ = finished(manifest, make_outputs())
    assert first[first.scores < 0.6].mask_scores.tolist() == [0.125]


def test_written_results_have_both_scores(manifest):
    first, _ = finished(manifest, make_outputs())
    for entries in (first.to_coco(1, (3, 7, 9)), first.to_json()["detections"]):
        assert [(e["score"], e["mask_score"]) for e in entries] == [(0.75, 0.5), (0.5, 0.125)]


def test_comparison_sees_a_wrong_score_of_a_mask():
    feeds = {"score_threshold": np.zeros((2, 2), np.float32), "iou_threshold": np.ones(2) / 2}
    wrong = make_outputs()
    wrong["mask_scores"] = TOLD.copy()
    wrong["mask_scores"][1, 0] += 0.25
    comparison = Comparison()
    compare_detections(make_outputs(), wrong, feeds, comparison)
    assert comparison.num_matched == 3
    assert comparison.max_score_error == pytest.approx(0.25)
