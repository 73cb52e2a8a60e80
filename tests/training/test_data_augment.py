"""Augmentation: colours, mosaic, and the function that composes them."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_samples import SIZE_HW, check_consistent, empty_sample, make_sample

from training.data.augment import MAX_ZOOM, Augment, augmented, draw_affine
from training.data.colour import add_noise, blur, jitter_hsv, shift_brightness
from training.data.geometry import letterbox
from training.data.mosaic import mosaic
from training.data.sample import DataError

PLAIN = {"hsv": (0, 0, 0), "brightness": 0, "contrast": 0, "blur": 0, "noise": 0}
ALL = Augment(mosaic=0.5, vertical_flip=0.5, blur=0.5, noise=0.5, flip_pairs=((0, 1),))


def picture() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed", range(30))
def test_augmentation_keeps_labels_on_what_they_label(seed):
    augment = Augment(**PLAIN, vertical_flip=0.5, flip_pairs=((0, 1),))
    result = augmented(make_sample(), None, SIZE_HW, augment, rng(seed))
    assert result.image_hw == SIZE_HW
    check_consistent(result)


@pytest.mark.parametrize("seed", range(10))
def test_a_mosaic_keeps_labels_on_what_they_label(seed):
    augment = Augment(**PLAIN, mosaic=1.0, vertical_flip=0.5)
    result = augmented(make_sample(), make_sample, SIZE_HW, augment, rng(seed))
    assert result.image_hw == SIZE_HW
    assert result.image_id == 7
    assert len(result) > 3
    check_consistent(result)


def test_a_mosaic_takes_from_all_four():
    shapes = [(120, 200), (200, 120), (60, 60), (300, 400)]
    samples = [make_sample(hw) for hw in shapes]
    for place, sample in enumerate(samples):
        sample.classes = np.full(3, place)
    found = [mosaic(samples, SIZE_HW, rng(seed)).classes for seed in range(5)]
    assert set(np.concatenate(found).tolist()) == {0, 1, 2, 3}


def test_the_same_seed_gives_the_same_sample_and_changes_no_input():
    sample, untouched = make_sample(), make_sample()
    for seed in range(8):
        first = augmented(sample, make_sample, SIZE_HW, ALL, rng(seed))
        second = augmented(sample, make_sample, SIZE_HW, ALL, rng(seed))
        for name in ("image", "boxes_xyxy", "classes", "masks", "keypoints_xyv"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name), name)
    np.testing.assert_array_equal(sample.image, untouched.image)
    np.testing.assert_array_equal(sample.boxes_xyxy, untouched.boxes_xyxy)
    np.testing.assert_array_equal(sample.masks, untouched.masks)


def test_no_augmentation_is_the_letterbox():
    result = augmented(make_sample(), None, SIZE_HW, Augment.none(), rng())
    expected = letterbox(make_sample(), SIZE_HW)
    np.testing.assert_allclose(result.boxes_xyxy, expected.boxes_xyxy, atol=1e-4)
    difference = np.abs(result.image.astype(int) - expected.image)
    assert difference.max() <= 2  # warpAffine rounds its weights to 1/32


def test_an_image_without_objects_stays_one():
    for seed in range(6):
        result = augmented(empty_sample(), empty_sample, SIZE_HW, ALL, rng(seed))
        assert len(result) == 0
        assert result.masks.shape == (0, *SIZE_HW)
    bare = make_sample()
    bare.masks = bare.keypoints_xyv = None
    result = augmented(bare, empty_sample, SIZE_HW, Augment(mosaic=1.0), rng())
    assert result.masks is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip", 1.5),
        ("mosaic", -0.1),
        ("scale", (0.0, 1.0)),
        ("scale", (2.0, 1.0)),
        ("hsv", (0.1, 0.1)),
        ("hsv", (0.1, 0.1, 3.0)),
        ("min_side_px", -1),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(field, value):
    with pytest.raises(DataError, match=rf"Augment\.{field} is .*expected"):
        Augment(**{field: value})


def test_the_mosaic_can_be_switched_off_for_the_last_epochs():
    assert ALL.without_mosaic().mosaic == 0
    assert ALL.without_mosaic().flip == ALL.flip


def test_hue_alone_leaves_grey_grey_and_value_scales_it():
    grey = np.full((8, 8, 3), 100, np.uint8)
    np.testing.assert_array_equal(jitter_hsv(grey, (0.5, 0.5, 0.0), rng()), grey)
    values = [jitter_hsv(grey, (0, 0, 0.4), rng(seed))[0, 0] for seed in range(20)]
    assert all(len(set(value.tolist())) == 1 for value in values)
    assert min(value[0] for value in values) >= 60
    assert max(value[0] for value in values) <= 140
    assert len({int(value[0]) for value in values}) > 5


def test_brightness_and_contrast_are_exact_and_saturate():
    image = picture()
    np.testing.assert_array_equal(shift_brightness(image, 0.0, 1.0), image)
    expected = np.rint(((image - 128.0) * 1.5 + 128.0 + 25.5).clip(0, 255))
    np.testing.assert_array_equal(shift_brightness(image, 0.1, 1.5), expected)


def test_noise_has_the_spread_asked_for_and_saturates():
    grey = np.full((200, 300, 3), 128, np.uint8)
    noise = add_noise(grey, 8.0, rng()).astype(float) - 128
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 8) < 0.2
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    white = np.full((64, 64, 3), 255, np.uint8)
    assert add_noise(white, 10.0, rng()).min() > 150


def test_blur_smooths_without_moving_the_picture():
    image = picture()
    np.testing.assert_array_equal(blur(image, 0.0), image)
    soft = blur(image, 1.5)
    assert soft.std() < image.std() / 2
    assert abs(soft.mean() - image.mean()) < 1.5


@pytest.mark.parametrize("seed", range(20))
def test_a_view_is_a_part_of_the_picture_at_its_zoom(seed):
    augment = Augment(**PLAIN, scale=(1, 1), view_hw=(48, 64), focus=0.5, flip_pairs=((0, 1),))
    sample = make_sample()
    result = augmented(sample, None, SIZE_HW, augment, rng(seed))
    assert result.image_hw == (48, 64)
    check_consistent(result)
    matrix = draw_affine(sample.image_hw, SIZE_HW, augment, rng(seed), sample.boxes_xyxy)
    zoom = min(SIZE_HW[0] / sample.image_hw[0], SIZE_HW[1] / sample.image_hw[1])
    assert abs(matrix[0, 0]) == abs(matrix[1, 1]) == zoom


def test_a_focused_view_shows_one_of_the_objects_and_nothing_beyond_the_image():
    augment = Augment(**PLAIN, scale=(1, 2), vertical_flip=0.5, view_hw=(30, 40), focus=1.0)
    image_hw, boxes = (200, 300), np.array([[10, 20, 30, 40], [250, 100, 290, 180]], np.float32)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    seen, places = np.zeros(2, int), []
    for seed in range(200):
        matrix = draw_affine(image_hw, (400, 600), augment, rng(seed), boxes)
        moved = centres @ matrix[:, :2].T + matrix[:, 2]
        is_in = ((moved >= -1e-9) & (moved <= (40 + 1e-9, 30 + 1e-9))).all(1)
        assert is_in.any()
        seen += is_in
        places += moved[is_in].tolist()
        corners = np.array([[0, 0], [300, 200]]) @ matrix[:, :2].T + matrix[:, 2]
        assert (corners.min(0) <= 1e-9).all()
        assert (corners.max(0) >= (40 - 1e-9, 30 - 1e-9)).all()
    assert seen.min() > 60
    assert np.std(places, axis=0) == pytest.approx((40 / 12**0.5, 30 / 12**0.5), rel=0.25)


def test_focused_object_has_the_size_that_was_asked_for_unless_it_is_a_blur():
    augment = Augment(**PLAIN, view_hw=(60, 60), focus=1.0, object_px=(20.0, 50.0))
    fit, sides = 2.0, []  # of 300x200 into 600x400
    for seed in range(100):
        box = np.array([[10, 20, 30, 45]], np.float32)
        sides.append(25 * draw_affine((200, 300), (400, 600), augment, rng(seed), box)[1, 1])
        small = np.array([[10, 20, 11, 21]], np.float32)
        zoom = draw_affine((200, 300), (400, 600), augment, rng(seed), small)[1, 1]
        assert zoom == fit * MAX_ZOOM
    assert 20 <= min(sides) < 24
    assert 46 < max(sides) <= 50


def test_range_of_object_sizes_is_checked():
    with pytest.raises(DataError, match=r"Augment\.object_px is \(9, 3\)"):
        Augment(object_px=(9, 3))


def test_without_objects_or_focus_a_view_lies_anywhere():
    kinds = {"focus": 1.0}, {"focus": 0.0}
    nothing = np.zeros((0, 4), np.float32)
    for kind, boxes in zip(kinds, (nothing, np.array([[0, 0, 9, 9]], np.float32)), strict=True):
        augment = Augment(**PLAIN, scale=(1, 1), view_hw=(10, 10), **kind)
        starts = [
            draw_affine((100, 100), (100, 100), augment, rng(seed), boxes)[1, 2]
            for seed in range(40)
        ]
        assert min(starts) < -70
        assert max(starts) > -20


def test_views_of_mosaics_are_refused():
    with pytest.raises(DataError, match=r"Augment\.view_hw is \(8, 8\); expected None where there"):
        Augment(mosaic=0.5, view_hw=(8, 8))
