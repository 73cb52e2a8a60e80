"""Masks from files and from the street, through every augmentation, and as run lengths."""

from __future__ import annotations

import json
import logging

import cv2
import numpy as np
import pytest
from tiny_data_sets import SCENE, WRITERS, coco_content, write_coco, write_yolo
from tiny_samples import COLOURS, SIZE_HW, check_consistent, make_sample

from training.data import DataError, each_once, open_data
from training.data.augment import Augment, augmented
from training.data.geometry import MASK_PX, letterbox, tight_box
from training.data.outlines import compress_rle, decode_rle, encode_rle
from training.data.sample import Sample
from training.data.street import Street

PLAIN = {"hsv": (0, 0, 0), "brightness": 0, "contrast": 0, "blur": 0, "noise": 0}
JOINT_ROOM_PX = 8.0  # a joint lies this far inside of its object, so that no scale moves it out


def coco_mask():  # noqa: ANN201
    """COCO's own tools, the second implementation."""
    pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval")
    from faster_coco_eval.core import mask

    return mask


def random_shape(hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) uint8: an ellipse, a star, two parts, or a frame with a hole."""
    height, width = hw
    mask = np.zeros(hw, np.uint8)
    kind = int(rng.integers(4))
    centre = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height))
    radius = rng.uniform(0.1, 0.3, 2) * (width, height)
    if kind == 1:
        turns = np.sort(rng.uniform(0, 2 * np.pi, 9))
        rays = np.stack([np.cos(turns), np.sin(turns)], axis=1) * rng.uniform(0.4, 1, (9, 1))
        cv2.fillPoly(mask, [np.int32(centre + rays * radius)], 1)
    else:
        middle, axes = np.int32(centre).tolist(), np.int32(radius).tolist()
        cv2.ellipse(mask, middle, axes, 0, 0, 360, 1, -1)
        if kind == 2:
            cv2.circle(mask, (width // 10, height // 10), min(hw) // 12, 1, -1)
        if kind == 3:
            cv2.ellipse(mask, middle, (axes[0] // 3, axes[1] // 3), 0, 0, 360, 0, -1)
    return mask


def random_sample(seed: int) -> Sample:
    """Up to three shapes in pure colours, later ones before earlier ones, a joint deep in each."""
    rng = np.random.default_rng((11, seed))
    hw = tuple((2 * rng.integers(40, 120, 2) + 1).tolist())  # odd: no pixel is covered by halves
    image = np.zeros((*hw, 3), np.uint8)
    shapes = [random_shape(hw, rng) for _ in range(rng.integers(0, 4))]
    for label, shape in enumerate(shapes):
        image[shape > 0] = COLOURS[label]
        for earlier in shapes[:label]:
            earlier[shape > 0] = 0
    rows = [row for row, shape in enumerate(shapes) if shape.any()]
    masks = np.array([shapes[row] for row in rows], np.uint8).reshape(-1, *hw)
    joints = np.zeros((len(rows), 3, 3), np.float32)
    for row, mask in enumerate(masks):
        inside = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        _, room, _, (x, y) = cv2.minMaxLoc(inside)
        if room > JOINT_ROOM_PX:
            joints[row, :2] = x + 0.5, y + 0.5, 2
    return Sample(
        image=image,
        boxes_xyxy=np.array([tight_box(mask) for mask in masks], np.float32).reshape(-1, 4),
        classes=np.array(rows, np.int64),
        is_crowd=rng.random(len(rows)) < 0.2,
        image_id=seed,
        file_name=f"{seed}.png",
        masks=masks,
        keypoints_xyv=joints,
    )


AUGMENTS = {
    "flips": Augment(**PLAIN, flip=1.0, vertical_flip=0.5, scale=(1, 1), shift=0),
    "scale": Augment(**PLAIN, flip=0, scale=(0.5, 2.5)),
    "mosaic": Augment(**PLAIN, mosaic=1.0, vertical_flip=0.5),
    "all": Augment(**PLAIN, mosaic=0.5, vertical_flip=0.3, flip_pairs=((0, 1),)),
    "none": Augment.none(),
}


@pytest.mark.parametrize("name", list(AUGMENTS))
def test_boxes_stay_tight_around_masks_and_joints_on_them(name):
    num_objects = num_joints = 0
    for seed in range(200):
        rng = np.random.default_rng((5, seed))
        result = augmented(
            random_sample(seed),
            lambda rng=rng: random_sample(int(rng.integers(1000))),
            SIZE_HW,
            AUGMENTS[name],
            rng,
        )
        check_consistent(result)
        num_objects += len(result)
        num_joints += int((result.keypoints_xyv[..., 2] > 0).sum())
    assert num_objects > 150
    assert num_joints > 100


def test_colours_move_no_mask_and_no_box():
    colours = Augment(hsv=(0.5, 0.5, 0.5), brightness=0.3, contrast=0.3, blur=1.0, noise=1.0)
    for seed in range(10):
        plain = augmented(
            random_sample(seed), None, SIZE_HW, Augment(**PLAIN), np.random.default_rng(seed)
        )
        coloured = augmented(
            random_sample(seed), None, SIZE_HW, colours, np.random.default_rng(seed)
        )
        assert (plain.image != coloured.image).any()
        for part in ("masks", "boxes_xyxy", "keypoints_xyv"):
            np.testing.assert_array_equal(getattr(plain, part), getattr(coloured, part), part)


def test_masks_of_the_street_are_disjoint_and_their_boxes_tight():
    frame = Street("val", 3, labels=("masks",))[1]
    assert frame.masks is not None
    assert frame.masks.shape == (len(frame), *frame.image_hw)
    assert len(frame) > 3
    assert frame.masks.sum(axis=0, dtype=int).max() == 1
    for mask, box in zip(frame.masks, frame.boxes_xyxy, strict=True):
        assert tight_box(mask) == tuple(box.astype(int))
    np.testing.assert_array_equal(frame.image, Street("val", 3)[1].image)


def test_boxes_of_the_street_stay_tight_where_thin_parts_are_lost():
    source = Street("train", 8, labels=("masks",))
    frames = [source[index] for index in range(len(source))]
    for seed in range(16):
        rng = np.random.default_rng(seed)
        draw = lambda rng=rng: frames[int(rng.integers(8))]  # noqa: E731
        result = augmented(frames[seed % 8], draw, (288, 512), Augment(mosaic=0.5), rng)
        assert len(result)
        for mask, box in zip(result.masks, result.boxes_xyxy, strict=True):
            np.testing.assert_allclose(box, tight_box(mask), atol=MASK_PX)


@pytest.mark.parametrize("hw", [(120, 200), (40, 300)])
def test_a_letterboxed_mask_is_the_letterboxed_picture_of_it(hw):
    sample = make_sample(hw)
    boxed = letterbox(sample, SIZE_HW)
    for mask, label in zip(boxed.masks, boxed.classes, strict=True):
        seen = boxed.image[..., COLOURS[label].index(255)] > 127
        seen[boxed.image.min(axis=2) == boxed.image.max(axis=2)] = False  # the grey around it
        assert (mask != seen).sum() <= 0.02 * mask.sum()


RUNS = {
    "empty": np.zeros((3, 4)),
    "full": np.ones((3, 4)),
    "diagonal": np.eye(4),
    "anti": np.eye(4)[::-1],
    "cut": np.eye(4)[1:],
    "last pixel": np.eye(5)[::-1][:1],
    "first pixel": np.eye(5)[:1],
    "last column": np.arange(6) == np.full((7, 1), 5),
    "one row": np.arange(9)[None] % 2,
    "one column": np.arange(9)[:, None] % 3 == 0,
}


@pytest.mark.parametrize("case", list(RUNS))
def test_run_lengths_are_those_of_cocos_own_tools(case):
    check_runs(RUNS[case].astype(np.uint8))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_run_lengths_of_noise_are_those_of_cocos_own_tools(share):
    rng = np.random.default_rng(int(share * 100))
    for hw in ((33, 21), (70, 1), (1, 70), (64, 64)):
        check_runs((rng.random(hw) < share).astype(np.uint8))


def check_runs(mask: np.ndarray) -> None:
    runs = encode_rle(mask)
    assert sum(runs["counts"]) == mask.size
    np.testing.assert_array_equal(decode_rle(runs), mask)
    compressed = compress_rle(runs)
    theirs = coco_mask().encode(np.asfortranarray(mask))
    assert compressed == {"size": list(mask.shape), "counts": theirs["counts"].decode()}
    np.testing.assert_array_equal(decode_rle(compressed), mask)


def test_run_lengths_of_a_view_are_those_of_its_pixels():
    wide = (np.random.default_rng(0).random((20, 60)) > 0.5).astype(np.uint8)
    for view in (wide[3:15, 7:33], wide[::2, ::3], wide.T):
        assert encode_rle(view) == encode_rle(view.copy())


def random_segmentation(hw: tuple[int, int], rng: np.random.Generator) -> list | dict:
    """Polygons, in one part or two, or run lengths as numbers or as COCO's string."""
    kind = int(rng.integers(3))
    if kind == 0:
        sizes = rng.integers(3, 12, rng.integers(1, 3))
        return [rng.uniform(-4, 1.1 * max(hw), 2 * size).round(2).tolist() for size in sizes]
    runs = encode_rle(random_shape(hw, rng))
    return runs if kind == 1 else compress_rle(runs)


