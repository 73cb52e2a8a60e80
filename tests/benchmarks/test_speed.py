from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pipeline_fakes import results_of

from benchmarks.measure.peers import TorchPeer, Turn
from benchmarks.measure.rounds import Series, compare, run_rounds
from runtime.contract.bundle import Bundle
from runtime.contract.errors import KestrelError
from runtime.pipeline.sinks.video_file import VideoFileSink

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "speed.py"
QUICK = ("--rounds", "3", "--turn-seconds", "0.02", "--rest-seconds", "0", "--threads", "1")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    sink = VideoFileSink(path, size_wh=(64, 48), fps=25.0)
    for result in results_of(8):
        sink.write(result)
    sink.close()
    return path


def run_script(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


# --- the whole script, on a bundle that was exported from a checkpoint


@pytest.fixture(scope="module")
def record(written_bundle, tiny_checkpoint, film, tmp_path_factory):
    """(what the terminal got, the record)"""
    folder = tmp_path_factory.mktemp("record")
    out = folder / "speed.json"
    bundle = shutil.copytree(written_bundle, folder / "tiny")  # OpenVINO's cache is put beside it
    done = run_script(
        bundle, "--checkpoint", tiny_checkpoint, "--source", film, "--out", out,
        "--peers", "eager fp32", "openvino", *QUICK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


def test_record_says_what_was_measured_on_what_and_how(record):
    _, document = record
    assert set(document) == {
        "schema", "kind", "created", "command", "notices", "peers", "left_out", "settings",
        "bundle", "machine", "libraries",
    }  # fmt: skip
    assert {"pytorch eager fp32", "onnxruntime fp32", "openvino fp32"} <= set(document["peers"])
    assert document["command"].startswith("python benchmarks/speed.py /")
    assert {"cpu", "cpu_flags", "load_average", "load_average_after"} <= set(document["machine"])
    assert document["peers"]["pytorch eager fp32"]["facts"]["torch"]
    assert document["peers"]["pytorch eager fp32"]["facts"]["threads"] == 1


def test_record_says_why_a_peer_is_left_out(record):
    _, document = record
    assert document["left_out"]["openvino int8"] == "the bundle has fp32 only"


def test_all_float32_peers_find_the_same(record):
    _, document = record
    found = {
        name: peer["results_a_frame"]
        for name, peer in document["peers"].items()
        if name.endswith("fp32")
    }
    assert len(found) == 3
    assert len(set(found.values())) == 1
    assert found["onnxruntime fp32"] > 1


def test_figures_of_a_peer_go_together(record):
    stdout, document = record
    for name, peer in document["peers"].items():
        assert len(peer["round_ms"]) == 3
        assert peer["frames"] >= 6
        assert peer["min_ms"] <= peer["p50_ms"] <= peer["p90_ms"]
        assert peer["interval"][0] <= peer["times_faster"] <= peer["interval"][1]
        row = next(line for line in stdout.splitlines() if line.startswith(name))
        assert f"{peer['p50_ms']:.2f}" in row.split()
    assert document["peers"]["onnxruntime fp32"]["times_faster"] == 1.0


def test_checkpoint_of_another_network_is_refused(written_bundle, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    done = run_script(written_bundle, "--checkpoint", other, "--out", tmp_path / "speed.json")
    assert done.returncode == 2
    assert "Give the checkpoint that it was exported from" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "speed.json").exists()


# --- to the drawn frame


def test_drawn_frames_are_measured_part_by_part_at_the_size_that_was_asked_for(
    written_bundle, film, tmp_path
):
    out = tmp_path / "speed.json"
    bundle = shutil.copytree(written_bundle, tmp_path / "tiny")
    done = run_script(
        bundle, "--source", film, "--out", out, "--peers", "openvino fp32", "eager fp32",
        "--drawn", "200x120",
        *QUICK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["settings"]["frame_wh"] == [200, 120]
    assert "drawn" in document["settings"]["measured"]
    assert document["left_out"]["pytorch eager fp32"] == "it draws nothing"
    for peer in document["peers"].values():
        assert list(peer["parts_p50_ms"]) == ["preprocess", "engine", "finish", "draw"]
        assert min(peer["parts_p50_ms"].values()) > 0
        assert max(peer["parts_p50_ms"].values()) < peer["p90_ms"]
    header = next(line for line in done.stdout.splitlines() if line.startswith("ms a frame"))
    assert "draw" in header.split()


def test_size_that_is_none_is_refused(written_bundle):
    done = run_script(written_bundle, "--drawn", "big")
    assert done.returncode == 2
    assert "'big' is no size; expected one such as 1280x720" in done.stderr


# --- rounds


class Clockwork:
    """A peer that takes a set time, and twice that in the rounds that are told to be slow."""

    def __init__(self, ms, slow_rounds=()):
        self.facts = {}
        self.calls = []
        self._ms, self._slow = ms, slow_rounds

    def run(self, num_frames):
        turn = (len(self.calls) - 1) // 2  # one pass of all frames, then two calls a round
        self.calls.append(num_frames)
        ms = self._ms * (2 if turn in self._slow else 1)
        return Turn([ms] * num_frames, {}, 3 * num_frames)

    def close(self):
        pass


def measure(peers, rounds=8):
    return run_rounds(
        peers, num_frames=4, num_rounds=rounds, turn_s=0.1, rest_s=0.0, report=lambda line: None
    )


def test_every_round_has_a_turn_of_each_peer_of_the_same_length():
    peers = {"quick": Clockwork(10.0), "slow": Clockwork(30.0), "very slow": Clockwork(900.0)}
    measured = measure(peers)
    assert peers["quick"].calls == [4] + 8 * [1, 10]
    assert peers["slow"].calls == [4] + 8 * [1, 4]
    assert peers["very slow"].calls == [4] + 8 * [1, 2]
    assert len(measured["quick"].ms) == 80
    assert measured["quick"].results_a_frame == 3


def test_slow_minutes_hit_every_peer_and_leave_the_ratio_alone():
    slow = {1, 4, 5}
    measured = measure({"a": Clockwork(10.0, slow), "b": Clockwork(40.0, slow)})
    ratio = compare(measured["a"], measured["b"])
    assert (ratio.low, ratio.times_faster, ratio.high) == pytest.approx((4.0, 4.0, 4.0))


def test_interval_covers_the_true_ratio_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        noise = random.lognormal(0, 0.2, (2, 12))
        a, b = (
            Series(1, 0.0, [Turn([ms * n]) for n in row])
            for ms, row in zip((10.0, 20.0), noise, strict=True)
        )
        ratio = compare(a, b, seed=trial)
        covered += ratio.low <= 2.0 <= ratio.high
    assert 0.88 <= covered / 100 <= 1.0


def test_parts_of_a_frame_are_kept_where_a_peer_knows_them():
    turns = [Turn([3.0, 5.0], {"engine": [2.0, 4.0]}), Turn([1.0, 1.0], {"engine": [0.5, 0.5]})]
    series = Series(2, 0.0, turns)
    assert series.parts_ms["engine"].tolist() == [2.0, 4.0, 0.5, 0.5]
    assert series.round_ms.tolist() == [4.0, 1.0]
    assert Series(2, 0.0, [Turn([3.0, 5.0])]).parts_ms == {}


# --- the process that runs PyTorch


def test_pytorch_peer_answers_with_a_time_for_every_frame(
    tiny_checkpoint, written_bundle, tmp_path
):
    frames = Bundle.open(written_bundle).samples().feeds["image"]
    np.save(tmp_path / "frames.npy", frames)
    peer = TorchPeer(
        tiny_checkpoint, tmp_path / "frames.npy", score_threshold=0.02, options=["--threads", "1"]
    )
    first, second = peer.run(3), peer.run(5)
    peer.close()
    peer.close()
    assert (len(first.ms), len(second.ms)) == (3, 5)
    assert min(first.ms + second.ms) > 0
    assert first.num_results > 0
    assert peer.facts["threads"] == 1


def test_pytorch_peer_that_cannot_start_says_why(tiny_checkpoint, tmp_path):
    np.save(tmp_path / "frames.npy", np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(KestrelError, match="pictures of 32x32; the checkpoint expects 96x64"):
        TorchPeer(tiny_checkpoint, tmp_path / "frames.npy", score_threshold=0.1, options=[])
