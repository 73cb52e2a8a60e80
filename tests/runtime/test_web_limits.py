from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_bundle import CLASSES, write_tiny_bundle

from runtime.contract.manifest import MANIFEST_NAME, Manifest
from runtime.contract.outputs import IMAGE, SCORE_THRESHOLD
from runtime.tasks import load_task
from runtime.web.limits import Limits, LimitsError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", num_samples=0)
    return Manifest.from_file(folder / MANIFEST_NAME)


def test_limits_begin_as_the_bundles_or_the_command_lines(manifest):
    own, given = Limits.of(manifest), Limits.of(manifest, 0.7, 0.2)
    assert (own.score, own.iou) == (0.3, 0.5)
    assert (given.score, given.iou) == (0.7, 0.2)
    assert np.allclose(given.row, 0.7)


def test_limits_above_one_are_one(manifest):
    limits = Limits.of(manifest, 1.5, 2.0)
    assert (limits.score, limits.iou) == (1.0, 1.0)


def test_class_is_changed_alone(manifest):
    asked = {"score": {"per_class": {CLASSES[0]: 0.1, CLASSES[1]: 0.2}}}
    first = Limits.of(manifest).changed(manifest, asked)
    changes = {"score": {"classes": {CLASSES[1]: None, CLASSES[2]: 0.7}}}
    second = first.changed(manifest, changes)
    assert second.per_class == {CLASSES[0]: 0.1, CLASSES[2]: 0.7}
    assert np.allclose(second.row, [0.1, 0.3, 0.7])
    assert second.changed(manifest, {"score": {"classes": {CLASSES[1]: None}}}) == second
    for wrong in ({"gone": None}, {CLASSES[0]: 2}, [0.5]):
        with pytest.raises(LimitsError, match="has no class 'gone'|expected"):
            first.changed(manifest, {"score": {"classes": wrong}})


def test_row_is_what_the_task_makes_of_the_same_names(manifest):
    asked = {"score": {"default": 0.25, "per_class": {CLASSES[2]: 0.75, CLASSES[0]: 1}}}
    limits = Limits.of(manifest).changed(manifest, asked)
    detection = load_task("detection")
    by_name = {CLASSES[0]: 1.0, CLASSES[1]: 0.25, CLASSES[2]: 0.75}
    expected = detection.thresholds(manifest, 1, by_name, 0.5)
    found = detection.thresholds(manifest, 1, limits.row, limits.iou)
    for name, array in expected.items():
        assert np.array_equal(found[name], array)


def test_what_is_left_out_stays(manifest):
    first = Limits.of(manifest).changed(
        manifest, {"score": {"default": 0.6, "per_class": {CLASSES[0]: 0.1}}, "iou": 0.9}
    )
    assert first.changed(manifest, {}) == first
    assert first.changed(manifest, {"score": None, "iou": None}) == first
    second = first.changed(manifest, {"score": {"default": 0.2}})
    assert (second.score, second.per_class, second.iou) == (0.2, {CLASSES[0]: 0.1}, 0.9)
    third = second.changed(manifest, {"score": {"per_class": {CLASSES[1]: 0.4}}})
    assert third.per_class == {CLASSES[1]: 0.4}
    assert np.allclose(third.row, [0.2, 0.4, 0.2])
    assert np.allclose(first.row, [0.1, 0.6, 0.6])  # the one in use is never changed


def test_bundle_without_thresholds_takes_none(manifest):
    crops = dataclasses.replace(manifest, task="pose_crop", inputs=(IMAGE,))
    limits = Limits.of(crops)
    assert (limits.score, limits.iou, limits.row) == (None, None, None)
    with pytest.raises(LimitsError, match="a bundle of task pose_crop takes no score threshold"):
        limits.changed(crops, {"score": {"default": 0.5}})
    peaks = dataclasses.replace(manifest, inputs=(IMAGE, SCORE_THRESHOLD))
    assert Limits.of(peaks).iou is None
    with pytest.raises(LimitsError, match="takes no iou"):
        Limits.of(peaks).changed(peaks, {"iou": 0.5})
