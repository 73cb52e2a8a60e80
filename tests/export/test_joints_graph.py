"""Graphs of tasks with joints: exported, proven against PyTorch, and run by the runtime."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from calling import call
from tiny_joints import JOINTS, TinyCrops, TinyPoses, tiny_crops, tiny_poses
from tiny_models import frames_of

from export.bundling import ExportOptions, describe, torch_results
from export.graph.batch_norm import fold_batch_norms
from export.graph.end_to_end import trace
from export.graph.lint import lint
from export.graph.operators import attach_functions
from export.precision.writing import name_files, write_files
from export.proof.probes import probe_batches, probe_manifest, probe_thresholds
from runtime.contract.bundle import Bundle
from runtime.contract.joint_matching import joint_distances, similarity
from runtime.contract.limits import judge, limits_of
from runtime.contract.manifest import MANIFEST_NAME, Manifest
from runtime.contract.matching import Comparison, compare_detections
from runtime.predictor import load
from runtime.sessions import open_session
from training.models.base import Model

JOINT_PX = 0.01  # float32 sums in another order
MAKERS = {"keypoints": tiny_poses, "pose_crop": tiny_crops}
every_task = pytest.mark.parametrize("task", MAKERS)


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {task: make() for task, make in MAKERS.items()}


@pytest.fixture(scope="module")
def traces(models: dict[str, Model]) -> dict[str, onnx.ModelProto]:
    graphs = {task: trace(model) for task, model in models.items()}
    for graph in graphs.values():
        fold_batch_norms(graph)
    return graphs


@pytest.fixture(scope="module")
def bundles(models, traces, tmp_path_factory) -> dict[str, Path]:
    return {
        task: write_joints_bundle(tmp_path_factory.mktemp(task), model, traces[task])
        for task, model in models.items()
    }


def write_joints_bundle(folder: Path, model: Model, base: onnx.ModelProto) -> Path:
    origin = folder / "model.safetensors"
    origin.write_bytes(b"weights")
    options = ExportOptions(
        model="tiny", variant=None, checkpoint=origin, size_hw=None, out=folder,
        precisions=("fp32", "fp16"),
    )  # fmt: skip
    header = {"training": {"data": "noise"}, "scores": {}}
    files = name_files("model", options.precisions)
    manifest = describe(model, options, header, origin, {"model": files})
    graph = write_files(base, "model", manifest, folder)
    text = dataclasses.replace(manifest, graphs={"model": graph}).to_json()
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
    return folder


def feeds_of(model: Model, batch: int) -> dict[str, np.ndarray]:
    feeds = {"image": frames_of(batch, model.spec.size_hw, seed=5).numpy()}
    if model.task == "keypoints":
        scores = np.full((batch, 1), model.spec.score_threshold, np.float32)
        feeds |= {"score_threshold": scores, "iou_threshold": np.full(batch, 0.5, np.float32)}
    return feeds


@every_task
@pytest.mark.parametrize("kind", ["portable", "plugin"])
def test_graph_keeps_the_lint_s_rules_and_gives_what_torch_gives(task, kind, models, traces):
    model = models[task]
    is_plugin = kind == "plugin"
    graph = attach_functions(traces[task], early_exit=not is_plugin, inline=not is_plugin)
    assert lint(graph, target=kind) == []
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    for batch in (1, 3):
        feeds = feeds_of(model, batch)
        found = dict(zip(names, session.run(None, feeds), strict=True))
        comparison = Comparison(sigmas=model.spec.sigmas)
        compare_detections(torch_results(model, feeds), found, feeds, comparison)
        assert comparison.num_matched >= batch
        assert comparison.unmatched == []
        assert len(comparison.joint_errors) > batch
        assert max(comparison.joint_errors) <= JOINT_PX
        assert min(comparison.similarities) >= 0.9999


def test_padding_has_no_joints(models):
    model = models["keypoints"]
    found = torch_results(model, feeds_of(model, 1))
    count = int(found["num_detections"][0])
    assert 0 < count < model.spec.max_detections
    assert found["keypoints_xyc"].shape == (1, model.spec.max_detections, len(JOINTS), 3)
    assert found["keypoints_xyc"][0, :count].any(axis=(1, 2)).all()
    assert not found["keypoints_xyc"][0, count:].any()


def test_only_rows_that_are_kept_have_their_joints_decoded(models, monkeypatch):
    asked = []
    plain = TinyPoses.candidates

    def candidates(self, raw):
        found = plain(self, raw)

        def decode(rows):
            asked.append(rows.shape)
            return found.decode_keypoints(rows)

        return found._replace(decode_keypoints=decode)

    monkeypatch.setattr(TinyPoses, "candidates", candidates)
    torch_results(models["keypoints"], feeds_of(models["keypoints"], 1))
    assert asked == [(1, models["keypoints"].spec.max_detections)]


@every_task
def test_manifest_says_what_the_joints_are(task, models, bundles):
    manifest = Manifest.from_file(bundles[task] / MANIFEST_NAME)
    assert manifest.joints is not None
    assert manifest.joints.names == JOINTS
    assert manifest.sigmas == models[task].spec.sigmas
    assert manifest.crop_margin == (1.25 if task == "pose_crop" else 0.0)
    assert probe_manifest(manifest, models[task].spec) == []
    renamed = dataclasses.replace(
        manifest, joints=dataclasses.replace(manifest.joints, names=JOINTS[::-1])
    )
    assert "joints" in probe_manifest(renamed, models[task].spec)[0]


@every_task
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_backend_agrees_with_torch(task, backend, models, bundles):
    model = models[task]
    bundle = Bundle.open(bundles[task])
    for precision in bundle.manifest.precisions:
        session = open_session(bundle, backend, precision)
        comparison = Comparison(sigmas=bundle.manifest.sigmas)
        for seed in range(3):
            feeds = feeds_of(model, 1)
            feeds["image"] = frames_of(1, model.spec.size_hw, seed).numpy()
            compare_detections(torch_results(model, feeds), session.run(feeds), feeds, comparison)
        limits = limits_of(precision)
        assert judge(comparison.summary(limits.near), limits) == []
        limits_fed = {k: v for k, v in feeds_of(model, 4).items() if k != "image"}
        frames = feeds_of(model, 4)["image"]
        assert probe_thresholds(session, bundle.manifest, frames, limits_fed) == []
        assert probe_batches(session, bundle.manifest, feeds_of(model, 4)) == []
        session.close()


@every_task
def test_batch_probe_finds_joints_of_another_frame(task, models, bundles):
    class Swapped:
        """Gives every frame of a batch the first one's joints."""

        def __init__(self, session) -> None:
            self._session = session

        def run(self, feeds, graph="model"):
            found = dict(self._session.run(feeds, graph))
            found["keypoints_xyc"] = np.repeat(
                found["keypoints_xyc"][:1], len(feeds["image"]), axis=0
            )
            return found

    bundle = Bundle.open(bundles[task])
    session = open_session(bundle, "onnxruntime", "fp32")
    reasons = probe_batches(Swapped(session), bundle.manifest, feeds_of(models[task], 4))
    assert reasons
    assert "batch of 4" in reasons[0]