def test_coco_masks_are_pixel_for_pixel_those_of_cocos_own_tools(tmp_path):
    coco = pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval").COCO
    content, rng = coco_content(SCENE), np.random.default_rng(4)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    first = content["annotations"][0]
    content["annotations"] = [first | {"image_id": key} for key in sizes for _ in range(25)]
    for number, entry in enumerate(content["annotations"], start=1):
        hw = sizes[entry["image_id"]]
        segmentation = random_segmentation(hw, rng)
        entry |= {"id": number, "bbox": [0, 0, hw[1], hw[0]], "segmentation": segmentation}
        entry["iscrowd"] = int(isinstance(segmentation, dict))
    path = write_coco(tmp_path)
    path.write_text(json.dumps(content))
    theirs = coco(str(path))
    count = 0
    for sample in each_once(open_data(tmp_path, "train", ("masks",))):
        entries = theirs.imgToAnns[sample.image_id]
        assert sample.is_crowd.tolist() == [bool(entry["iscrowd"]) for entry in entries]
        for mask, entry in zip(sample.masks, entries, strict=True):
            np.testing.assert_array_equal(mask, theirs.annToMask(entry))
            count += 1
    assert count == 25 * len(SCENE)


def test_yolo_polygons_are_pixel_for_pixel_those_of_cocos_own_tools(tmp_path):
    write_yolo(tmp_path)
    rng, size_wh = np.random.default_rng(2), (64, 64)
    polygons = rng.uniform(0, 1, (20, 7, 2)).round(6)
    rows = [f"1 {' '.join(str(value) for value in polygon.ravel())}\n" for polygon in polygons]
    (tmp_path / "labels" / "train" / "d.txt").write_text("".join(rows))
    sample = open_data(tmp_path, "train", ("masks",))[3]
    for mask, box, polygon in zip(sample.masks, sample.boxes_xyxy, polygons, strict=True):
        points = polygon * size_wh
        runs = coco_mask().frPyObjects([points.ravel().tolist()], *size_wh)[0]
        np.testing.assert_array_equal(mask, coco_mask().decode(runs))
        np.testing.assert_allclose(box, [*points.min(axis=0), *points.max(axis=0)], atol=1e-4)


