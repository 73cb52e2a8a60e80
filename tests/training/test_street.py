"""The procedural street: as hard as promised, the same every time, and true to its pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.data.sample import Sample, Source
from training.data.street import (
    CLASSES,
    JOINT_FLIP_PAIRS,
    JOINT_NAMES,
    JOINT_SIGMAS,
    JOINT_SKELETON,
    LABELS,
    SEMANTIC_CLASSES,
    Street,
    StreetFrame,
    render,
    render_frame,
    scene,
    write,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "training" / "make_street.py"
NUM_DIFFICULTY = 250
SMALL_PX = 48  # 32 px at network size 512x288, seen in the frame of 768x432
FIRST_THING = SEMANTIC_CLASSES.index("person")


@pytest.fixture(scope="module")
def many() -> list[StreetFrame]:
    source = Street("val", NUM_DIFFICULTY)
    return [source.frame(index) for index in range(len(source))]


@pytest.fixture(scope="module")
def full() -> list[StreetFrame]:
    return [render_frame(seed, 20, labels=LABELS) for seed in range(12)]


def digest(seed: int, index: int) -> str:
    frame = render_frame(seed, index)
    return hashlib.sha256(frame.image.tobytes() + frame.boxes_xyxy.tobytes()).hexdigest()


def forget() -> None:
    scene.build_scene.cache_clear()


def test_street_has_ten_objects_a_frame(many: list[StreetFrame]) -> None:
    assert np.mean([(~frame.is_crowd).sum() for frame in many]) >= 10


def test_street_has_many_small_boxes(many: list[StreetFrame]) -> None:
    boxes = np.concatenate([frame.boxes_xyxy[~frame.is_crowd] for frame in many])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert np.mean(sides < SMALL_PX) >= 0.35
    assert sides.min() >= 9  # nothing is labelled that is too small to be learnt


def test_street_has_many_occluded_objects(many: list[StreetFrame]) -> None:
    seen = np.concatenate([frame.visibility[~frame.is_crowd] for frame in many])
    assert np.mean(seen <= 0.7) >= 0.25
    assert seen.min() >= 0.25


def test_street_has_many_degraded_frames(many: list[StreetFrame]) -> None:
    assert np.mean([frame.is_degraded for frame in many]) >= 0.20


def test_street_shows_every_class_often(many: list[StreetFrame]) -> None:
    classes = np.concatenate([frame.classes[~frame.is_crowd] for frame in many])
    shares = np.bincount(classes, minlength=len(CLASSES)) / len(classes)
    assert shares.min() >= 0.07


def repainted(seed: int, monkeypatch: pytest.MonkeyPatch, **weather: float) -> np.ndarray:
    """The frame of a scene with its weather changed."""
    plan = scene.build_scene(seed)
    changed = dataclasses.replace(plan, weather=dataclasses.replace(plan.weather, **weather))
    with monkeypatch.context() as patch:
        patch.setattr(render, "build_scene", lambda _: changed)
        return render_frame(seed).image


def sharpness(image: np.ndarray) -> float:
    return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.CV_32F).var())


def test_street_flag_of_blur_is_real(monkeypatch: pytest.MonkeyPatch) -> None:
    blurred = list(islice((seed for seed in range(99) if render_frame(seed).is_blurred), 6))
    for seed in blurred:
        plain = repainted(seed, monkeypatch, defocus=0.0, shake=0, noise=0.0, falling=-1)
        faulty = repainted(seed, monkeypatch, noise=0.0, falling=-1)
        assert sharpness(faulty) < 0.6 * sharpness(plain)
    assert len(blurred) == 6


def test_street_flag_of_shadow_is_real(monkeypatch: pytest.MonkeyPatch) -> None:
    shadowed = list(islice((seed for seed in range(99) if render_frame(seed).is_shadowed), 4))
    for seed in shadowed:
        plain = repainted(seed, monkeypatch, house_shadow=0.0)
        lower = slice(plain.shape[0] // 2, None)
        assert render_frame(seed).image[lower].mean() < 0.95 * plain[lower].mean()
    assert len(shadowed) == 4


def test_street_is_the_same_when_rendered_again() -> None:
    first = digest(3, 4)
    digest(4, 0)
    forget()
    assert digest(3, 4) == first


def test_street_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib, sys; from training.data.street import render_frame\n"
        "f = render_frame(5, 9)\n"
        "print(hashlib.sha256(f.image.tobytes() + f.boxes_xyxy.tobytes()).hexdigest())\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest(5, 9)


def test_street_labels_never_change_the_image(full: list[StreetFrame]) -> None:
    for seed in range(3):
        forget()
        bare = render_frame(seed, 20, labels=())
        assert np.array_equal(bare.image, full[seed].image)
        assert np.array_equal(bare.boxes_xyxy, full[seed].boxes_xyxy)
        assert bare.masks is None


def test_street_boxes_are_tight_around_the_masks(full: list[StreetFrame]) -> None:
    for frame in full:
        for mask, box in zip(frame.masks, frame.boxes_xyxy, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert box.tolist() == tight


def test_street_masks_do_not_overlap(full: list[StreetFrame]) -> None:
    for frame in full:
        assert frame.masks.sum(axis=0).max() <= 1


def test_street_visible_boxes_lie_in_amodal_boxes(full: list[StreetFrame]) -> None:
    for frame in full:
        assert (frame.boxes_xyxy[:, :2] >= frame.amodal_xyxy[:, :2]).all()
        assert (frame.boxes_xyxy[:, 2:] <= frame.amodal_xyxy[:, 2:]).all()


def test_street_joints_lie_in_their_person(full: list[StreetFrame]) -> None:
    num_seen = 0
    for frame in full:
        joints = np.concatenate([frame.keypoints_xyv, frame.landmarks_xyv], axis=1)
        for row, kind in enumerate(frame.classes):
            if kind != 0:
                assert not joints[row].any()
                continue
            x1, y1, x2, y2 = frame.amodal_xyxy[row]
            near = cv2.dilate(frame.masks[row], np.ones((5, 5), np.uint8))
            for x, y, v in joints[row]:
                if v > 0:
                    assert x1 - 2 <= x <= x2 + 2
                    assert y1 - 2 <= y <= y2 + 2
                if v == 2:
                    assert near[int(y), int(x)]
                    num_seen += 1
    assert num_seen > 200


def test_street_semantic_and_panoptic_agree_with_the_masks(full: list[StreetFrame]) -> None:
    for frame in full:
        assert frame.semantic.max() < len(SEMANTIC_CLASSES)
        assert np.array_equal(frame.panoptic // 10_000, frame.semantic)
        for row, mask in enumerate(frame.masks):
            inside = mask > 0
            assert (frame.semantic[inside] == FIRST_THING + frame.classes[row]).all()
            assert (frame.panoptic[inside] % 10_000 == frame.track_ids[row]).all()


def test_street_depth_falls_towards_the_viewer(full: list[StreetFrame]) -> None:
    for frame in full:
        assert frame.depth.dtype == np.float32
        assert np.isfinite(frame.depth).all()
        assert (frame.depth[frame.semantic == 0] == 1000).all()
        road = frame.semantic == SEMANTIC_CLASSES.index("road")
        rows = [frame.depth[y][road[y]].mean() for y in range(len(road)) if road[y].any()]
        assert (np.diff(rows) <= 1e-3).all()


def test_street_flow_explains_the_next_frame() -> None:
    plain, warped = [], []
    for seed in (1, 2, 5, 8, 11, 14):
        here = render_frame(seed, 10, labels=("flow",))
        there = cv2.GaussianBlur(render_frame(seed, 11).image, (0, 0), 1.0)
        height, width = here.image.shape[:2]
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
        target = (grid + here.flow).astype(np.float32)
        moved = cv2.remap(there, target, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        image = cv2.GaussianBlur(here.image, (0, 0), 1.0).astype(np.float32)
        inner = (slice(20, -20), slice(20, -20))
        plain.append(np.abs(image - there)[inner].mean())
        warped.append(np.abs(image - moved)[inner].mean())
    assert np.mean(warped) < 0.75 * np.mean(plain)


def test_street_tracks_stay_with_their_objects() -> None:
    num_followed = 0
    for seed in range(6):
        here, there = render_frame(seed, 30), render_frame(seed, 31)
        assert len(set(here.track_ids.tolist())) == len(here.track_ids)
        later = dict(zip(there.track_ids.tolist(), range(len(there.track_ids)), strict=True))
        for row, track in enumerate(here.track_ids.tolist()):
            if track in later and min(here.visibility[row], there.visibility[later[track]]) > 0.8:
                assert here.classes[row] == there.classes[later[track]]
                middles = [f.amodal_xyxy[r].reshape(2, 2).mean(axis=0)
                           for f, r in ((here, row), (there, later[track]))]  # fmt: skip
                assert np.abs(middles[0] - middles[1]).max() < 40
                num_followed += 1
    assert num_followed > 30


def test_street_is_a_source_of_samples() -> None:
    source = Street("train", labels=("masks", "keypoints"))
    assert isinstance(source, Source)
    assert len(source) == 20_000
    sample = source[7]
    assert isinstance(sample, Sample)
    sample.check()
    assert sample.masks is not None
    assert sample.keypoints_xyv.shape[1:] == (17, 3)
    assert Street("val", 3)[0].masks is None
    with pytest.raises(IndexError):
        Street("val", 3)[3]


def test_street_splits_share_no_scene() -> None:
    seeds = [
        {source.scene_of(index)[0] for index in (0, 1, len(source) - 1)}
        for source in (Street(split, 1_000_000) for split in ("train", "val", "test"))
    ]
    assert max(seeds[0]) < min(seeds[1])
    assert max(seeds[1]) < min(seeds[2])


@pytest.mark.parametrize("size_hw", [(64, 64), (288, 512), (720, 1280)], ids=str)
def test_street_renders_at_other_sizes(size_hw: tuple[int, int]) -> None:
    frame = render_frame(4, 2, size_hw=size_hw, labels=LABELS)
    assert frame.image.shape == (*size_hw, 3)
    assert frame.flow.shape == (*size_hw, 2)
    assert frame.masks.shape[1:] == size_hw
    if len(frame.boxes_xyxy):
        assert (frame.boxes_xyxy[:, 2:].max(axis=0) <= size_hw[::-1]).all()


def test_street_joint_tables_fit_together() -> None:
    assert len(JOINT_NAMES) == len(JOINT_SIGMAS) == 17
    assert max(max(pair) for pair in JOINT_SKELETON) == 16
    for left, right in JOINT_FLIP_PAIRS:
        assert JOINT_NAMES[left].replace("left", "right") == JOINT_NAMES[right]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Street("validation"), "train, val, test"),
        (lambda: Street("val", 0), "1 to"),
        (lambda: render_frame(-1), "0 or more"),
        (lambda: render_frame(0, labels=("box",)), "expected some of boxes"),
        (lambda: render_frame(0, size_hw=(10, 10)), "64 to"),
    ],
    ids=["split", "length", "seed", "label", "size"],
)
def test_street_error_says_what_was_expected(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_street_coco_file_round_trips(tmp_path: Path) -> None:
    path = write.write_coco("val", 3, tmp_path / "coco", image_format="png")
    document = json.loads(path.read_text())
    source = Street("val", 3, labels=("masks", "keypoints"))
    assert [row["name"] for row in document["categories"]] == list(CLASSES)
    assert [row["id"] for row in document["categories"]] == list(source.category_ids)
    for image in document["images"]:
        frame = source.frame(image["id"])
        picture = cv2.imread(str(path.parent / "images" / image["file_name"]))
        assert np.array_equal(picture, frame.image)
        rows = [row for row in document["annotations"] if row["image_id"] == image["id"]]
        assert [row["category_id"] - 1 for row in rows] == frame.classes.tolist()
        assert [bool(row["iscrowd"]) for row in rows] == frame.is_crowd.tolist()
        for row, mask, box in zip(rows, frame.masks, frame.boxes_xyxy, strict=True):
            counts = row["segmentation"]["counts"]
            values = np.repeat(np.arange(len(counts)) % 2, counts)
            assert np.array_equal(values.reshape(mask.shape[::-1]).T, mask)
            assert row["area"] == mask.sum()
            x, y, w, h = row["bbox"]
            assert [x, y, x + w, y + h] == box.tolist()
    assert len({row["id"] for row in document["annotations"]}) == len(document["annotations"])


def test_street_coco_folder_is_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(write, "_write_image", fail)
    with pytest.raises(OSError, match="no space"):
        write.write_coco("val", 1, tmp_path / "coco")
    assert not list(tmp_path.iterdir())


def test_street_clip_has_its_frames(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV writes clips")
    path = write.write_clip(7, 5, tmp_path / "clip.mp4", 10)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert len(frames) == 5
    assert np.abs(frames[2].astype(float) - render_frame(7, 2).image).mean() < 12
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_street_clip_can_be_a_folder_of_pictures(tmp_path: Path) -> None:
    path = write.write_clip(7, 2, tmp_path / "clip")
    assert sorted(entry.name for entry in path.iterdir()) == ["000000.png", "000001.png"]
    assert np.array_equal(cv2.imread(str(path / "000001.png")), render_frame(7, 1).image)


def run_script(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False
    )


def test_make_street_writes_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "street"
    done = run_script("--split", "val", "--num-images", "2", "--size", "512x288", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert len(json.loads((out / "annotations.json").read_text())["images"]) == 2
    assert len(list((out / "images").iterdir())) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--split", "vall"),
        ("--split", "val", "--num-images", "0"),
        (),
        ("--split", "val", "--clip-seed", "3"),
        ("--clip-seed", "-3"),
        ("--clip-seed", "3", "--size", "big"),
    ],
    ids=["split", "number", "neither", "both", "seed", "size"],
)
def test_make_street_ends_on_one_line_when_input_is_bad(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    done = run_script(*words, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "expected" in done.stderr
    assert not list(tmp_path.iterdir())


def test_make_street_leaves_an_existing_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    done = run_script("--split", "val", "--num-images", "1", "--out", str(tmp_path))
    assert done.returncode == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.txt"]