def test_parity_of_moved_joints_is_refused(models):
    model = models["pose_crop"]
    feeds = feeds_of(model, 2)
    ours = torch_results(model, feeds)
    for shift, is_fine in ((0.05, True), (0.3, False), (np.nan, False)):
        theirs = {"keypoints_xyc": ours["keypoints_xyc"] + np.float32([shift, 0, 0])}
        comparison = Comparison(sigmas=model.spec.sigmas)
        compare_detections(ours, theirs, feeds, comparison)
        limits = limits_of("fp32")
        reasons = judge(comparison.summary(limits.near), limits)
        assert (reasons == []) is is_fine, (shift, reasons)


def test_similarity_is_coco_s():
    from training.metrics.keypoints import object_similarity

    rng = np.random.default_rng(0)
    ours, theirs = rng.uniform(0, 20, (2, 4, 3))
    ours[:, 2] = (0.05, 0.5, 0.9, 0.3)  # the first is not told
    sigmas = (0.03, 0.06, 0.06, 0.09)
    true = np.column_stack([ours[:, :2], 2.0 * (ours[:, 2] > 0.1)])
    expected = object_similarity(theirs, true, 300.0, sigmas)
    assert similarity(ours, theirs, 300.0, sigmas) == pytest.approx(expected, abs=1e-9)
    assert len(joint_distances(ours, theirs)) == 3
    assert similarity(ours[:1], theirs[:1], 300.0) == 1.0


