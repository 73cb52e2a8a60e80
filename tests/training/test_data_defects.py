"""What is wrong with data sets: counted by kind, named in one warning, survived."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_data_sets import (
    SCENE,
    WRITERS,
    coco_content,
    voc_object,
    voc_text,
    write_coco,
    write_voc,
    write_yolo,
)

from training.data import DataError, each_once, open_data
from training.data.sample import Sample

Edit = Callable[[Path], object]


def coco_box(box: object) -> Edit:
    return coco_edit(lambda content: content["annotations"][0].update(bbox=box))


def coco_annotation(**changes: object) -> Edit:
    return coco_edit(lambda content: content["annotations"][0].update(changes))


def coco_edit(change: Callable[[dict], object]) -> Edit:
    def edit(root: Path) -> None:
        content = coco_content(SCENE)
        change(content)
        (root / "annotations" / "instances_train.json").write_text(json.dumps(content))

    return edit


def voc_row(corners: tuple, name: str = "ball") -> Edit:
    text = voc_text("a.png", (64, 48), [voc_object(name, corners)])
    return lambda root: (root / "Annotations" / "a.xml").write_text(text)


def yolo_row(row: str) -> Edit:
    return lambda root: (root / "labels" / "train" / "a.txt").write_text(row + "\n")


# (format, what is done to the good data set, kind counted, usable samples left)
DEFECTS = {
    "coco nan": ("coco", coco_box([1, 2, float("nan"), 4]), "non-finite number", 4),
    "coco null": ("coco", coco_box([1, 2, None, 4]), "non-finite number", 4),
    "coco zero": ("coco", coco_box([5, 5, 0, 9]), "zero-size or inverted box", 4),
    "coco inverted": ("coco", coco_box([30, 30, -9, -9]), "zero-size or inverted box", 4),
    "coco outside": ("coco", coco_box([99, 99, 9, 9]), "box outside the image", 4),
    "coco partly": ("coco", coco_box([50, 40, 30, 30]), "box partly outside the image", 4),
    "coco short box": ("coco", coco_box([1, 2, 3]), "malformed box", 4),
    "coco text box": ("coco", coco_box(["x", 2, 3, 4]), "malformed box", 4),
    "coco class": ("coco", coco_annotation(category_id=77), "unknown class", 4),
    "coco odd class": ("coco", coco_annotation(category_id=[1]), "unknown class", 4),
    "coco image": ("coco", coco_annotation(image_id=99), "annotation of an unknown image", 4),
    "coco outline": (
        "coco",
        coco_annotation(segmentation=[[1, 2, 3]]),
        "malformed outline, drawn as its box",
        4,
    ),
    "coco runs": (
        "coco",
        coco_annotation(segmentation={"size": [4, 4], "counts": [3]}),
        "malformed outline, drawn as its box",
        4,
    ),
    "coco entry": (
        "coco",
        coco_edit(lambda content: content["images"].append({"id": 9})),
        "malformed image entry",
        4,
    ),
    "coco repeated": (
        "coco",
        coco_edit(lambda content: content["images"].append(content["images"][0])),
        "repeated image id",
        4,
    ),
    "coco missing": (
        "coco",
        lambda root: (root / "images/train/a.png").unlink(),
        "missing image",
        3,
    ),
    "voc nan": ("voc", voc_row((1, 2, "nan", 9)), "non-finite number", 4),
    "voc infinite": ("voc", voc_row((1, 2, "inf", 9)), "non-finite number", 4),
    "voc zero": ("voc", voc_row((7, 7, 7, 7)), "zero-size or inverted box", 4),
    "voc inverted": ("voc", voc_row((30, 7, 7, 40)), "zero-size or inverted box", 4),
    "voc outside": ("voc", voc_row((90, 90, 99, 99)), "box outside the image", 4),
    "voc partly": ("voc", voc_row((50, 40, 99, 99)), "box partly outside the image", 4),
    "voc text": ("voc", voc_row((1, 2, "x", 9)), "malformed box", 4),
    "voc no name": ("voc", voc_row((1, 2, 8, 9), name=" "), "unknown class", 4),
    "voc cut file": (
        "voc",
        lambda root: (root / "Annotations/a.xml").write_text("<annotation><object>"),
        "malformed annotation file",
        3,
    ),
    "voc no file": (
        "voc",
        lambda root: (root / "Annotations/a.xml").unlink(),
        "missing annotation",
        3,
    ),
    "voc missing": ("voc", lambda root: (root / "JPEGImages/a.png").unlink(), "missing image", 3),
    "voc empty": (
        "voc",
        lambda root: (root / "JPEGImages/a.png").write_bytes(b""),
        "unreadable image",
        3,
    ),
    "yolo nan": ("yolo", yolo_row("0 0.5 nan 0.1 0.1"), "non-finite number", 4),
    "yolo zero": ("yolo", yolo_row("0 0.5 0.5 0 0.1"), "zero-size or inverted box", 4),
    "yolo inverted": ("yolo", yolo_row("0 0.5 0.5 -0.1 0.1"), "zero-size or inverted box", 4),
    "yolo pixels": ("yolo", yolo_row("0 30 20 10 10"), "box outside the image", 4),
    "yolo partly": ("yolo", yolo_row("0 0.9 0.9 0.5 0.5"), "box partly outside the image", 4),
    "yolo class": ("yolo", yolo_row("3 0.5 0.5 0.1 0.1"), "unknown class", 4),
    "yolo half class": ("yolo", yolo_row("1.5 0.5 0.5 0.1 0.1"), "unknown class", 4),
    "yolo short": ("yolo", yolo_row("0 0.5 0.5"), "malformed line", 4),
    "yolo text": ("yolo", yolo_row("ball 0.5 0.5 0.1 0.1"), "malformed line", 4),
    "yolo nan polygon": (
        "yolo",
        yolo_row("0 0.1 0.1 0.5 nan 0.5 0.5"),
        "non-finite number",
        4,
    ),
    "yolo empty": (
        "yolo",
        lambda root: (root / "images/train/a.png").write_bytes(b""),
        "unreadable image",
        3,
    ),
}


@pytest.mark.parametrize("case", list(DEFECTS))
def test_a_defect_is_counted_named_once_and_survived(tmp_path, case, caplog):
    format_name, edit, kind, num_left = DEFECTS[case]
    WRITERS[format_name](tmp_path)
    edit(tmp_path)
    with caplog.at_level(logging.WARNING, "kestrel.data"):
        source = open_data(tmp_path, "train")
    assert source.defects.counts == {kind: 1}
    assert len(caplog.records) == 1
    assert kind in caplog.text
    samples = list(each_once(source))
    assert len(samples) == num_left
    for sample in samples:
        height, width = sample.image_hw
        boxes = sample.boxes_xyxy
        assert np.isfinite(boxes).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= (width, height, width, height)).all()


def test_a_warning_names_the_first_three_of_a_kind(tmp_path, caplog):
    scene = {f"{name}.png": ((64, 48), [(0, (4, 6, 20, 30))]) for name in "abcdef"}
    write_voc(tmp_path, scene)
    for name in "abcde":
        (tmp_path / "JPEGImages" / f"{name}.png").unlink()
    open_data(tmp_path, "train")
    assert len(caplog.records) == 1
    assert "5 x missing image (a.jpg, b.jpg, c.jpg, ...)" in caplog.text


@pytest.mark.parametrize("format_name", list(WRITERS))
def test_an_image_broken_on_reading_is_replaced_by_the_next_and_counted(
    tmp_path, format_name, caplog
):
    WRITERS[format_name](tmp_path)
    for name in ("b.png", "d.png"):
        next(tmp_path.rglob(name)).write_bytes(b"\x89PNG not really")
    source = open_data(tmp_path, "train")
    names = [source[index].file_name for index in range(4)]
    assert names == ["a.png", "c.png", "c.png", "a.png"]
    assert [source[index].file_name for index in range(4)] == names
    assert source[3].file_name == source[-1].file_name == "a.png"
    assert source.defects.counts == {"unreadable image": 2}
    assert len(caplog.records) == 1
    assert [sample.file_name for sample in each_once(source)] == ["a.png", "c.png"]
    with pytest.raises(IndexError):
        source[4]


@pytest.mark.parametrize("format_name", list(WRITERS))
def test_a_set_whose_images_all_are_broken_is_an_error_when_read(tmp_path, format_name):
    WRITERS[format_name](tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"nothing")
    source = open_data(tmp_path, "train")
    with pytest.raises(DataError, match="none of 4 images can be read"):
        source[0]


@pytest.mark.parametrize("format_name", list(WRITERS))
def test_a_set_without_one_image_is_an_error(tmp_path, format_name):
    WRITERS[format_name](tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="image"):
        open_data(tmp_path, "train")


def test_a_set_without_one_box_is_an_error_that_says_why(tmp_path):
    write_coco(tmp_path, {"a.png": ((64, 48), [(0, (5, 5, 5, 5))])})
    with pytest.raises(DataError, match=r"not one usable box \(1 x zero-size"):
        open_data(tmp_path, "train")


def test_boxes_are_cut_to_the_image_when_the_annotation_has_its_size_wrong(tmp_path):
    write_voc(tmp_path)
    rows = [voc_object("ball", (11, 11, 500, 500)), voc_object("ball", (300, 300, 400, 400))]
    (tmp_path / "Annotations" / "a.xml").write_text(voc_text("a.png", (0, 0), rows))
    assert open_data(tmp_path, "train")[0].boxes_xyxy.tolist() == [[10, 10, 64, 48]]


def exif_jpeg(image: np.ndarray, orientation: int) -> bytes:
    """A JPEG whose EXIF asks viewers to turn it."""
    plain = cv2.imencode(".jpg", image)[1].tobytes()
    entry = struct.pack("<HHHIHH", 1, 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"
    body = b"Exif\0\0II*\0\x08\0\0\0" + entry
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


@pytest.mark.parametrize("size_wh", [(64, 48), (48, 64), (0, 0)], ids=str)
def test_a_turned_photograph_is_read_the_way_it_was_annotated(tmp_path, size_wh):
    write_voc(tmp_path)
    image = np.zeros((48, 64, 3), np.uint8)
    (tmp_path / "JPEGImages" / "a.png").write_bytes(exif_jpeg(image, 6))
    text = voc_text("a.png", size_wh, [voc_object("ball", (2, 2, 9, 9))])
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    sample = open_data(tmp_path, "train")[0]
    assert sample.image_hw == ((48, 64) if size_wh == (64, 48) else (64, 48))


@pytest.mark.parametrize(
    "image",
    [
        np.full((48, 64), 7, np.uint8),
        np.full((48, 64, 4), 7, np.uint8),
        np.full((48, 64, 3), 7 * 257, np.uint16),
    ],
    ids=["grey", "with alpha", "16 bit"],
)
def test_every_kind_of_picture_becomes_three_channels_of_bytes(tmp_path, image):
    write_coco(tmp_path)
    assert cv2.imwrite(str(tmp_path / "images" / "train" / "a.png"), image)
    read = open_data(tmp_path, "train")[0].image
    assert (read.shape, read.dtype) == ((48, 64, 3), np.uint8)
    assert (read == 7).all()


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}'], ids=["cut", "list", "no lists"])
def test_a_file_that_is_not_coco_is_an_error_that_names_it(tmp_path, text):
    write_coco(tmp_path).write_text(text)
    with pytest.raises(DataError, match=r"instances_train\.json.*COCO file"):
        open_data(tmp_path, "train")


def test_a_yaml_that_is_not_one_or_names_no_folder_is_an_error(tmp_path):
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [a\ntrain: x")
    with pytest.raises(DataError, match="is not YAML"):
        open_data(tmp_path, "train")
    (tmp_path / "data.yaml").write_text("names: [a, b, c]\ntrain: images/elsewhere")
    with pytest.raises(DataError, match="it is not there"):
        open_data(tmp_path, "train")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", np.zeros((4, 4), np.uint8)),
        ("image", np.zeros((4, 4, 3), np.float32)),
        ("boxes_xyxy", np.zeros((1, 4), np.float64)),
        ("boxes_xyxy", np.zeros((1, 5), np.float32)),
        ("classes", np.zeros(2, np.int64)),
        ("is_crowd", np.zeros(1, np.int64)),
        ("masks", np.zeros((1, 4, 5), np.uint8)),
        ("keypoints_xyv", np.zeros((1, 2), np.float32)),
    ],
)
def test_a_sample_says_which_array_is_wrong(field, value):
    arrays = {
        "image": np.zeros((4, 4, 3), np.uint8),
        "boxes_xyxy": np.zeros((1, 4), np.float32),
        "classes": np.zeros(1, np.int64),
        "is_crowd": np.zeros(1, bool),
    }
    assert len(Sample(**arrays, image_id=1, file_name="a.jpg")) == 1
    with pytest.raises(DataError, match=rf"a\.jpg: {field} is .*expected"):
        Sample(**(arrays | {field: value}), image_id=1, file_name="a.jpg")
