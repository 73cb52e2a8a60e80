"""Masks in the proof: what differs is counted, judged by precision, scored and drawn."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from tiny_instance import make_feeds, tiny_instances, write_instance_bundle

from export.bundling import torch_results
from export.graph.end_to_end import end_to_end, trace
from export.proof.reference import Reference
from export.proof.sheet import frame_badness, write_sheet
from export.tasks import task_module
from runtime.contract.bundle import Bundle
from runtime.contract.limits import LIMITS, judge, limits_of
from runtime.contract.matching import SMALL_MASK_PX, Comparison, compare_detections
from runtime.contract.samples import Samples
from runtime.engines.check import find_faults
from runtime.preprocess import Letterbox
from runtime.tasks import load_task
from training.data.sample import Sample

SIDE = 40


def rows_of(*masks: np.ndarray) -> dict[str, np.ndarray]:
    """One frame of a result for each mask (SIDE, SIDE), far apart, and two rows of padding."""
    count, size = len(masks), len(masks) + 2
    rows = {
        "num_detections": np.array([count], np.int32),
        "boxes_xyxy": np.zeros((1, size, 4), np.float32),
        "scores": np.zeros((1, size), np.float32),
        "classes": np.full((1, size), -1, np.int32),
        "masks": np.zeros((1, size, SIDE, SIDE), np.uint8),
    }
    for index, mask in enumerate(masks):
        rows["boxes_xyxy"][0, index] = np.array([0, 0, 20, 20]) + 50 * index
        rows["scores"][0, index] = 0.9 - 0.1 * index
        rows["classes"][0, index] = 0
        rows["masks"][0, index] = mask
    return rows


def block(height: int, width: int, value: int = 255) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:height, :width] = value
    return mask


def compare(ours: list[np.ndarray], theirs: list[np.ndarray]) -> Comparison:
    comparison = Comparison()
    feeds = {"score_threshold": np.full((1, 1), 0.1), "iou_threshold": np.full(1, 0.5)}
    compare_detections(rows_of(*ours), rows_of(*theirs), feeds, comparison)
    assert comparison.num_matched == len(ours)
    return comparison


# ---------------------------------------------------------------------------------- what is counted


@pytest.mark.parametrize(
    ("ours", "theirs", "iou"),
    [
        (block(20, 20), block(20, 20), 1.0),
        (block(20, 20), block(20, 10), 0.5),
        (block(20, 20, 128), block(20, 20, 255), 1.0),
        (block(20, 20, 128), block(20, 20, 127), 0.0),
        (block(4, 4), block(0, 0), 0.0),
        (block(2, 2), block(4, 4), 0.25),
    ],
    ids=["same", "half", "128 is inside", "127 is outside", "gone", "grown"],
)
def test_masks_of_matched_results_are_compared_where_they_are_inside(ours, theirs, iou):
    assert compare([ours], [theirs]).mask_ious == [pytest.approx(iou)]


@pytest.mark.parametrize(
    ("ours", "theirs", "differing"),
    [(block(3, 5), block(3, 5), 0), (block(3, 5), block(3, 4), 3), (block(0, 0), block(0, 0), 0)],
    ids=["same", "a column less", "both empty"],
)
def test_small_masks_are_counted_in_pixels(ours, theirs, differing):
    comparison = compare([ours], [theirs])
    assert (comparison.mask_ious, comparison.small_mask_errors) == ([], [differing])
    assert comparison.summary()["min_mask_iou"] == 1.0


def test_mask_is_small_below_the_limit_on_both_sides():
    assert compare([block(4, 4)], [block(3, 5)]).small_mask_errors == []
    assert SMALL_MASK_PX == 16


def test_figures_name_the_worst_masks():
    ours = [block(20, 20)] * 3 + [block(3, 3)] * 2
    theirs = [block(20, 20), block(20, 19), block(20, 10), block(3, 3), block(3, 2)]
    figures = compare(ours, theirs).summary()
    assert figures["min_mask_iou"] == 0.5
    assert figures["p1_mask_iou"] == pytest.approx(0.5, abs=0.01)
    assert figures["small_masks"] == 2
    assert figures["p99_small_mask_error_px"] == pytest.approx(3, abs=0.05)


def test_results_without_masks_have_no_figures_of_masks():
    comparison = Comparison()
    feeds = {"score_threshold": np.full((1, 1), 0.1), "iou_threshold": np.full(1, 0.5)}
    bare = {name: value for name, value in rows_of(block(9, 9)).items() if name != "masks"}
    compare_detections(bare, bare, feeds, comparison)
    assert comparison.num_matched == 1
    assert not [name for name in comparison.summary() if "mask" in name]
    assert judge(comparison.summary(), limits_of("fp32")) == []


# ----------------------------------------------------------------------------------- what is judged


@pytest.mark.parametrize(
    ("precision", "lost_columns", "says"),
    [
        ("fp32", 0, ""),
        ("fp32", 1, "mask IoU 0.95 (p1) < 0.99"),
        ("fp16", 1, ""),
        ("fp16", 3, "mask IoU 0.85 (p1) < 0.93"),
        ("int8", 3, ""),
        ("int8", 11, "mask IoU 0.45 (p1) < 0.6"),
    ],
)
def test_overlap_of_masks_is_judged_by_precision(precision, lost_columns, says):
    masks = [block(20, 20)] * 4
    comparison = compare(masks, [block(20, 20 - lost_columns)] * 4)
    reasons = judge(comparison.summary(), limits_of(precision))
    assert reasons == ([says] if says else [])


@pytest.mark.parametrize(("precision", "lost", "passes"), [
    ("fp32", 0, True), ("fp32", 2, False), ("fp16", 2, True), ("fp16", 6, False),
])  # fmt: skip
def test_small_masks_are_judged_by_the_pixels_that_differ(precision, lost, passes):
    comparison = compare([block(2, 6)] * 4, [block(2, 6 - lost // 2)] * 4)
    reasons = judge(comparison.summary(), limits_of(precision))
    assert (reasons == []) == passes
    assert passes or reasons[0].startswith(f"small masks differ in {lost} px (p99)")


def test_one_foreign_mask_of_many_fails_in_float32_and_not_where_numbers_are_rounded():
    comparison = Comparison(num_matched=500, mask_ious=[1.0] * 499 + [0.1])
    assert judge(comparison.summary(), limits_of("fp32")) == ["mask IoU 0.1 (min) < 0.8"]
    assert judge(comparison.summary(), limits_of("fp16")) == []
    assert {"fp32", "fp16"} <= set(LIMITS)


# -------------------------------------------------------------------------- a model and its session


@pytest.fixture(scope="module")
def model():
    return tiny_instances()


class TorchSession:
    """Answers as PyTorch does, but for a change of the outputs."""

    precision = "fp32"

    def __init__(self, model, change=lambda outputs: None) -> None:
        self.module, self.change = end_to_end(model), change

    def run(self, feeds: dict[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        names = ("num_detections", "boxes_xyxy", "scores", "classes", "masks")
        order = ("image", "score_threshold", "iou_threshold")
        with torch.no_grad():
            outputs = self.module(*(torch.from_numpy(feeds[name]) for name in order))
        found = {name: value.numpy() for name, value in zip(names, outputs, strict=True)}
        self.change(found)
        return found


def shift_masks(outputs: dict[str, np.ndarray]) -> None:
    outputs["masks"] = np.roll(outputs["masks"], 3, axis=3)


def swap_masks(outputs: dict[str, np.ndarray]) -> None:
    count = int(outputs["num_detections"][0])
    outputs["masks"][:, :count] = outputs["masks"][:, :count][:, ::-1]


def round_masks(outputs: dict[str, np.ndarray]) -> None:
    """The right numbers but for the last bit; no half is crossed."""
    outputs["masks"] += (outputs["masks"] > 128) & (outputs["masks"] < 255)


@pytest.mark.parametrize(
    ("change", "passes"),
    [(lambda outputs: None, True), (round_masks, True), (shift_masks, False), (swap_masks, False)],
    ids=["none", "rounded", "shifted", "swapped"],
)
def test_engine_check_looks_at_the_masks_of_the_samples(model, change, passes):
    feeds = make_feeds(model, 6)
    samples = Samples(feeds, torch_results(model, feeds))
    faults = find_faults(TorchSession(model, change), "model", samples)
    assert (faults == []) == passes
    assert passes or any("mask" in fault for fault in faults)


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory) -> Reference:
    """Of frames whose ground truth is what the model itself finds."""
    folder = tmp_path_factory.mktemp("proof")
    base = trace(model)
    manifest = Bundle.open(write_instance_bundle(folder, model, base, ("fp32",))).manifest
    feeds, task = make_feeds(model, 4), load_task("instance")
    feeds["score_threshold"][:] = model.spec.score_threshold
    results = torch_results(model, feeds)
    samples = []
    for row, image in enumerate(feeds["image"]):
        outputs = {name: value[row : row + 1] for name, value in results.items()}
        letterbox = Letterbox.fit(image.shape[:2], manifest.geometry)
        (found,) = task.finish(outputs, [letterbox], manifest)
        samples.append(
            Sample(
                image=image,
                boxes_xyxy=found.boxes_xyxy,
                classes=found.classes.astype(np.int64),
                is_crowd=np.zeros(len(found), bool),
                image_id=row,
                file_name=f"{row}.png",
                masks=np.array(found.masks.bitmaps(), np.uint8),
            )
        )
    scores = {"AP": 1.0, "mask_AP": 1.0}
    return Reference(
        model, manifest, samples, feeds["image"], feeds, results, scores, [], None, {"model": base}
    )


def test_session_is_scored_by_its_boxes_and_its_masks(model, reference):
    """At a threshold of 0 more is found than is there, behind all that is."""
    right = reference.score(TorchSession(model))
    assert right == {"AP": pytest.approx(1.0), "mask_AP": pytest.approx(1.0, abs=0.02)}
    shifted = reference.score(TorchSession(model, shift_masks))
    assert shifted["AP"] == right["AP"]
    assert shifted["mask_AP"] < right["mask_AP"] - 0.2


def test_bundle_whose_masks_lost_score_fails(model, reference, monkeypatch):
    import export.verify

    reference = copy.copy(reference)
    reference.scores = {"AP": 0.5, "mask_AP": 0.7}
    monkeypatch.setattr(Reference, "score", lambda *_: {"AP": 0.5, "mask_AP": 0.6})
    monkeypatch.setattr(Reference, "probe", lambda *_: [])
    monkeypatch.setattr(Reference, "explain", lambda *_: [])
    monkeypatch.setattr(Reference, "draw", lambda *_: [])
    monkeypatch.setattr("export.proof.auditing.audit_artifact", lambda *_: {"reasons": []})
    session = TorchSession(model)
    session.backend = "torch"
    bundle = SimpleNamespace(folder=Path(), manifest=reference.manifest)
    found = export.verify._examine(bundle, session, reference, 0.01)
    assert (found["verdict"], found["AP"], found["mask_AP"]) == ("fail", 0.5, 0.6)
    assert found["reasons"] == ["mask_AP 0.6000; the checkpoint has 0.7000"]
    assert found["p1_mask_iou"] == 1.0


def test_scores_of_a_task_are_those_of_training():
    assert callable(task_module("detection").score)
    truth = {
        "images": [{"id": 1, "height": 8, "width": 8, "file_name": "a"}],
        "categories": [{"id": 3, "name": "ball"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4], "area": 16,
             "iscrowd": 0, "segmentation": {"size": [8, 8], "counts": [0, 4, 4, 4, 52]}},
        ],
    }  # fmt: skip
    result = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4], "score": 0.9}
    right = result | {"segmentation": {"size": [8, 8], "counts": [0, 4, 4, 4, 52]}}
    wrong = result | {"segmentation": {"size": [8, 8], "counts": [40, 4, 4, 4, 12]}}
    score = task_module("instance").score
    assert (score(truth, [right])["AP"], score(truth, [right])["mask_AP"]) == (1.0, 1.0)
    assert (score(truth, [wrong])["AP"], score(truth, [wrong])["mask_AP"]) == (1.0, 0.0)


# -------------------------------------------------------------------------------------- the picture


def test_sheet_shows_masks_and_ranks_frames_by_them(model, tmp_path):
    feeds = make_feeds(model, 3)
    rows = [{n: v[i : i + 1] for n, v in feeds.items()} for i in range(3)]
    ours = [TorchSession(model).run(row) for row in rows]
    theirs = copy.deepcopy(ours)
    shift_masks(theirs[1])
    assert frame_badness(ours[0], theirs[0], rows[0]) == 0
    assert frame_badness(ours[1], theirs[1], rows[1]) > 5
    path = tmp_path / "sheet.png"
    assert write_sheet(path, feeds["image"], ours, theirs, rows, model.spec.classes) == [1]
    sheet = cv2.imread(str(path))
    width = sheet.shape[1] // 2
    assert (sheet[22:, :width] != sheet[22:, width:]).any(axis=2).mean() > 0.02
