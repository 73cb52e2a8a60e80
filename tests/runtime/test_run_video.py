from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pipeline_fakes import (
    BOOK,
    CAR,
    NO_CLIPS,
    count_with_opencv,
    decode_with_pyav,
)
from tiny_bundle import CLASSES, InputGeometry, paint, write_tiny_bundle

from runtime.pipeline.accounting import REASONS, RunSummary, SourceSummary
from runtime.pipeline.describing import describe_run, describe_sink, sink_to_json
from runtime.pipeline.sinks import FrameResult, NullSink
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.pipeline.sources import Frame
from runtime.pipeline.sources.base import SourceState
from runtime.pipeline.timing import StageTimes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "runtime" / "run_video.py"
BACKEND = ("--backend", "onnxruntime")
# A kill loses the fragment that was open (a second: 13 frames of the car clip), what the encoder
# looks ahead and holds on its threads, and what waits between JSON line and encoder.
MOST_LOST_FRAMES = 60
PIXELS_OFF = 2.0  # the letterbox's scale and the encoder's loss move an edge by this much
needs_clips = pytest.mark.skipif(not CAR.exists(), reason=NO_CLIPS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return write_tiny_bundle(folder, geometry=InputGeometry(96, 128), num_samples=0)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A blue and a red rectangle: the blue one moves right, two pixels a frame."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    sink = VideoFileSink(path, size_wh=(256, 192), fps=25.0)
    for index in range(30):
        image = paint(192, 256, {0: blue_box(index), 2: (150, 100, 230, 160)})
        sink.write(FrameResult(Frame(image, index, index / 25, 0.0, 0.0, "film"), [], 0.0))
    sink.close()
    return path


def blue_box(index):
    return (20 + 2 * index, 20, 80 + 2 * index, 80)


def command(*arguments):
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def run_script(*arguments, **options):
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, check=False, **options
    )


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("way", [(), ("--sequential",)], ids=["overlap", "sequential"])
def test_run_finds_the_objects_and_writes_them_to_both_outputs(bundle, film, tmp_path, way):
    out, lines = tmp_path / "new" / "a.mp4", tmp_path / "new" / "a.jsonl"
    done = run_script(bundle, "--source", film, "--out", out, "--json", lines, *BACKEND, *way)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    assert "30 frames" in done.stdout
    assert "dropped 0" in done.stdout
    assert done.stdout.count("\n") == 1
    assert decode_with_pyav(out)[0] == count_with_opencv(out) == 30
    records = read_lines(lines)
    assert [record["frame"] for record in records] == list(range(30))
    for index, record in enumerate(records):
        boxes = {found["name"]: found["box_xyxy"] for found in record["detections"]}
        assert set(boxes) == {CLASSES[0], CLASSES[2]}
        assert np.allclose(boxes[CLASSES[0]], blue_box(index), atol=PIXELS_OFF)
        assert record["age_ms"] > 0


def test_picture_carries_boxes_and_the_rate(bundle, film, tmp_path):
    import cv2

    out = tmp_path / "a.mp4"
    assert run_script(bundle, "--source", film, "--out", out, *BACKEND).returncode == 0
    before, after = (cv2.VideoCapture(str(path)).read()[1].astype(int) for path in (film, out))
    changed = np.abs(before - after).max(axis=2) > 60
    assert changed[19:22, 20:80].mean() > 0.3  # the blue box's upper edge
    assert changed[3:15, 3:40].any()  # the caption
    assert not changed[170:].any()  # below the objects


@needs_clips
@pytest.mark.parametrize(("clip", "count"), [(CAR, 377), (BOOK, 109)], ids=["car", "book"])
def test_real_clips_are_processed_whole(bundle, tmp_path, clip, count):
    out, lines = tmp_path / "a.mp4", tmp_path / "a.jsonl"
    done = run_script(bundle, "--source", clip, "--out", out, "--json", lines, *BACKEND)
    assert done.returncode == 0
    assert f"{count} frames" in done.stdout
    assert "promised" not in done.stdout  # one frame fewer than the header says is normal
    assert decode_with_pyav(out)[0] == count_with_opencv(out) == count
    assert len(read_lines(lines)) == count


