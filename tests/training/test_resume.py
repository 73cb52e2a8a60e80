"""A run that is killed and resumed sees the same samples and takes the same steps.

One run is killed in a process of its own; the others go through the script's main in this process,
with another number of workers, which must not matter.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from calling import Done, call

ROOT = Path(__file__).resolve().parents[2]
SAVE_EVERY = 25
STEPS = SAVE_EVERY + 50
SAME_LOSS = 1e-4
WAIT_S = 180  # for a loaded machine


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums in the same order in this process and in the one that is killed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arguments(data: Path, out: Path, *, workers: int = 0) -> list[str]:
    options = {
        "--model": "retinanet", "--data": data, "--out": out, "--size": "128x96",
        "--steps": STEPS, "--batch": 2, "--init": "scratch", "--workers": workers,
        "--save-every": SAVE_EVERY,
    }  # fmt: skip
    return [str(part) for pair in options.items() for part in pair]


def losses(out: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


@pytest.fixture(scope="module")
def whole(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = call("training.train", *arguments(discs, out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def killed(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a process of its own, killed some steps after it saved its state."""
    out = tmp_path_factory.mktemp("killed") / "run"
    command = [sys.executable, str(ROOT / "training" / "train.py")]
    process = subprocess.Popen(
        [*command, *arguments(discs, out, workers=1)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + WAIT_S
    while not (out / "last.safetensors").exists() and process.poll() is None:
        assert time.monotonic() < deadline, "no state was saved"
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "best.safetensors").exists(), "killed too late to prove anything"
    return out


def test_resumed_run_takes_the_steps_of_the_uninterrupted_one_after_a_kill(
    discs: Path, whole: Path, killed: Path, tmp_path: Path
):
    out = Path(shutil.copytree(killed, tmp_path / "run"))
    done = call("training.train", *arguments(discs, out), "--resume")
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {SAVE_EVERY} of" in done.stdout
    expected, found = losses(whole), losses(out)
    assert sorted(found) == list(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        assert abs(found[step] - expected[step]) <= SAME_LOSS, f"step {step}"


def test_run_that_is_asked_to_stop_saves_and_says_how_to_continue(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, done = tmp_path / "run", interrupted(discs, tmp_path / "run", monkeypatch)
    assert done.returncode == 130
    assert "--resume" in done.stdout
    assert (out / "last.safetensors").exists()
    assert not (out / "best.safetensors").exists()
    assert 0 < len(losses(out)) < STEPS


def interrupted(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Done:
    """A run that gets Ctrl-C while it loads its ninth sample."""
    from training.loop.feed import NumberedSamples

    load = NumberedSamples.__getitem__

    def load_and_stop(self: NumberedSamples, number: int):
        if number == 8:
            signal.raise_signal(signal.SIGINT)
        return load(self, number)

    monkeypatch.setattr(NumberedSamples, "__getitem__", load_and_stop)
    return call("training.train", *arguments(data, out))


def test_second_run_in_the_same_folder_is_refused_and_changes_nothing(discs: Path, whole: Path):
    before = {p: p.read_bytes() for p in whole.iterdir() if p.is_file()}
    done = call("training.train", *arguments(discs, whole))
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert {p: p.read_bytes() for p in whole.iterdir() if p.is_file()} == before


@pytest.mark.parametrize(
    "changed", [("--seed", "5"), ("--batch", "3"), ("--steps", "90"), ("--size", "96x96")], ids=str
)
def test_resume_with_other_options_is_refused_and_changes_nothing(
    discs: Path, whole: Path, changed: tuple[str, str]
):
    before = {p: p.read_bytes() for p in whole.iterdir() if p.is_file()}
    done = call("training.train", *arguments(discs, whole), *changed, "--resume")
    assert done.returncode == 2
    assert "Repeat" in done.stderr
    assert {p: p.read_bytes() for p in whole.iterdir() if p.is_file()} == before


def test_resume_where_no_run_is_gives_one_line(discs: Path, tmp_path: Path):
    done = call("training.train", *arguments(discs, tmp_path / "none"), "--resume")
    assert done.returncode == 2
    assert "there is no checkpoint" in done.stderr
    assert not (tmp_path / "none").exists()


def test_trained_checkpoint_keeps_the_category_ids_of_the_data_set(whole: Path):
    from training.loop.checkpoint import load_release

    model, header = load_release(whole / "best.safetensors", "retinanet")
    assert model.spec.category_ids == (3, 7, 9)
    assert header["training"]["steps"] == STEPS


def test_run_leaves_no_temporary_file(whole: Path):
    assert sorted(p.name for p in whole.iterdir()) == [
        "best.safetensors", "history.jsonl", "last.safetensors", "tensorboard",
    ]  # fmt: skip
