"""Masks from outputs of the graph to pixels of the source frame, to COCO and to JSON."""

from __future__ import annotations

import dataclasses
import gc
import json
import tracemalloc
import weakref

import numpy as np
import pytest
from test_rle import decode
from tiny_bundle import write_tiny_bundle
from tiny_masks import NAMES, ellipses, scattered_boxes

from runtime.contract.bundle import Bundle
from runtime.contract.errors import ManifestError
from runtime.contract.manifest import InputGeometry, Manifest
from runtime.contract.outputs import INPUTS, MASK_INSIDE, OUTPUTS
from runtime.masks import Masks
from runtime.preprocess import Letterbox
from runtime.tasks import load_task
from runtime.tasks.instance import finish

CLOSE = 2e-3  # of 255: a sample this close to a half may fall either way in float32
WIDE, TALL = (90, 160), (160, 90)
CASES = {
    "16:9": (InputGeometry(72, 128), (18, 32), (432, 768)),
    "padded above and below": (InputGeometry(64, 64), (16, 16), WIDE),
    "padded left and right": (InputGeometry(64, 64), (16, 16), TALL),
    "padded on one side": (InputGeometry(64, 64, alignment="top_left"), (16, 16), TALL),
    "stretched": (InputGeometry(60, 60, resize="stretch"), (15, 15), WIDE),
    "sides that do not divide": (InputGeometry(55, 55, resize="stretch"), (14, 14), (71, 133)),
    "smaller than the network": (InputGeometry(128, 128), (32, 32), (45, 37)),
    "one soft pixel": (InputGeometry(64, 64), (1, 1), WIDE),
}


def enlarge_in_full(masks: Masks, index: int) -> np.ndarray:
    """(H, W) float64 samples of the whole frame, a pixel's four neighbours at a time."""
    letterbox, soft = masks.letterbox, masks.soft[index].astype(np.float64)
    places = []
    for side, first in ((0, letterbox.top), (1, letterbox.left)):
        scale = letterbox.content_hw[side] / letterbox.source_hw[side]
        centres = (np.arange(letterbox.source_hw[side]) + 0.5) * scale + first
        places.append(centres / (letterbox.network_hw[side] / soft.shape[side]) - 0.5)
    ys, xs = (p.clip(0, n - 1) for p, n in zip(places, soft.shape, strict=True))
    y0, x0 = np.floor(ys).astype(int), np.floor(xs).astype(int)
    y1, x1 = np.minimum(y0 + 1, len(soft) - 1), np.minimum(x0 + 1, soft.shape[1] - 1)
    ty, tx = (ys - y0)[:, None], (xs - x0)[None]
    return (
        soft[np.ix_(y0, x0)] * (1 - ty) * (1 - tx)
        + soft[np.ix_(y0, x1)] * (1 - ty) * tx
        + soft[np.ix_(y1, x0)] * ty * (1 - tx)
        + soft[np.ix_(y1, x1)] * ty * tx
    )


@pytest.fixture(params=CASES.values(), ids=CASES)
def found(request):
    geometry, soft_hw, source_hw = request.param
    boxes = scattered_boxes(12, *source_hw)
    boxes[0] = (0, 0, source_hw[1], source_hw[0])
    detections = ellipses(boxes, source_hw, geometry, soft_hw)
    noise = np.random.default_rng(1).integers(0, 256, detections.masks.soft[6:].shape)
    detections.masks.soft[6:] = noise
    return detections


def test_mask_is_the_enlarged_soft_mask(found):
    masks = found.masks
    num_inside = 0
    for index in range(len(masks)):
        samples = enlarge_in_full(masks, index)
        expected = samples >= MASK_INSIDE
        bitmap = masks.bitmap(index)
        assert (bitmap.shape, bitmap.dtype) == (masks.letterbox.source_hw, bool)
        assert (np.abs(samples - MASK_INSIDE) < CLOSE)[bitmap != expected].all()
        num_inside += bitmap.sum()
    assert num_inside > 0


def test_crop_bitmap_run_lengths_and_polygons_tell_the_same_pixels(found):
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    masks = found.masks
    for index in range(len(masks)):
        x1, y1, inside = masks.crop(index)
        bitmap = masks.bitmap(index)
        height, width = bitmap.shape
        assert np.array_equal(bitmap[y1 : y1 + len(inside), x1 : x1 + inside.shape[1]], inside)
        assert bitmap.sum() == inside.sum()
        rle = masks.rle(index)
        assert rle["size"] == [height, width]
        assert np.array_equal(decode(rle["counts"], height, width), bitmap)
        filled = np.zeros(bitmap.shape, np.uint8)
        outlines = masks.polygons(index)
        cv2.fillPoly(filled, outlines, 1)
        assert not (bitmap & (filled == 0)).any()
        parts = [bitmap[outline[:, 1], outline[:, 0]].all() for outline in outlines]
        assert all(parts)
    assert len(masks.bitmaps()) == len(masks)
    assert np.array_equal(masks.bitmaps()[3], masks.bitmap(3))