def test_max_frames_ends_the_run(bundle, film, tmp_path):
    options = ("--max-frames", 4, "--json", tmp_path / "a.jsonl")
    assert run_script(bundle, "--source", film, *options, *BACKEND).returncode == 0
    assert len(read_lines(tmp_path / "a.jsonl")) == 4


def test_file_is_played_as_often_as_was_asked(bundle, film, tmp_path):
    options = ("--loops", 3, "--out", tmp_path / "a.mp4", "--json", tmp_path / "a.jsonl")
    done = run_script(bundle, "--source", film, *options, *BACKEND)
    assert done.returncode == 0
    lines = read_lines(tmp_path / "a.jsonl")
    assert [line["frame"] for line in lines] == list(range(90))
    times = [line["time_s"] for line in lines]
    assert times == sorted(set(times))
    assert lines[5]["detections"] == lines[35]["detections"] == lines[65]["detections"]
    assert count_with_opencv(tmp_path / "a.mp4") == 90


def test_file_cannot_be_played_less_than_once(bundle, film):
    done = run_script(bundle, "--source", film, "--loops", 0)
    assert done.returncode == 2
    assert "--loops is 0; expected 1 or more" in done.stderr


def test_json_on_standard_output_is_nothing_but_lines(bundle, film):
    done = run_script(bundle, "--source", film, "--json", "-", *BACKEND)
    assert [json.loads(line)["frame"] for line in done.stdout.splitlines()] == list(range(30))
    assert "30 frames" in done.stderr


def test_thresholds_reach_the_network(bundle, film, tmp_path):
    options = ("--score-threshold", 0.7, "--json", tmp_path / "a.jsonl")
    assert run_script(bundle, "--source", film, *options, *BACKEND).returncode == 0
    names = {d["name"] for r in read_lines(tmp_path / "a.jsonl") for d in r["detections"]}
    assert names == {CLASSES[0]}  # the red one's score is below


# --- ends in the middle


def start_and_wait_for(num_lines, bundle, out, lines):
    """A run over the car clip that has written `num_lines` frames."""
    arguments = command(bundle, "--source", CAR, "--out", out, "--json", lines, *BACKEND)
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if lines.exists() and lines.read_bytes().count(b"\n") >= num_lines:
            return process
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"the run ended or hung before frame {num_lines}: {process.communicate()}")


@needs_clips
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_first_signal_drains_and_ends_well(bundle, tmp_path, number):
    out, lines = tmp_path / "a.mp4", tmp_path / "a.jsonl"
    process = start_and_wait_for(40, bundle, out, lines)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "stopped by signal" in stdout
    assert "Traceback" not in stderr
    count = len(read_lines(lines))
    assert 40 <= count < 377
    assert decode_with_pyav(out)[0] == count_with_opencv(out) == count


@needs_clips
def test_kill_leaves_a_playable_video_and_whole_lines(bundle, tmp_path):
    out, lines = tmp_path / "a.mp4", tmp_path / "a.jsonl"
    process = start_and_wait_for(150, bundle, out, lines)
    process.kill()
    process.communicate(timeout=30)
    count = len(read_lines(lines))
    assert lines.read_bytes().endswith(b"\n")
    assert 150 <= count < 377
    assert count - MOST_LOST_FRAMES <= decode_with_pyav(out)[0] <= count
    assert count_with_opencv(out) == decode_with_pyav(out)[0]


# --- what cannot be


