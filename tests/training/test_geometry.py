"""Boxes, masks, keypoints and pictures move together: `training.data.geometry`."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from tiny_samples import SIZE_HW, check_consistent, empty_sample, make_sample

from training.data.geometry import (
    Keep,
    horizontal_flip,
    jitter_affine,
    letterbox,
    letterbox_affine,
    letterbox_wh,
    map_boxes,
    vertical_flip,
    warp,
)
from training.data.sample import Sample

ROUND_TRIP_PX = 1e-3  # float32 at these sizes
FLIP_PAIRS = ((0, 1),)
SHAPES = [(120, 200), (200, 120), (96, 160), (48, 300), (77, 131)]


@pytest.mark.parametrize("hw", SHAPES, ids=str)
def test_letterbox_maps_boxes_back_to_the_source_frame(hw):
    sample = make_sample(hw)
    boxed = letterbox(sample, SIZE_HW)
    back = cv2.invertAffineTransform(letterbox_affine(hw, SIZE_HW))
    returned = map_boxes(boxed.boxes_xyxy, back)
    np.testing.assert_allclose(returned, sample.boxes_xyxy, atol=ROUND_TRIP_PX)
    assert boxed.image_hw == SIZE_HW
    check_consistent(boxed)


@pytest.mark.parametrize("hw", SHAPES, ids=str)
def test_letterbox_is_the_resized_image_centred_on_grey(hw):
    sample = make_sample(hw)
    boxed = letterbox(sample, SIZE_HW, pad_value=90)
    scale = min(SIZE_HW[1] / hw[1], SIZE_HW[0] / hw[0])
    new_w, new_h = int(hw[1] * scale + 0.5), int(hw[0] * scale + 0.5)
    left, top = (SIZE_HW[1] - new_w) // 2, (SIZE_HW[0] - new_h) // 2
    expected = np.full((*SIZE_HW, 3), 90, np.uint8)
    expected[top : top + new_h, left : left + new_w] = cv2.resize(sample.image, (new_w, new_h))
    np.testing.assert_array_equal(boxed.image, expected)
    box = sample.boxes_xyxy[0]
    assert boxed.boxes_xyxy[0, 0] == pytest.approx(box[0] * new_w / hw[1] + left)
    assert boxed.boxes_xyxy[0, 3] == pytest.approx(box[3] * new_h / hw[0] + top)


@pytest.mark.parametrize("hw", [*SHAPES, (1, 4000), (432, 768), (1080, 1920)], ids=str)
def test_letterbox_is_the_runtimes_letterbox(hw):
    preprocess = pytest.importorskip("runtime.preprocess", reason="the runtime is not there")
    from runtime.contract.manifest import InputGeometry

    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    sample = empty_sample(hw)
    sample.image = image
    fit = preprocess.Letterbox.fit(hw, InputGeometry(*SIZE_HW))
    np.testing.assert_array_equal(letterbox(sample, SIZE_HW).image, fit.apply(image))
    box = np.array([[0, 0, hw[1], hw[0]]], np.float32)
    ours = map_boxes(box, letterbox_affine(hw, SIZE_HW))
    np.testing.assert_allclose(ours, fit.to_network(box), atol=ROUND_TRIP_PX)


def test_letterbox_keeps_every_object_however_small():
    sample = make_sample((1200, 2000))
    sample.boxes_xyxy[0] = (10, 10, 12, 11)
    boxed = letterbox(sample, (48, 80))
    assert len(boxed) == 3
    assert letterbox_wh((1, 5000), (48, 80)) == (80, 1)


def test_letterbox_of_an_empty_image_is_empty():
    boxed = letterbox(empty_sample(), SIZE_HW)
    assert len(boxed) == 0
    assert boxed.masks.shape == (0, *SIZE_HW)
    assert boxed.keypoints_xyv.shape == (0, 3, 3)


@pytest.mark.parametrize("flip", [horizontal_flip, vertical_flip])
def test_flipping_twice_changes_nothing(flip):
    sample = make_sample()
    twice = flip(flip(sample, FLIP_PAIRS), FLIP_PAIRS)
    for name in ("image", "boxes_xyxy", "masks", "keypoints_xyv", "classes"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(sample, name), err_msg=name)


@pytest.mark.parametrize("flip", [horizontal_flip, vertical_flip])
def test_a_flip_moves_everything_and_exchanges_the_paired_joints(flip):
    sample = make_sample()
    flipped = flip(sample, FLIP_PAIRS)
    check_consistent(flipped)
    left, right = flipped.keypoints_xyv[:, 0, 0], flipped.keypoints_xyv[:, 1, 0]
    assert ((left < right) == (flip is horizontal_flip)).all()
    moved = flip(sample).keypoints_xyv
    np.testing.assert_array_equal(moved[:, [1, 0, 2]], flipped.keypoints_xyv)


def test_a_flip_by_map_is_a_flip_exactly():
    sample = make_sample()
    height, width = sample.image_hw
    mirrored = warp(
        sample,
        np.array([[-1.0, 0, width], [0, 1, 0]]),
        (height, width),
        flip_pairs=FLIP_PAIRS,
    )
    expected = horizontal_flip(sample, FLIP_PAIRS)
    for name in ("image", "boxes_xyxy", "masks", "keypoints_xyv"):
        np.testing.assert_array_equal(getattr(mirrored, name), getattr(expected, name), name)


@pytest.mark.parametrize("seed", range(20))
def test_scale_flip_and_crop_move_everything_together(seed):
    rng = np.random.default_rng(seed)
    flips = tuple(bool(chance) for chance in rng.integers(0, 2, 2))
    sample = make_sample()
    window = (0, 0, SIZE_HW[1], SIZE_HW[0])
    matrix = jitter_affine(sample.image_hw, window, rng.uniform(0.4, 2.0), rng, flips=flips)
    moved = warp(sample, matrix, SIZE_HW, flip_pairs=FLIP_PAIRS)
    check_consistent(moved)


def test_a_map_back_and_forth_returns_the_boxes():
    sample = make_sample()
    matrix = np.array([[0.5, 0, 11.25], [0, 0.5, 3.5]])
    there = warp(sample, matrix, (200, 300))
    back = warp(there, cv2.invertAffineTransform(matrix), sample.image_hw)
    np.testing.assert_allclose(back.boxes_xyxy, sample.boxes_xyxy, atol=ROUND_TRIP_PX)


def one_box(box: tuple, *, is_crowd: bool = False) -> Sample:
    return Sample(
        image=np.zeros((100, 100, 3), np.uint8),
        boxes_xyxy=np.array([box], np.float32),
        classes=np.zeros(1, np.int64),
        is_crowd=np.array([is_crowd]),
        image_id=1,
        file_name="one.png",
    )


# shifting left by 50 px cuts at x = 50 of the source
CUTS = {
    "inside": ((60, 10, 80, 20), False, True),
    "centre inside": ((46, 10, 80, 20), False, True),
    "31 % left": ((0, 10, 73, 20), False, True),
    "29 % left": ((0, 10, 70, 20), False, False),
    "gone": ((0, 10, 40, 20), False, False),
    "crowd, 10 % left": ((0, 10, 55, 20), True, True),
    "crowd, gone": ((0, 10, 40, 20), True, False),
    "thin": ((60, 10, 60.5, 20), False, False),
}


@pytest.mark.parametrize("case", list(CUTS))
def test_a_cut_object_stays_by_its_centre_or_by_30_percent_of_its_area(case):
    box, is_crowd, is_kept = CUTS[case]
    shifted = warp(
        one_box(box, is_crowd=is_crowd), np.array([[1.0, 0, -50], [0, 1, 0]]), (100, 100)
    )
    assert len(shifted) == is_kept
    if is_kept:
        assert shifted.boxes_xyxy[0].tolist() == [max(0, box[0] - 50), 10, box[2] - 50, 20]


def test_a_cut_box_is_tight_around_what_is_seen_of_its_mask():
    sample = one_box((20, 0, 80, 60))
    mask = np.zeros((1, 100, 100), np.uint8)
    mask[0, 0:60, 20:40] = 1
    mask[0, 0:10, 20:80] = 1  # an L: right of column 50 only its upper bar is seen
    sample.masks = mask
    shifted = warp(sample, np.array([[1.0, 0, -50], [0, 1, 0]]), (100, 100))
    assert shifted.boxes_xyxy.tolist() == [[0, 0, 30, 10]]
    sample.masks = mask * (np.arange(100) < 45).astype(np.uint8)  # nothing of it is seen
    assert len(warp(sample, np.array([[1.0, 0, -50], [0, 1, 0]]), (100, 100))) == 0


def test_joints_outside_the_picture_are_not_labelled():
    sample = make_sample()
    x = float(sample.keypoints_xyv[0, :2, 0].mean())
    moved = warp(sample, np.array([[1.0, 0, -x], [0, 1, 0]]), (120, 200), keep=Keep(0.0))
    assert moved.keypoints_xyv[0, 0].tolist() == [0, 0, 0]
    assert moved.keypoints_xyv[0, 1, 2] == 2


def test_the_picture_is_padded_where_the_image_does_not_reach():
    sample = make_sample()
    moved = warp(sample, np.array([[1.0, 0, 10], [0, 1, 20]]), (200, 300), pad_value=99)
    np.testing.assert_array_equal(moved.image[20:140, 10:210], sample.image)
    inside = np.zeros((200, 300), bool)
    inside[20:140, 10:210] = True
    assert (moved.image[~inside] == 99).all()