def test_soft_mask_of_plain_128_is_inside_everywhere_and_of_127_nowhere():
    letterbox = Letterbox.fit((71, 133), InputGeometry(55, 55))
    soft = np.stack([np.full((14, 14), value, np.uint8) for value in (128, 127)])
    masks = Masks(soft, letterbox)
    assert masks.bitmap(0).all()
    assert not masks.bitmap(1).any()


def test_mask_that_lies_in_the_padding_alone_is_empty():
    soft = np.zeros((1, 16, 16), np.uint8)
    soft[0, :3] = 255  # the content of a wide frame begins below
    masks = Masks(soft, Letterbox.fit(WIDE, InputGeometry(64, 64)))
    assert masks.crop(0).inside.size == 0
    assert not masks.bitmap(0).any()
    assert masks.polygons(0) == []
    assert not decode(masks.rle(0)["counts"], *WIDE).any()


def test_crop_is_no_wider_than_what_the_soft_mask_reaches():
    soft = np.zeros((1, 18, 32), np.uint8)
    soft[0, 5:9, 10:12] = 200  # 24 pixels of the frame are one of these
    x1, y1, inside = Masks(soft, Letterbox.fit((432, 768), InputGeometry(72, 128))).crop(0)
    assert (x1, y1) == (10 * 24 - 12, 5 * 24 - 12)
    assert inside.shape == (4 * 24 + 24, 2 * 24 + 24)
    assert inside[:, 36].any()
    assert not inside[0].any()


# ---------------------------------------------------------------------------------------- the task


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    """Of an instance bundle, with the names of the tiny one."""
    tiny = Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("tiny"))).manifest
    return dataclasses.replace(tiny, task="instance", outputs=OUTPUTS["instance"], mask_hw=(12, 16))


def make_outputs(batch: int = 4, rows: int = 5) -> dict[str, np.ndarray]:
    soft = np.zeros((batch, rows, 12, 16), np.uint8)
    soft[0, 0, :, 8:] = 255
    soft[0, 1, :6] = 255
    soft[1, 0] = 255
    boxes = np.zeros((batch, rows, 4), np.float32)
    boxes[0, :2] = [[16, 0, 64, 48], [0, 0, 64, 48]]
    boxes[1, 0] = [16, 0, 48, 48]
    return {
        "num_detections": np.int32([2, 1, 0, 0]),
        "boxes_xyxy": boxes,
        "scores": np.full((batch, rows), 0.5, np.float32),
        "classes": np.zeros((batch, rows), np.int32),
        "masks": soft,
    }


def test_finish_gives_each_object_its_mask_in_pixels_of_its_own_frame(manifest):
    letterboxes = [Letterbox.fit(hw, manifest.geometry) for hw in ((96, 128), (48, 32))]
    results = finish(make_outputs(), letterboxes, manifest)
    assert [len(result.masks) for result in results] == [2, 1]
    first, second = results[0].masks.bitmaps()
    expected = np.zeros((96, 128), bool)
    expected[:, 64:] = True
    assert np.array_equal(first, expected)
    assert np.array_equal(
        second, np.repeat([[True], [False]], 48, axis=0) & np.ones((96, 128), bool)
    )
    assert results[1].masks.bitmap(0).all()
    assert results[1].masks.bitmap(0).shape == (48, 32)


def test_finish_of_an_empty_frame_has_no_masks(manifest):
    letterboxes = [Letterbox.fit((96, 128), manifest.geometry)] * 3
    result = finish(make_outputs(), letterboxes, manifest)[2]
    assert (len(result), len(result.masks), result.masks.bitmaps()) == (0, 0, [])
    assert result.to_json() == {"detections": []}
    assert result.to_coco(1, manifest.category_ids) == []


def test_result_does_not_hold_the_arrays_of_its_batch(manifest):
    outputs = make_outputs()
    batch = weakref.ref(outputs["masks"])
    results = finish(outputs, [Letterbox.fit((96, 128), manifest.geometry)], manifest)
    del outputs
    gc.collect()
    assert batch() is None
    assert results[0].masks.soft.nbytes == 2 * 12 * 16