@pytest.mark.parametrize("source", ["none.mp4", "text.mp4", "zeros.avi", "97"])
def test_unusable_source_is_one_line_and_nothing_of_opencvs_or_ffmpegs(bundle, tmp_path, source):
    (tmp_path / "text.mp4").write_text("no film\n" * 100)
    (tmp_path / "zeros.avi").write_bytes(bytes(5000))
    done = run_script(bundle, "--source", source, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "none.mp4"), "does not exist"),
        (("--source", "text.mp4"), "no video"),
        (("--source", "97"), "camera 97 cannot be opened"),
        (("--source", "FILM", "--out", "FILM"), "read or written already"),
        (("--source", "FILM", "--out", "a.gif"), "expected one of .mp4"),
        (("--source", "FILM", "--out", "/proc/none/a.mp4"), "/proc/none"),
        (("--source", "FILM", "--json", "/proc/none/a.jsonl"), "/proc/none"),
        (("--source", "FILM", "--backend", "abacus"), "unknown backend"),
        (("--source", "FILM", "--precision", "fp8"), "no precision"),
        (("--source", "FILM", "--score-threshold", "-1"), "score_threshold"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_bad_input_ends_with_one_line_and_status_2_and_nothing_written(
    bundle, film, tmp_path, arguments, message
):
    (tmp_path / "text.mp4").write_text("no film\n" * 100)
    before, film_before = sorted(tmp_path.rglob("*")), film.read_bytes()
    given = [str(film) if argument == "FILM" else argument for argument in arguments]
    outputs = [] if {"--out", "--json"} & set(given) else ["--out", "o.mp4", "--json", "o.jsonl"]
    done = run_script(bundle, *given, *outputs, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before
    assert film.read_bytes() == film_before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk_ends_with_one_line_and_status_2(bundle, film, tmp_path):
    full = tmp_path / "full.jsonl"
    full.symlink_to("/dev/full")
    out = tmp_path / "a.mp4"
    done = run_script(bundle, "--source", film, "--out", out, "--json", full, *BACKEND)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.path.getsize(out) > 0  # noqa: PTH202


# --- the last line


def summary(**changes):
    fields = {
        "num_frames": 90,
        "num_decoded": 100,
        "num_dropped": 10,
        "num_corrupt": 0,
        "num_promised": 101,
        "seconds": 3.0,
        "was_stopped": False,
    }
    return RunSummary(**{**fields, **changes})


def test_summary_counts_frames_drops_and_rate():
    times = StageTimes()
    times.add({"engine": 4.0})
    line = describe_run(summary(), times, is_whole=True)
    assert "90 frames in 3.0 s (30.0 fps)" in line
    assert "decoded 100, dropped 10" in line
    assert "engine p50 4.00 ms, p99 4.00 ms" in line
    assert "promised" not in line


@pytest.mark.parametrize(
    ("changes", "is_whole", "says"),
    [
        ({"num_promised": 300}, True, "the header promised 300"),
        ({"num_corrupt": 3}, True, "corrupt 3"),
        ({"was_stopped": True}, True, "stopped by signal"),
    ],
    ids=["short file", "corrupt", "stopped"],
)
def test_summary_says_what_was_not_as_expected(changes, is_whole, says):
    assert says in describe_run(summary(**changes), StageTimes(), is_whole=is_whole)


@pytest.mark.parametrize("state", list(SourceState))
def test_file_ends_early_only_where_the_file_ended(state):
    reasons = dict.fromkeys(REASONS, 0)
    source = SourceSummary("film.mp4", 100, 90, reasons, None, 0, 300, state)
    line = describe_run(summary(num_promised=300, sources=(source,)), StageTimes(), is_whole=True)
    assert ("the file ends early" in line) == (state is SourceState.ENDED)


def test_losses_of_a_sink_without_a_queue_are_told():
    sink = NullSink()
    assert describe_sink(sink) == "nowhere"
    sink.num_lost = 3
    assert describe_sink(sink) == "nowhere (failed 3)"
    assert sink_to_json(sink) == {"target": "nowhere", "failed": 3}


def test_summary_of_a_part_misses_nothing():
    line = describe_run(summary(num_promised=300), StageTimes(), is_whole=False)
    assert "promised" not in line
