"""A run that is killed and resumed sees the same samples and takes the same steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 115
SAVE_EVERY = 50
SAME_LOSS = 1e-4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of 24 pictures of coloured discs."""
    root = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 4)):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            picture = rng.integers(0, 60, (96, 128, 3), np.uint8)
            for _ in range(3):
                x, y, r = (int(v) for v in rng.integers((20, 20, 6), (108, 76, 18)))
                kind = int(rng.integers(2))
                cv2.circle(picture, (x, y), r, (40, 220, 40) if kind else (220, 40, 220), -1)
                box = [x - r, y - r, 2 * r, 2 * r]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 3 + 4 * kind,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
            name = f"{number}.png"
            cv2.imwrite(str(root / split / name), picture)
            images.append({"id": number, "file_name": name, "height": 96, "width": 128})
        categories = [{"id": 3, "name": "pink"}, {"id": 7, "name": "green"}]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(document))
    return root


def command(data: Path, out: Path, *more: str) -> list[str]:
    options = {
        "--model": "retinanet", "--data": str(data), "--out": str(out), "--size": "128x96",
        "--steps": str(STEPS), "--batch": "2", "--init": "scratch", "--workers": "1",
        "--save-every": str(SAVE_EVERY),
    }  # fmt: skip
    flat = [part for pair in options.items() for part in pair]
    return [sys.executable, str(ROOT / "training" / "train.py"), *flat, *more]


def losses(out: Path) -> dict[int, float]:
    path = out / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: row["loss"] for row in rows}


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(command(data, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_resumed_run_takes_the_steps_of_the_uninterrupted_one_after_a_kill(
    data: Path, whole: Path, tmp_path: Path
):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(data, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "last.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # some steps past the saved state
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (out / "last.safetensors").exists()
    assert not (out / "best.safetensors").exists(), "killed too late to prove anything"

    done = subprocess.run(command(data, out, "--resume"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, found = losses(whole), losses(out)
    for step in range(SAVE_EVERY + 1, SAVE_EVERY + 51):
        assert abs(found[step] - expected[step]) <= SAME_LOSS, f"step {step}"


def test_run_that_is_asked_to_stop_saves_and_says_how_to_continue(data: Path, tmp_path: Path):
    out = tmp_path / "run"
    process = subprocess.Popen(command(data, out), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "history.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in printed
    assert (out / "last.safetensors").exists()


def test_second_run_in_the_same_folder_is_refused_and_changes_nothing(data: Path, whole: Path):
    before = (whole / "last.safetensors").read_bytes()
    done = subprocess.run(command(data, whole), capture_output=True, text=True)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert (whole / "last.safetensors").read_bytes() == before


def test_resume_with_other_options_is_refused(data: Path, whole: Path):
    done = subprocess.run(
        [*command(data, whole, "--resume"), "--seed", "5"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Repeat its options" in done.stderr


def test_trained_checkpoint_keeps_the_category_ids_of_the_data_set(whole: Path):
    from training.loop.checkpoint import load_release

    model, header = load_release(whole / "best.safetensors", "retinanet")
    assert model.spec.category_ids == (3, 7)
    assert header["training"]["steps"] == STEPS