def test_task_takes_detections_thresholds_and_drawing(manifest):
    task, detection = load_task("instance"), load_task("detection")
    feeds = task.thresholds(manifest, 2, 0.7)
    assert list(feeds) == [spec.name for spec in INPUTS["instance"][1:]]
    assert task.draw is detection.draw


# ----------------------------------------------------------------------------------------- results


@pytest.fixture
def detections():
    boxes = np.float32([[2, 3, 60, 40], [50, 20, 90, 70], [10, 10, 30, 30]])
    return ellipses(boxes, (80, 100), InputGeometry(64, 80), (16, 20))


@pytest.mark.parametrize(
    "index",
    [slice(1, None), [2, 0], np.array([False, True, True]), np.array([1]), slice(0, 0)],
    ids=["slice", "list", "bool", "array", "none"],
)
def test_part_of_the_detections_has_its_own_masks(detections, index):
    part = detections[index]
    rows = np.arange(3)[index]
    assert len(part.masks) == len(part) == len(rows)
    for place, row in enumerate(rows):
        assert np.array_equal(part.masks.bitmap(place), detections.masks.bitmap(row))
        assert np.array_equal(part.boxes_xyxy[place], detections.boxes_xyxy[row])


def test_coco_entries_hold_boxes_and_compressed_run_lengths(detections):
    entries = json.loads(json.dumps(detections.to_coco(42, (3, 11, 20))))
    assert [entry["category_id"] for entry in entries] == [3, 11, 20]
    assert entries[0]["bbox"] == [2, 3, 58, 37]
    for row, entry in enumerate(entries):
        assert entry["segmentation"]["size"] == [80, 100]
        bitmap = decode(entry["segmentation"]["counts"], 80, 100)
        assert np.array_equal(bitmap, detections.masks.bitmap(row))


def test_entries_are_read_by_cocos_own_tools(detections):
    coco = pytest.importorskip("faster_coco_eval.core", reason="needs faster-coco-eval").mask
    for row, entry in enumerate(detections.to_coco(1, (3, 11, 20))):
        bitmap = coco.decode(entry["segmentation"])
        assert np.array_equal(bitmap.astype(bool), detections.masks.bitmap(row))


def test_json_holds_a_mask_for_each_detection_and_none_without_masks(detections):
    document = json.loads(json.dumps(detections.to_json()))
    assert [each["name"] for each in document["detections"]] == list(NAMES)
    for row, each in enumerate(document["detections"]):
        assert each["segmentation"] == detections.masks.rle(row)
    bare = dataclasses.replace(detections, masks=None)
    assert all("segmentation" not in each for each in bare.to_json()["detections"])
    assert all("segmentation" not in each for each in bare.to_coco(1, (3, 11, 20)))


def test_hundred_masks_of_a_large_frame_cost_nothing_until_they_are_asked_for(manifest):
    geometry = InputGeometry(288, 512)
    large = dataclasses.replace(manifest, geometry=geometry, mask_hw=(72, 128))
    outputs = {
        "num_detections": np.int32([100]),
        "boxes_xyxy": np.tile(np.float32([10, 10, 200, 200]), (1, 100, 1)),
        "scores": np.ones((1, 100), np.float32),
        "classes": np.zeros((1, 100), np.int32),
        "masks": np.full((1, 100, 72, 128), 200, np.uint8),
    }
    letterbox = Letterbox.fit((2160, 3840), geometry)
    tracemalloc.start()
    (result,) = finish(outputs, [letterbox], large)
    kept = result[result.scores > 0.5]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == 100
    assert most < 3 * 100 * 72 * 128  # one frame's masks at this size would be 830 MB


# ---------------------------------------------------------------------------------------- manifest


def test_manifest_survives_json_with_the_size_of_its_masks(manifest):
    again = Manifest.from_json(manifest.to_json(), origin="here")
    assert again == manifest
    assert manifest.sizes(1)["h"], manifest.sizes(1)["w"] == (12, 16)


def test_manifest_without_masks_needs_no_size_of_them(tmp_path):
    path = write_tiny_bundle(tmp_path) / "manifest.json"
    document = json.loads(path.read_text())
    del document["mask_hw"]  # as older bundles are
    again = Manifest.from_json(json.dumps(document), origin="here")
    assert again.mask_hw == ()
    assert not {"h", "w"} & set(again.sizes(1))


@pytest.mark.parametrize("mask_hw", [[], [12], [12, 0], [12, 16, 3]])
def test_manifest_of_masks_without_their_size_is_refused(manifest, mask_hw):
    document = json.loads(manifest.to_json()) | {"mask_hw": mask_hw}
    with pytest.raises(ManifestError, match="mask_hw .*expected height and width of the masks"):
        Manifest.from_json(json.dumps(document), origin="here")
