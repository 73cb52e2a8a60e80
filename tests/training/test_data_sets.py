"""The three formats, their layouts and splits: `training.data.open_data`."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tiny_data_sets import (
    CLASSES,
    COCO_IDS,
    SCENE,
    WRITERS,
    coco_content,
    draw_image,
    voc_object,
    voc_text,
    write_coco,
    write_images,
    write_voc,
    write_yolo,
)

from training.data import DataError, each_once, open_data
from training.data.outlines import decode_rle, draw_polygon
from training.data.records import split_by_hash
from training.data.yolo import parse_simple_yaml, read_yaml

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("KESTREL_SHARED", ROOT.parent / "shared"))
YOLO_ROUNDING_PX = 1e-4  # nine digits of a fraction, float32 boxes

formats = pytest.mark.parametrize("format_name", list(WRITERS))


@formats
def test_every_format_gives_the_scene_that_was_written(tmp_path, format_name):
    WRITERS[format_name](tmp_path)
    source = open_data(str(tmp_path), "train")
    assert source.classes == CLASSES
    assert source.category_ids == (COCO_IDS if format_name == "coco" else (1, 2, 3))
    assert [source[i].file_name for i in range(len(source))] == list(SCENE)
    for sample, (name, (size_wh, objects)) in zip(each_once(source), SCENE.items(), strict=True):
        np.testing.assert_array_equal(sample.image, draw_image(size_wh, objects), err_msg=name)
        boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
        np.testing.assert_allclose(sample.boxes_xyxy, boxes, atol=YOLO_ROUNDING_PX)
        assert sample.classes.tolist() == [label for label, _ in objects]
        assert not sample.is_crowd.any()
        assert sample.masks is None
        assert sample.keypoints_xyv is None
    assert [sample.image_id for sample in each_once(source)] == [1, 2, 3, 4]
    assert not source.defects


@formats
def test_a_split_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path, format_name):
    WRITERS[format_name](tmp_path, split="test")
    with pytest.raises(DataError, match=r"no split 'val'; it has test") as caught:
        open_data(str(tmp_path), "val")
    assert "\n" not in str(caught.value)


@formats
def test_the_valid_folder_of_exporters_is_the_val_split(tmp_path, format_name):
    WRITERS[format_name](tmp_path, split="valid")
    assert len(open_data(tmp_path, "val")) == len(SCENE)


COCO_LAYOUTS = {
    "official": ("annotations/instances_train2017.json", "train2017"),
    "official, images folder": ("annotations/instances_train2017.json", "images/train2017"),
    "plain split": ("annotations/train.json", "images/train"),
    "keypoints file": ("annotations/person_keypoints_train2017.json", "train2017"),
    "roboflow": ("train/_annotations.coco.json", "train"),
    "beside": ("train.json", "train"),
    "no folders": ("train.json", "."),
}


@pytest.mark.parametrize("layout", list(COCO_LAYOUTS))
def test_coco_is_found_in_the_usual_layouts(tmp_path, layout):
    file_name, folder = COCO_LAYOUTS[layout]
    write_images(tmp_path / folder, SCENE)
    path = tmp_path / file_name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco_content(SCENE)))
    assert len(open_data(tmp_path, "train")) == len(SCENE)
    assert len(open_data(path, "train")) == len(SCENE)


def many(num: int) -> dict:
    return {f"image{i:03d}.png": SCENE["a.png"] for i in range(num)}


@pytest.mark.parametrize("name", ["annotations.json", "labels_of_mine.json"])
def test_coco_without_splits_is_cut_by_hash_and_says_so(tmp_path, name, caplog):
    write_images(tmp_path / "images", many(40))
    (tmp_path / name).write_text(json.dumps(coco_content(many(40))))
    with caplog.at_level(logging.INFO, "kestrel.data"):
        parts = [open_data(tmp_path, split) for split in ("train", "val", "test")]
    assert "has no splits" in caplog.text
    names = [record.file_name for part in parts for record in part.records]
    assert sorted(names) == sorted(many(40))
    assert len(parts[0]) > len(parts[1]) >= 1
    assert len(open_data(tmp_path / name, "all")) == 40


@pytest.mark.parametrize("format_name", ["voc", "yolo"])
def test_folders_without_lists_are_cut_by_hash(tmp_path, format_name):
    if format_name == "voc":
        write_voc(tmp_path, many(40))
        (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    else:
        write_images(tmp_path / "images", many(40))
        (tmp_path / "labels").mkdir()
        for name in many(40):
            (tmp_path / "labels" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2\n")
        (tmp_path / "data.yaml").write_text("names: [ball, cone, person]\n")
    parts = [open_data(tmp_path, split) for split in ("train", "val", "test")]
    assert sorted(len(part) for part in parts)[-1] == len(parts[0])
    assert sum(map(len, parts)) == len(open_data(tmp_path, "all")) == 40


def test_the_hash_split_never_moves_an_image_when_the_data_grow():
    few, more = list(many(300)), list(many(500))
    for split in ("train", "val", "test"):
        part = split_by_hash(few, split, "here")
        assert part == [name for name in split_by_hash(more, split, "here") if name in few]
        assert abs(len(part) / 300 - {"train": 0.8}.get(split, 0.1)) < 0.06
    with pytest.raises(DataError, match="no split 'dev'"):
        split_by_hash(few, "dev", "here")


@pytest.mark.parametrize("num", [3, 4, 7, 12])
def test_the_hash_split_of_a_tiny_set_leaves_no_part_empty(num):
    parts = [split_by_hash(list(many(num)), split, "here") for split in ("train", "val", "test")]
    assert all(parts)
    assert sorted(sum(parts, [])) == list(many(num))


def test_a_coco_file_named_after_a_split_finds_its_sibling(tmp_path):
    train, val = write_coco(tmp_path), write_coco(tmp_path, {"a.png": SCENE["a.png"]}, split="val")
    assert len(open_data(train, "train")) == len(open_data(val, "train")) == 4
    assert len(open_data(train, "val")) == len(open_data(val, "all")) == 1
    with pytest.raises(DataError, match="no split 'test'"):
        open_data(train, "test")


def test_coco_gives_polygons_run_lengths_crowds_and_keypoints(tmp_path):
    content = coco_content(SCENE)
    first, second = content["annotations"][:2]
    first["segmentation"] = [[4, 6, 20, 6, 20, 30, 4, 30]]
    first["keypoints"] = [5, 7, 2, 0, 0, 0, 19, 29, 1]
    second["iscrowd"] = 1
    second["segmentation"] = {"size": [48, 64], "counts": [30 * 48 + 10, 20, 48 * 34 - 30]}
    content["categories"][0] |= {"keypoints": ["l", "m", "r"], "skeleton": [[1, 3]]}
    write_coco(tmp_path).write_text(json.dumps(content))
    source = open_data(tmp_path, "train")
    sample = source[0]
    expected = np.zeros((2, 48, 64), np.uint8)
    expected[0, 6:30, 4:20] = 1
    expected[1, 10:30, 30] = 1
    np.testing.assert_array_equal(sample.masks, expected)
    assert sample.is_crowd.tolist() == [False, True]
    assert sample.keypoints_xyv[0].tolist() == [[5, 7, 2], [0, 0, 0], [19, 29, 1]]
    assert not sample.keypoints_xyv[1].any()
    assert (source.joints, source.skeleton) == (("l", "m", "r"), ((0, 2),))
    assert source[1].masks[0].all(), "an object without outline is its box where others have one"
    assert source[2].masks.shape == (0, 50, 50)
    source.has_masks = False
    assert source[0].masks is None


def test_outlines_are_drawn_as_cocos_own_tools_draw_them():
    coco_mask = pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval").mask
    rng = np.random.default_rng(0)
    for num in (3, 4, 9, 30):
        polygon = rng.uniform(-5, 90, (num, 2))
        runs = coco_mask.frPyObjects([polygon.reshape(-1).tolist()], 70, 80)[0]
        drawn = np.zeros((70, 80), np.uint8)
        draw_polygon(polygon, drawn)
        np.testing.assert_array_equal(drawn, coco_mask.decode(runs))
        np.testing.assert_array_equal(decode_rle(runs), coco_mask.decode(runs))
    noise = (rng.random((33, 21)) > 0.5).astype(np.uint8)
    runs = coco_mask.encode(np.asfortranarray(noise))
    np.testing.assert_array_equal(decode_rle(runs), noise)


def test_voc_takes_classes_from_all_splits_and_difficult_objects_as_crowds(tmp_path):
    write_voc(tmp_path, {"b.png": SCENE["b.png"]}, split="val")
    write_voc(tmp_path, {"a.png": SCENE["a.png"]})
    extra = "<difficult>1</difficult>"
    rows = [voc_object("person", (1, 1, 10, 10), extra), voc_object("ball", (1, 1, 9, 9))]
    (tmp_path / "Annotations" / "a.xml").write_text(voc_text("a.png", (64, 48), rows))
    sample = open_data(tmp_path, "train")[0]
    assert open_data(tmp_path, "val").classes == CLASSES
    assert sample.is_crowd.tolist() == [True, False]
    assert sample.boxes_xyxy.tolist() == [[0, 0, 10, 10], [0, 0, 9, 9]]


YAMLS = {
    "list": "train: images/train\nval: images/train\nnames: ['ball', cone, \"person\"]\n",
    "dashes": "train: images/train  # here\nnc: 3\nnames:\n- ball\n- cone\n- person\n",
    "numbers": "path: .\ntrain:\n  - images/train\nnames:\n  0: ball\n  1: cone\n  2: person\n",
    "exporter": "train: ../train/images\nnames: {0: ball, 1: cone, 2: person}\n",
    "foreign path": "path: ../data/elsewhere\ntrain: images/train\nnames: [ball, cone, person]\n",
    "text list": "train: train.txt\nnames: [ball, cone, person]\n",
    "folders only": "names: [ball, cone, person]\n",
}


@pytest.mark.parametrize("layout", list(YAMLS))
def test_yolo_is_found_in_the_usual_layouts(tmp_path, layout):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(YAMLS[layout])
    (tmp_path / "train.txt").write_text("".join(f"./images/train/{name}\n" for name in SCENE))
    if layout == "exporter":
        (tmp_path / "train").mkdir()
        for name in ("images", "labels"):
            (tmp_path / name / "train").rename(tmp_path / "train" / name)
    for place in (tmp_path, tmp_path / "data.yaml"):
        source = open_data(place, "train")
        assert source.classes == CLASSES
        assert [sample.classes.tolist() for sample in each_once(source)] == [
            [label for label, _ in objects] for _, objects in SCENE.values()
        ]


def test_yolo_takes_names_from_classes_txt_and_asks_for_them_else(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"no class names.*classes\.txt"):
        open_data(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    assert open_data(tmp_path, "train").classes == CLASSES


@pytest.mark.parametrize("layout", list(YAMLS))
def test_the_simple_yaml_parser_agrees_with_pyyaml(tmp_path, layout):
    pytest.importorskip("yaml", reason="PyYAML is not installed: nothing to compare with")
    (tmp_path / "data.yaml").write_text(YAMLS[layout])
    assert parse_simple_yaml(YAMLS[layout]) == read_yaml(tmp_path / "data.yaml")


def test_yolo_polygons_become_boxes_and_masks(tmp_path):
    write_yolo(tmp_path)
    row = "1 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5\n"
    (tmp_path / "labels" / "train" / "d.txt").write_text(row)
    sample = open_data(tmp_path, "train")[3]
    assert sample.boxes_xyxy.tolist() == [[16, 16, 48, 32]]
    assert sample.masks[0].sum() == 32 * 16 == sample.masks[0, 16:32, 16:48].sum()


@pytest.mark.parametrize("columns", [2, 3])
def test_yolo_keypoints_are_pixels_with_visibility(tmp_path, columns):
    write_yolo(tmp_path)
    with (tmp_path / "data.yaml").open("a") as file:
        file.write(f"kpt_shape: [2, {columns}]\n")
    points = "0.5 0.25 0 0" if columns == 2 else "0.5 0.25 2 0.3 0.3 0"
    (tmp_path / "labels" / "train" / "d.txt").write_text(f"2 0.5 0.5 0.5 0.5 {points}\n")
    sample = open_data(tmp_path, "train")[3]
    assert sample.keypoints_xyv.tolist() == [[[32, 16, 2], [0, 0, 0]]]


def test_an_unknown_folder_is_one_line_that_names_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"COCO.*Pascal VOC.*YOLO") as caught:
        open_data(tmp_path, "val")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such folder"):
        open_data(tmp_path / "nowhere", "train")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"not a \.csv file"):
        open_data(tmp_path / "a.csv", "train")


def test_street_is_imported_only_when_it_is_asked_for(monkeypatch):
    fake = types.ModuleType("training.data.street")
    fake.Street = lambda split, labels: (split, *labels)
    monkeypatch.setitem(sys.modules, "training.data.street", fake)
    assert open_data("street", "val") == ("val", "boxes")
    assert open_data("street", "val", ("masks",)) == ("val", "boxes", "masks")


def test_data_and_metrics_are_imported_without_torch():
    code = (
        "import sys, training.data, training.data.augment, training.metrics.detection\n"
        "heavy = {'torch', 'training.data.street', 'faster_coco_eval'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_bccd_loads_as_its_readme_says():
    root = SHARED / "data" / "bccd"
    if not root.is_dir():
        pytest.skip(f"{root} is missing; set KESTREL_SHARED to the folder that has data/bccd")
    parts = {split: open_data(str(root), split) for split in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [205, 87, 72]
    assert {part.classes for part in parts.values()} == {("Platelets", "RBC", "WBC")}
    counts = [part.defects.counts.get("zero-size or inverted box", 0) for part in parts.values()]
    assert counts == [1, 1, 0]
    classes = [record.classes for part in parts.values() for record in part.records]
    assert np.bincount(np.concatenate(classes)).tolist() == [361, 4155 - 2, 372]
    assert parts["val"][0].image_hw == (480, 640)