def test_parts_of_an_outline_that_are_no_polygon_are_counted_and_left_out(tmp_path):
    content = coco_content(SCENE)
    content["annotations"][0]["segmentation"] = [[4, 6, 20, 6, 20, 30, 4, 30], [1, 1, 2, 2]]
    write_coco(tmp_path).write_text(json.dumps(content))
    source = open_data(tmp_path, "train", ("masks",))
    assert source[0].masks[0].sum() == 16 * 24
    assert source.defects.counts == {"part of an outline with under 3 points": 1}


@pytest.mark.parametrize("layout", list(WRITERS))
def test_a_data_set_with_boxes_alone_is_refused_where_masks_are_needed(tmp_path, layout):
    WRITERS[layout](tmp_path)
    assert open_data(tmp_path, "train")[0].masks is None
    with pytest.raises(DataError, match=r"boxes but no masks; expected COCO.*YOLO.*Give") as caught:
        open_data(tmp_path, "train", ("masks",))
    assert "\n" not in str(caught.value)


def test_a_data_set_without_joints_is_refused_where_keypoints_are_needed(tmp_path):
    write_coco(tmp_path)
    with pytest.raises(DataError, match=r"no keypoints; expected COCO.*kpt_shape"):
        open_data(tmp_path, "train", ("keypoints",))


def test_objects_without_an_outline_among_others_are_counted(tmp_path, caplog):
    content = coco_content(SCENE)
    content["annotations"][0]["segmentation"] = [[4, 6, 20, 6, 20, 30, 4, 30]]
    write_coco(tmp_path).write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, "kestrel.data"):
        open_data(tmp_path, "train", ("masks",))
    assert "5 of 6 objects have no outline; their masks are their boxes" in caplog.text


def test_the_street_gives_what_is_asked_for():
    sample = open_data("street", "val", ("masks",))[0]
    assert sample.masks is not None
    assert sample.keypoints_xyv is None
    assert open_data("street", "val")[0].masks is None
    with pytest.raises(ValueError, match="unknown label 'mask'"):
        open_data("street", "val", ("mask",))
