"""Networks for video: what their stages teach, what stands still, and how they are scored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from calling import call
from tiny_clips import write_video
from tiny_models import lively, shrunk

from training.data.augment import Augment
from training.data.clips import Flow, open_clips
from training.data.sample import DataError, Sample
from training.data.street import CATEGORY_IDS, CLASSES
from training.data.street.clips import StreetClips
from training.errors import CheckpointError
from training.loop.checkpoint import load_release, save_release
from training.loop.feed import NumberedBatches, make_feed
from training.loop.trainer import RunOptions, Trainer
from training.metrics.consistency import Consistency, carried_iou, match_tracks
from training.models import build_model, model_variant
from training.models.base import Recipe, TemporalModel
from training.tasks import instance
from training.video.lessons import FlowLesson, PairNetwork, VideoLesson
from training.video.pairs import NumberedPairs, collate_pairs
from training.video.scoring import score_clips
from training.video.stages import plan_stages, what_it_knows

SIZE_HW = (64, 96)
LOAD_S = 120  # for a loaded machine
RECIPES = {name: Recipe(steps=2, batch=2, validate_images=3) for name in ("image", "flow", "video")}


def tiny_edge(**changes: object) -> TemporalModel:
    """The small variant in small, for the street."""
    data = {"size_hw": SIZE_HW, "classes": CLASSES, "category_ids": CATEGORY_IDS}
    narrow = {"encoder": (8, 8, 16, 16), "flow_hidden": 8, "correction": (16, 1), "detail": 8}
    narrow["backbone_args"] = (("channels", (16, 16, 24, 32)),)
    spec = shrunk(model_variant("yolact_edge").spec, **data | narrow | changes)
    model = build_model("yolact_edge", spec)
    assert isinstance(model, TemporalModel)
    return model


def clips(kind: str = "fast", *, num_frames: int = 6) -> StreetClips:
    return StreetClips("train", 2, kind=kind, num_frames=num_frames, size_hw=(96, 144))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """The direct children of which some tensor has changed."""
    after = model.state_dict()
    return {k.split(".")[0] for k, v in before.items() if not torch.equal(v, after[k])}


@pytest.mark.parametrize("lesson", [FlowLesson, VideoLesson])
def test_only_what_is_for_video_learns_and_the_trunk_keeps_its_statistics(lesson, tmp_path: Path):
    model = tiny_edge()
    before = weights(model)
    options = RunOptions(name="yolact_edge", out=tmp_path, precision="no", workers=0)
    recipe = Recipe(steps=2, batch=2, lr=1e-2, warm_up=1, validate_every=9)
    taught = lesson(model.task, clips(), None)
    assert Trainer(model, recipe, None, None, options, {}, taught).run()
    assert moved(model, before) == set(model.video_modules)
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert len(history) == 2
    assert "flow" in history[0]


def test_few_steps_on_one_batch_find_its_flow():
    torch.manual_seed(0)
    model = tiny_edge()
    lesson = FlowLesson(model.task, clips(), None)
    pairs = NumberedPairs(lesson.train, SIZE_HW, Augment.none(), seed=0)
    images, targets = collate_pairs([pairs[number] for number in range(3)], model.task)
    network = lesson.network(model)
    lesson.begin(model)
    optimizer = torch.optim.AdamW(lesson.learning(model), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = lesson.loss(model, network(model.prepare(images)), targets)["flow"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_key_frames_teach_what_they_leave_behind():
    model = tiny_edge()
    lesson = FlowLesson(model.task, clips(), None)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in lesson.learning(model):
        parameter.requires_grad_(True)
    lesson.begin(model)
    images = torch.randn(4, 3, *SIZE_HW)
    later_alone, both = [], []
    for found, is_cut in ((later_alone, True), (both, False)):
        _, state = model.key(images[:2])
        state = {k: v.detach() for k, v in state.items()} if is_cut else state
        model.nonkey_raw(images[2:], state).flows[-1].square().sum().backward()
        found += [p.grad.clone() for p in lesson.learning(model) if p.grad is not None]
        model.zero_grad()
    assert any(not torch.allclose(a, b) for a, b in zip(later_alone, both, strict=True))


def test_flow_is_scored_in_pixels_against_standing_still():
    model = lively(tiny_edge())
    scores = FlowLesson(model.task, clips(), clips()).evaluate(model, 3)
    assert 0 <= scores["flow_inliers"] <= 1
    with torch.no_grad():  # a flow of 0 is off by the true one's length
        for parameter in model.video.flow.parameters():
            parameter.zero_()
    model.video.flow.reach = 0
    still = FlowLesson(model.task, clips(), clips()).evaluate(model, 3)
    assert still["flow_error_px"] == pytest.approx(still["flow_length_px"], rel=1e-3)
    assert still["flow_length_px"] > 1


def plan(model: TemporalModel, data: str, init: Path | None = None) -> list[str]:
    stages = plan_stages(model, RECIPES, data, None, None, init)
    return [stage.lesson.name for stage in stages]


def test_stages_begin_where_the_checkpoint_ends(tmp_path: Path):
    model = tiny_edge()
    release = {"training": {}, "scores": {}}
    save_release(tmp_path / "whole.safetensors", "yolact_edge", model, **release)
    image = build_model("yolact", shrunk(model_variant("yolact").spec, **image_fields(model)))
    save_release(tmp_path / "image.safetensors", "yolact", image, **release)
    assert plan(model, "street") == ["image", "flow", "video"]
    assert plan(model, "street", tmp_path / "image.safetensors") == ["flow", "video"]
    assert plan(model, "street", tmp_path / "whole.safetensors") == ["video"]
    other = tiny_edge(num_prototypes=6)
    assert what_it_knows(other, tmp_path / "image.safetensors") == (False, False)


def image_fields(model: TemporalModel) -> dict[str, object]:
    return {
        name: getattr(model.spec, name) for name in ("classes", "category_ids", "backbone_args")
    }


def test_data_without_video_teach_images_alone_and_say_so(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = tiny_edge()
    still = write_video(tmp_path, is_video=False)
    assert plan(model, str(still)) == ["image"]
    assert "video_id" in capsys.readouterr().out
    save_release(tmp_path / "a.safetensors", "yolact_edge", model, training={}, scores={})
    with pytest.raises(DataError, match="video_id"):
        plan(model, str(still), tmp_path / "a.safetensors")


def test_model_of_images_has_one_stage():
    model = build_model("yolact", shrunk(model_variant("yolact").spec))
    assert plan(model, "street") == ["image"]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video"))


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    options = {
        "--model": "yolact_edge", "--data": data, "--out": out, "--size": "96x64",
        "--steps": 4, "--batch": 2, "--init": "scratch", "--workers": 0, "--precision": "fp32",
    }  # fmt: skip
    return [str(part) for pair in options.items() for part in pair] + list(more)


def test_one_command_runs_the_stages_and_resume_goes_on_in_the_one_that_was_left(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:  # Ctrl-C before the second stage
        patch.setattr(VideoLesson, "begin", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call("training.train", *arguments(video, out)).returncode == 130
    image = (out / "image" / "last.safetensors").read_bytes()
    assert not (out / "best.safetensors").exists()
    refused = call("training.train", *arguments(video, out))
    assert refused.returncode == 2
    assert "already holds a run" in refused.stderr
    done = call("training.train", *arguments(video, out, "--resume"))
    assert done.returncode == 0, done.stderr
    assert (out / "image" / "last.safetensors").read_bytes() == image  # was not run again
    best = (out / "best.safetensors").read_bytes()
    assert best == (out / "video" / "best.safetensors").read_bytes()
    model, header = load_release(out / "best.safetensors", "yolact_edge")
    assert "mask_AP" in header["scores"]
    trunk = load_release(out / "image" / "best.safetensors")[0].state_dict()
    own = model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in trunk.items() if not k.startswith("video"))


def test_processes_that_load_pairs_start_where_opencv_has_run_on_threads(video: Path):
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 0)  # starts them
        lesson = VideoLesson("instance", open_clips(video, "train"), None)
        pairs = NumberedPairs(lesson.train, SIZE_HW, Augment.none(), seed=0)
        batches = NumberedBatches(0, 1, 2, 0, 1)
        feed = make_feed(pairs, batches, collate=lesson.collate, workers=1)
        feed.timeout = LOAD_S
        images, _ = next(iter(feed))
        assert images.shape == (4, *SIZE_HW, 3)
    finally:
        cv2.setNumThreads(threads)


def test_state_of_another_stage_is_refused(tmp_path: Path):
    model = tiny_edge()
    options = RunOptions(name="yolact_edge", out=tmp_path, precision="no", workers=0)
    recipe = Recipe(steps=1, batch=1, warm_up=1)
    first = Trainer(model, recipe, None, None, options, {}, FlowLesson(model.task, clips(), None))
    assert first.run()
    other = Trainer(model, recipe, None, None, options, {}, VideoLesson(model.task, clips(), None))
    with pytest.raises(CheckpointError, match="the stage 'flow'.*expected 'video'"):
        other.resume()


def test_every_frame_a_key_frame_scores_as_images_do():
    model = lively(tiny_edge())
    frames = [clips(num_frames=3)[i].frame(k) for i in range(2) for k in range(3)]
    expected = instance.evaluate(model, frames, CATEGORY_IDS)
    whole = [clips(num_frames=3)[i] for i in range(2)]
    keys = score_clips(model, whole, CATEGORY_IDS, interval=5, mode="keys")
    every = score_clips(model, whole, CATEGORY_IDS, interval=1)
    for name in ("mask_AP", "AP"):
        assert keys.scores[name] == pytest.approx(expected[name], abs=1e-6)
        assert every.scores[name] == pytest.approx(expected[name], abs=1e-6)
    assert list(keys.by_distance) == [0]
    assert keys.num_frames == 6


def test_frames_are_scored_by_their_distance_and_copies_are_told_from_warps():
    model = lively(tiny_edge())
    whole = [clips(num_frames=5)[0]]
    warped = score_clips(model, whole, CATEGORY_IDS, interval=3)
    copied = score_clips(model, whole, CATEGORY_IDS, interval=3, mode="copied")
    assert list(warped.by_distance) == [0, 1, 2]
    assert warped.change_px[0] == 0
    assert warped.change_px[2] > 0
    assert copied.change_px[2] == 0
    assert warped.by_distance[0] == copied.by_distance[0]
    assert model.is_warping
    assert not model.training


SQUARE = np.zeros((30, 40), np.uint8)
SQUARE[10:20, 10:20] = 1


def squares(*lefts: int, label: int = 0, is_crowd: bool = False) -> Sample:
    masks = np.stack([np.roll(SQUARE, left - 10, axis=1) for left in lefts])
    boxes = np.array([(left, 10, left + 10, 20) for left in lefts], np.float32)
    return Sample(
        image=np.zeros((30, 40, 3), np.uint8),
        boxes_xyxy=boxes,
        classes=np.full(len(lefts), label),
        is_crowd=np.full(len(lefts), is_crowd),
        image_id=0,
        file_name="squares",
        masks=masks,
    )


def shifted_flow(dx: float) -> Flow:
    offsets = np.zeros((30, 40, 2), np.float32)
    offsets[..., 0] = dx
    return Flow(offsets, np.ones((30, 40), bool))


def test_mask_carried_along_the_flow_meets_the_one_that_moved():
    later = np.roll(SQUARE, 5, axis=1)
    assert carried_iou(SQUARE, later, shifted_flow(-5)) == 1
    assert carried_iou(SQUARE, later, shifted_flow(0)) == pytest.approx(50 / 150)
    unseen = shifted_flow(0)
    unseen.is_seen[:, :15] = False
    assert carried_iou(SQUARE, later, unseen) == pytest.approx(50 / 100)
    unseen.is_seen[:] = False
    assert np.isnan(carried_iou(SQUARE, later, unseen))


@pytest.mark.parametrize(
    ("masks_at", "classes", "expected"),
    [
        ([10, 25], [0, 0], {7: 0, 8: 1}),
        ([11, 10], [0, 0], {7: 0}),  # taken once, by the first
        ([10], [1], {}),  # of another class
        ([15], [0], {}),  # covers too little
    ],
)
def test_masks_are_matched_to_the_tracks_that_they_cover(masks_at, classes, expected):
    truth = squares(10, 25)
    masks = np.stack([np.roll(SQUARE, left - 10, axis=1) for left in masks_at])
    found = match_tracks(masks, np.array(classes), truth, np.array([7, 8]))
    assert {k: bool((v == masks[expected[k]]).all()) for k, v in found.items()} == dict.fromkeys(
        expected, True
    )


def test_crowds_are_no_tracks():
    assert (
        match_tracks(SQUARE[None], np.array([0]), squares(10, is_crowd=True), np.array([7])) == {}
    )


def test_consistency_counts_tracks_that_are_lost_and_starts_anew_with_a_clip():
    steady = Consistency()
    nothing = np.zeros((0, 30, 40), np.uint8), np.zeros(0, np.int64)
    one = SQUARE[None], np.array([0])
    steady.begin_clip()
    steady.add(*one, squares(10), np.array([7]), None)
    steady.add(*one, squares(10), np.array([7]), shifted_flow(0))
    steady.add(*nothing, squares(10), np.array([7]), shifted_flow(0))
    steady.begin_clip()
    steady.add(*one, squares(10), np.array([7]), None)
    assert steady.scores() == {"mask_consistency": 1.0, "tracks_kept": 0.5}
    empty = Consistency().scores()
    assert all(np.isnan(value) for value in empty.values())


def test_score_script_prints_each_way_and_writes_it(video: Path, tmp_path: Path):
    square = {"classes": ("square",), "category_ids": (3,), "size_hw": SIZE_HW}
    model = tiny_edge()
    model = build_model("yolact_edge", dataclasses.replace(model.spec, **square))
    path = tmp_path / "a.safetensors"
    save_release(path, "yolact_edge", model, training={}, scores={"AP": 0.5})
    command = ("training.score_video", "--checkpoint", path, "--data", video, "--interval", "2")
    done = call(*command, "--out", tmp_path / "scores.json", "--record")
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("warped", "copied", "keys", "7 frames"))
    rows = json.loads((tmp_path / "scores.json").read_text())["kinds"]["video"]
    assert set(rows["warped"]["by_distance"]) == {"0", "1"}
    assert rows["warped"]["scores"]["mask_consistency"] is None  # no flow in files
    header = load_release(path)[1]
    assert header["scores"]["AP"] == 0.5
    assert "video/copied/mask_AP" in header["scores"]


def test_score_script_refuses_models_of_images_and_other_classes(video: Path, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_release(path, "yolact_edge", tiny_edge(), training={}, scores={})
    done = call("training.score_video", "--checkpoint", path, "--data", video)
    assert done.returncode == 2
    assert "has the classes square" in done.stderr
    image = build_model("yolact", shrunk(model_variant("yolact").spec))
    save_release(path, "yolact", image, training={}, scores={})
    done = call("training.score_video", "--checkpoint", path)
    assert done.returncode == 2
    assert "training/score.py" in done.stderr


def test_clips_of_files_teach_without_flow(video: Path):
    source = open_clips(video, "train")
    model = build_model(
        "yolact_edge", dataclasses.replace(tiny_edge().spec, classes=("square",), category_ids=(3,))
    )
    lesson = VideoLesson(model.task, source, None)
    pairs = NumberedPairs(source, SIZE_HW, Augment.none(), seed=0)
    images, targets = collate_pairs([pairs[0], pairs[1]], model.task)
    losses = lesson.loss(model, PairNetwork(model)(model.prepare(images)), targets)
    assert "flow" not in losses
    assert torch.isfinite(sum(losses.values()))