@every_task
def test_predictor_gives_joints_of_the_source_frame(task, models, bundles):
    model = models[task]
    height, width = model.spec.size_hw
    frame = frames_of(1, (2 * height, 3 * width), seed=3).numpy()[0]
    with load(bundles[task], "onnxruntime", "fp32") as predictor:
        result = predictor(frame)
        letterboxed = np.full((height, width, 3), 114, np.uint8)
        from runtime.preprocess import Letterbox

        fit = Letterbox.fit(frame.shape[:2], predictor.manifest.geometry)
        fit.apply(frame, letterboxed)
    feeds = feeds_of(model, 1) | {"image": letterboxed[None]}
    expected = torch_results(model, feeds)["keypoints_xyc"][0]
    expected = expected[: len(result)] if task == "keypoints" else expected[None]
    points = fit.points_to_source(expected[..., :2])
    assert len(result)
    np.testing.assert_allclose(result.keypoints_xyc[..., :2], points, atol=0.05)
    assert result.joints.names == JOINTS
    drawn = predictor.draw(frame.copy(), result)
    assert (drawn != frame).any()


def test_crops_take_no_thresholds(bundles):
    predictor = load(bundles["pose_crop"], "onnxruntime", "fp32")
    with predictor, pytest.raises(ValueError, match="takes none"):
        predictor(np.zeros((48, 32, 3), np.uint8), 0.5)


def test_video_runs_with_a_pose_bundle_smoothed_and_one_more(bundles, tmp_path):
    frames = frames_of(3, (96, 128), seed=2).numpy()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"{number}.png"), frame)
    out = tmp_path / "found.jsonl"
    options = ("--source", tmp_path, "--backend", "onnxruntime", "--precision", "fp32")
    people, pose = bundles["keypoints"], bundles["pose_crop"]
    extra = ("--pose", pose, "--smooth", "--also", people, "--json", out)
    done = call("runtime.run_video", people, *options, *extra)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line["detections"]
        assert [*line["detections"][0]["keypoints"]] == [*JOINTS]
        assert line["also"][people.name]["detections"]
    wrong = call("runtime.run_video", pose, *options, "--pose", people)
    assert wrong.returncode == 2
    assert "expected 'pose_crop'" in wrong.stderr


def test_images_give_coco_keypoint_results(bundles, tmp_path):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), frames_of(1, (96, 128), seed=2).numpy()[0])
    out = tmp_path / "results.json"
    images = (tmp_path / "in", "--out", out, "--annotated", tmp_path / "drawn")
    done = call("runtime.run_images", bundles["keypoints"], *images, "--backend", "onnxruntime")
    assert done.returncode == 0, done.stderr
    entries = json.loads(out.read_text())
    assert entries
    assert {len(entry["keypoints"]) for entry in entries} == {3 * len(JOINTS)}
    assert (tmp_path / "drawn" / "a.png").is_file()


def test_tiny_models_are_what_they_say():
    assert isinstance(tiny_crops().candidates(torch.zeros(1, 12, 3, 3)), torch.Tensor)
    assert TinyCrops.task == "pose_crop"
