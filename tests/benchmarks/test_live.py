"""The live pipeline's proofs, in a short form; how fast this machine is does not matter here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from calling import call

from benchmarks.measure.live_runs import run_overhead, run_stalls
from benchmarks.measure.synthetic_source import SyntheticSource
from runtime.pipeline.sources.base import NoFrameYet, SourceState

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "delivered + dropped = captured"


def test_soak_holds_memory_descriptors_and_threads(tmp_path):
    """In a process of its own: this one's memory is that of all tests before."""
    out = tmp_path / "soak.json"
    command = ["benchmarks/live.py", "soak", "--frames", "4000", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert record["passes"] == dict.fromkeys(record["passes"], True)
    assert len(record["descriptors"]) == len(record["threads"]) == 1
    assert sum(source["delivered"] for source in record["sources"]) == 4000
    assert record["command"] == f"python {' '.join(command)}"


def test_age_accounts_for_every_frame_and_leaves_a_record(tmp_path):
    out = tmp_path / "age.json"
    done = call("benchmarks.live", "age", "--seconds", 2, "--out", out)
    record = json.loads(out.read_text())
    assert done.returncode == (0 if record["verdict"] == "pass" else 1)
    assert record["passes"][ACCOUNT]
    assert record["passes"]["in order"]
    assert record["source"]["captured"] == 60  # 30 a second, dropped ones included
    assert 0 < record["source"]["delivered"] < 25  # 10 engine calls a second at most
    assert record["source"]["dropped"]["replaced"] > 30


def test_stalls_account_for_every_frame():
    found = run_stalls(seconds=6.0, num_sources=3, engine_ms=5.0)
    assert found["passes"][ACCOUNT]
    assert found["frames_not_captured_in_stalls"] == 10  # of the sixth second
    assert [source["captured"] for source in found["sources"]] == [50, 60, 60]


def test_overhead_is_measured_with_and_without_encoding():
    found = run_overhead(num_frames=20, engine_ms=2.0, size_wh=(64, 48))
    for run in found["runs"].values():
        assert run["frames"] > 0
        assert run["period_ms"] > run["engine_ms"] >= 2.0
        assert run["period_over_engine"] == pytest.approx(
            run["period_ms"] / run["engine_ms"], rel=1e-3
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("soak", "--frames", "100"), "expected 2200 or more"),
        (("age", "--seconds", "0"), "--seconds is 0.0; expected 1 or more"),
        (("age", "--out", "a.txt"), "expected one of .json"),
    ],
    ids=["soak", "age", "out"],
)
def test_bad_input_is_refused(words, message):
    done = call("benchmarks.live", *words)
    assert done.returncode == 2
    assert message in done.stderr


def test_synthetic_camera_gives_nothing_while_it_stalls():
    camera = SyntheticSource(
        "c", size_wh=(8, 6), fps=100.0, is_live=True, seconds=0.2, stall=(0.1, 0.05)
    )
    times, states = [], set()
    while True:
        try:
            frame = camera.read()
        except NoFrameYet:
            continue
        if frame is None:
            break
        times.append(round(frame.time_s, 6))
        states.add(camera.state)
    assert times == [number / 100 for number in (*range(5), *range(10, 15))]
    assert camera.num_ticks_stalled == 10
    assert SourceState.STALLED not in states
