"""The accuracy script: boxes and masks of result files against a data set, and its errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import accuracy
from runtime.contract.errors import EXIT_BAD_INPUT, EXIT_DONE, run_script
from training.data.outlines import compress_rle, encode_rle

pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval")

HW = (48, 64)
MASKS = {1: (8, 8, 20, 20), 2: (30, 10, 24, 30)}  # image id -> x, y, width, height of its object


def mask_of(image_id: int) -> np.ndarray:
    """An object that fills the left half of its box."""
    x, y, width, height = MASKS[image_id]
    mask = np.zeros(HW, np.uint8)
    mask[y : y + height, x : x + width // 2] = 1
    return mask


def write_data(root: Path, *, has_masks: bool) -> Path:
    (root / "images" / "val").mkdir(parents=True)
    annotations = []
    for image_id, box in MASKS.items():
        path = root / "images" / "val" / f"{image_id}.png"
        assert cv2.imwrite(str(path), np.zeros((*HW, 3), np.uint8))
        entry = {"id": image_id, "image_id": image_id, "category_id": 7, "bbox": box, "iscrowd": 0}
        if has_masks:
            entry["segmentation"] = encode_rle(mask_of(image_id))
        annotations.append(entry)
    content = {
        "images": [
            {"id": key, "file_name": f"{key}.png", "width": 64, "height": 48} for key in MASKS
        ],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "ball"}],
    }
    path = root / "annotations" / "instances_val.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return root


def results_of(*, has_masks: bool) -> list[dict]:
    """The boxes exactly; the mask of image 1 exactly, that of image 2 as its whole box."""
    results = []
    for image_id, box in MASKS.items():
        entry = {"image_id": image_id, "category_id": 7, "bbox": box, "score": 0.9 / image_id}
        if has_masks:
            mask = mask_of(image_id)
            if image_id == 2:
                x, y, width, height = box
                mask[y : y + height, x : x + width] = 1
            entry["segmentation"] = compress_rle(encode_rle(mask))
        results.append(entry)
    return results


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *map(str, arguments)])
    return run_script(accuracy.main)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with masks, and results with masks under the same image ids."""
    write_data(tmp_path / "data", has_masks=True)
    (tmp_path / "results.json").write_text(json.dumps(results_of(has_masks=True)))
    return tmp_path


def score(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: object) -> int:
    place = folder / "results.json"
    return run(monkeypatch, place, "--data", folder / "data", "--split", "val", *more)


def test_results_with_masks_score_masks_beside_boxes(folder, monkeypatch, capsys):
    assert score(folder, monkeypatch, "--out", folder / "scores.json") == EXIT_DONE
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    assert scores["AP"] == pytest.approx(1, abs=1e-6)
    # the second has IoU 0.5: right at one threshold of ten, else 51 of 101 levels of recall
    assert scores["mask_AP50"] == pytest.approx(1, abs=1e-6)
    assert scores["mask_AP"] == pytest.approx((1 + 9 * 51 / 101) / 10, abs=1e-6)
    assert scores["mask_AP/ball"] == scores["mask_AP"]
    printed = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["mask_AP50", "1.0000"] for line in printed)
    assert printed[-1].startswith("2 results on 2 images")


def test_results_without_masks_score_boxes_alone(folder, monkeypatch, capsys):
    (folder / "results.json").write_text(json.dumps(results_of(has_masks=False)))
    assert score(folder, monkeypatch) == EXIT_DONE
    printed = capsys.readouterr().out
    assert "AP50" in printed
    assert "mask_AP" not in printed


def test_results_are_found_under_the_ids_of_their_own_list_of_images(folder, monkeypatch, capsys):
    results = [entry | {"image_id": 30 + entry["image_id"]} for entry in results_of(has_masks=True)]
    (folder / "results.json").write_text(json.dumps(results))
    images = [{"id": 30 + key, "file_name": f"elsewhere/{key}.png"} for key in MASKS]
    (folder / "results.images.json").write_text(json.dumps(images))
    assert score(folder, monkeypatch) == EXIT_DONE
    assert "AP                           1.0000" in capsys.readouterr().out


IMAGES = [{"id": key, "file_name": f"{key}.png"} for key in MASKS]
WRONG = {
    "an image id that the list of images lacks": (
        [entry | {"image_id": 9} for entry in results_of(has_masks=True)],
        IMAGES,
        "error: 2 results are of image ids (such as 9) that the list of images (2 ids) does not "
        "have; expected the list that was written with these results. Give it by --images.",
    ),
    "an image id as text": (
        [entry | {"image_id": str(entry["image_id"])} for entry in results_of(has_masks=True)],
        IMAGES,
        "image ids (such as '1')",
    ),
    "an image id that the data lacks": (
        [entry | {"image_id": 9} for entry in results_of(has_masks=True)],
        None,
        "error: results for image ids [9] that the ground truth (2 images) does not have",
    ),
    "images without results": (results_of(has_masks=True), IMAGES[:1], "cover 1 of the split's 2"),
    "a result without an image": ([{"score": 1}], None, "entry 0 is {'score': 1}; expected an obj"),
    "a list of numbers": ([1, 2], None, "entry 0 is 1; expected an object with image_id"),
    "an image without a name": (results_of(has_masks=True), [{"id": 1}], "with id and file_name"),
    "a mask on some results": (
        [results_of(has_masks=True)[0], results_of(has_masks=False)[1]],
        None,
        "error: result 1 has no 'segmentation'; expected COCO results with image_id, category_id, ",
    ),
    "a result without a box": (
        [{"image_id": 1, "category_id": 7, "score": 0.5}],
        None,
        "error: result 0 has no 'bbox'",
    ),
    "a mask of another size": (
        [results_of(has_masks=True)[0] | {"segmentation": {"size": [24, 32], "counts": "PT"}}],
        None,
        "error: a mask of image 1 has the size [24, 32]; expected run lengths of [48, 64]",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_results_are_one_line_and_nothing_is_written(folder, monkeypatch, capsys, case):
    results, images, expected = WRONG[case]
    (folder / "results.json").write_text(json.dumps(results))
    if images is not None:
        (folder / "results.images.json").write_text(json.dumps(images))
    assert score(folder, monkeypatch, "--out", folder / "scores.json") == EXIT_BAD_INPUT
    written = capsys.readouterr().err
    assert expected in written
    assert written.count("\n") == 1
    assert not (folder / "scores.json").exists()


def test_masks_need_data_with_masks(tmp_path, monkeypatch, capsys):
    write_data(tmp_path / "data", has_masks=False)
    (tmp_path / "results.json").write_text(json.dumps(results_of(has_masks=True)))
    assert score(tmp_path, monkeypatch) == EXIT_BAD_INPUT
    assert "boxes but no masks; expected COCO with `segmentation`" in capsys.readouterr().err
