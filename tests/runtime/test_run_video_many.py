"""The script on several sources, on live ones, and its logs for machines."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pipeline_fakes import decode_with_pyav
from tiny_bundle import CLASSES, InputGeometry, paint, write_tiny_bundle
from tiny_video_bundle import write_tiny_video_bundle

from runtime import run_video, video_outputs, video_parts
from runtime.contract.errors import SourceError, run_script
from runtime.pipeline.accounting import REASONS
from runtime.pipeline.sinks import FrameResult, buffered
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.pipeline.sources import Frame, Source, open_source
from runtime.pipeline.stopping import StopSignal
from runtime.video_options import parse, videos_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "runtime" / "run_video.py"
BACKEND = ("--backend", "onnxruntime")
GEOMETRY = InputGeometry(96, 128)
PIXELS_OFF = 2.0  # the letterbox's scale and the encoder's loss move an edge by this much
LENGTHS = {"left": 20, "right": 28}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return write_tiny_bundle(folder, geometry=GEOMETRY, num_samples=0)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two films of a blue rectangle, moving to the left in one and to the right in the other."""
    folder = tmp_path_factory.mktemp("films")
    for name, length in LENGTHS.items():
        sink = VideoFileSink(folder / f"{name}.mp4", size_wh=(256, 192), fps=25.0)
        for index in range(length):
            image = paint(192, 256, {0: box_of(name, index)})
            sink.write(FrameResult(Frame(image, index, index / 25, 0.0, 0.0, name), [], 0.0))
        sink.close()
    return {name: folder / f"{name}.mp4" for name in LENGTHS}


def box_of(name, index):
    x1 = 20 + 2 * index if name == "right" else 180 - 2 * index
    return x1, 20, x1 + 60, 80


class PaintedCamera(Source):
    """Live pictures of one blue rectangle, one every `interval_s`, until it ends or fails."""

    def __init__(self, name, num_frames, *, interval_s=0.002, age_s=0.0, fails=False):
        super().__init__(name, fps=25.0, is_live=True)
        self.size_wh = (256, 192)
        self.num_frames, self.interval_s, self.age_s, self.fails = (
            num_frames,
            interval_s,
            age_s,
            fails,
        )

    def read(self):
        index = self.num_decoded
        if index == self.num_frames:
            if self.fails:
                raise SourceError(f"{self.name} was unplugged")
            return None
        time.sleep(self.interval_s)
        self.num_decoded += 1
        image = paint(192, 256, {0: (20, 20, 80, 80)})
        captured_at = time.perf_counter() - self.age_s
        return Frame(image, index, index / 25, captured_at, 0.1, self.name)

    def close(self):
        pass


def uris(films):
    return [word for film in films.values() for word in ("--source", str(film))]


def run(bundle, *arguments):
    words = [str(bundle), *map(str, arguments), *BACKEND]
    return run_script(lambda: run_video.main(words))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_source(lines):
    found: dict[str, list] = {}
    for line in lines:
        found.setdefault(Path(line["source"]).stem, []).append(line)
    return found


@pytest.mark.parametrize("way", [(), ("--sequential",)], ids=["overlap", "sequential"])
def test_two_films_on_one_engine_give_what_each_gives_alone(bundle, films, tmp_path, capsys, way):
    out, lines = tmp_path / "new" / "{source}.mp4", tmp_path / "both.jsonl"
    assert run(bundle, *uris(films), "--out", out, "--json", lines, *way) == 0
    for name, found in by_source(read_lines(lines)).items():
        assert [line["frame"] for line in found] == list(range(LENGTHS[name]))
        assert decode_with_pyav(tmp_path / "new" / f"{name}.mp4")[0] == LENGTHS[name]
        for index, line in enumerate(found):
            (blue,) = line["detections"]
            assert blue["name"] == CLASSES[0]
            assert np.allclose(blue["box_xyxy"], box_of(name, index), atol=PIXELS_OFF)
            assert line["age_ms"] > 0
            assert abs(line["wall_time_s"] - time.time()) < 3600
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told[:2]] == [str(film) for film in films.values()]
    assert "20 frames; decoded 20, dropped 0; age p50" in told[0]
    assert told[2].startswith("48 frames in")


def test_key_frames_are_each_sources_own(films, tmp_path, capsys):
    temporal = write_tiny_video_bundle(tmp_path / "temporal", GEOMETRY)
    lines = tmp_path / "both.jsonl"
    schedule = ("--schedule", "fixed", "--key-interval", "4", "--max-key-age-ms", "1e5")
    assert run(temporal, *uris(films), "--json", lines, *schedule) == 0
    for name, found in by_source(read_lines(lines)).items():
        assert [line["is_key"] for line in found] == [n % 4 == 0 for n in range(LENGTHS[name])]
        for index, line in enumerate(found):  # between key frames it shows what the last one saw
            box = line["detections"][0]["box_xyxy"]
            assert np.allclose(box, box_of(name, index - index % 4), atol=PIXELS_OFF)
    assert "; 5 key frames" in capsys.readouterr().out


def test_run_goes_on_without_a_camera_that_dies_and_ends_with_status_2(
    bundle, monkeypatch, tmp_path, capsys, caplog
):
    caplog.set_level("INFO")
    cameras = {"0": PaintedCamera("left", 4, fails=True), "1": PaintedCamera("right", 60)}
    monkeypatch.setattr(video_parts, "open_source", cameras.get)
    lines = tmp_path / "both.jsonl"
    assert run(bundle, "--source", 0, "--source", 1, "--json", lines) == 2
    found = by_source(read_lines(lines))
    assert found["right"][-1]["frame"] == 59
    said = capsys.readouterr()
    assert "left was unplugged" in said.out
    assert said.err.splitlines()[-1].startswith("error: 1 of 2 sources failed: left: left was")
    assert "left is lost; 1 of 2 sources go on" in caplog.text


@pytest.mark.parametrize("log", ["text", "json"])
@pytest.mark.parametrize("num_sources", [1, 2])
def test_summary_is_told_when_every_source_is_lost(
    bundle, monkeypatch, tmp_path, num_sources, log, capsys, caplog
):
    caplog.set_level("INFO")
    cameras = {str(place): PaintedCamera(f"c{place}", 4, fails=True) for place in range(2)}
    monkeypatch.setattr(video_parts, "open_source", cameras.get)
    named = [word for place in range(num_sources) for word in ("--source", place)]
    assert run(bundle, *named, "--json", tmp_path / "a.jsonl", "--log", log) == 2
    said = capsys.readouterr()
    if log == "text":
        assert f"decoded {4 * num_sources}, dropped" in said.out.splitlines()[-1]
        assert said.err.splitlines()[-1] == "error: c0 was unplugged"
    else:
        events = [getattr(record, "event", None) for record in caplog.records]
        assert events[-2:] == ["summary", "error"]
        assert events.count("source_summary") == num_sources


@pytest.mark.parametrize("second", [False, True], ids=["files", "file and camera"])
def test_files_results_are_waited_for_without_limit_where_no_camera_waits(films, second, tmp_path):
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(open_source(str(films["left"])))]
        sources += [PaintedCamera("0", 1)] if second else []
        args = parse(
            ["bundle", *(word for each in sources for word in ("--source", each.name))]
            + ["--out", str(tmp_path / "{source}.mp4"), "--json", str(tmp_path / "a.jsonl")]
        )
        outputs = video_outputs.open_outputs(args, sources, (), StopSignal())
        for sink in outputs.asked:
            stack.callback(sink.close)
        lines, film = outputs.asked[:2]
        assert (lines.keeps_all, film.keeps_all) == (not second, True)
        limits = {sink._longest_write_s for sink in outputs.asked}
        assert limits == {buffered.LONGEST_WRITE_S if second else None}


def test_frames_over_their_age_are_not_inferred(bundle, monkeypatch, tmp_path, capsys):
    cameras = {"0": PaintedCamera("late", 30, age_s=9.0), "1": PaintedCamera("new", 30)}
    monkeypatch.setattr(video_parts, "open_source", cameras.get)
    lines = tmp_path / "both.jsonl"
    both = ("--source", 0, "--source", 1, "--max-age-ms", 5000, "--json", lines)
    assert run(bundle, *both) == 0
    assert set(by_source(read_lines(lines))) == {"new"}
    late, new, _ = capsys.readouterr().out.splitlines()
    assert late.startswith("late: 0 frames; decoded 30, dropped 30 (")
    assert "too old" in late
    assert "too old" not in new


def test_log_for_machines_is_json_alone_and_accounts_for_every_frame(bundle, films, tmp_path):
    words = [bundle, *uris(films), "--json", tmp_path / "a.jsonl", "--log", "json", *BACKEND]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(event) for event in events)
    sources = [event for event in events if event.get("event") == "source_summary"]
    (total,) = [event for event in events if event.get("event") == "summary"]
    assert [event["captured"] for event in sources] == list(LENGTHS.values())
    for event in (*sources, total):
        assert event["delivered"] + sum(event["dropped"].values()) == event["captured"]
        assert set(event["dropped"]) == set(REASONS)
        assert event["age_ms"]["p50"] <= event["age_ms"]["p99"] <= event["age_ms"]["max"]
        assert event["reconnects"] == 0
    (sink,) = total["sinks"]
    assert (sink["written"], sink["dropped"], sink["failed"]) == (48, 0, 0)


def test_signal_drains_all_sources_and_accounts_for_every_frame(bundle, films, tmp_path):
    lines, out = tmp_path / "a.jsonl", tmp_path / "{source}.mp4"
    words = [bundle, *uris(films), "--loops", 1000, "--json", lines, "--out", out, *BACKEND]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, words), "--log", "json"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not lines.exists() or lines.read_bytes().count(b"\n") < 60:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 0
    events = [json.loads(line) for line in said.splitlines()]
    sources = [event for event in events if event.get("event") == "source_summary"]
    assert events[-1]["was_stopped"]
    found = by_source(read_lines(lines))
    for name, told in zip(LENGTHS, sources, strict=True):
        assert told["delivered"] + sum(told["dropped"].values()) == told["captured"]
        assert [line["frame"] for line in found[name]] == list(range(told["delivered"]))
        assert decode_with_pyav(tmp_path / f"{name}.mp4")[0] == told["delivered"]


def test_error_in_the_log_for_machines_is_json_too(bundle, tmp_path):
    words = [str(bundle), "--source", str(tmp_path / "none.mp4"), "--log", "json"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    (event,) = map(json.loads, done.stderr.splitlines())
    assert (event["event"], event["level"]) == ("error", "error")
    assert "does not exist" in event["message"]


def test_full_disk_ends_one_output_and_not_the_other(bundle, films, tmp_path, capsys, caplog):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    full, out = tmp_path / "full.jsonl", tmp_path / "a.mp4"
    full.symlink_to("/dev/full")
    film = ("--source", films["right"])
    assert run(bundle, *film, "--out", out, "--json", full) == 2
    said = capsys.readouterr()
    assert "No space left" in said.err
    assert f"{full} (failed 28)" in said.out
    assert decode_with_pyav(out)[0] == 28


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "a.mp4"), "expected {source} in its name, such as a_{source}.mp4"),
        (("--out", "{source}.gif"), "expected one of .mp4"),
        (("--max-age-ms", "100"), "--max-age-ms is for cameras and streams"),
        (("--max-age-ms", "0"), "--max-age-ms is 0.0; expected more than 0"),
        (("--log", "xml"), "invalid choice: 'xml'"),
        (("--source", "RIGHT"), "is given twice"),
    ],
    ids=["one name", "suffix", "age of files", "no age", "log", "twice"],
)
def test_bad_input_is_refused_and_nothing_written(
    bundle, films, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    given = [str(films["right"]) if word == "RIGHT" else word for word in options]
    try:
        status = run(bundle, *uris(films), *given)
    except SystemExit as end:  # argparse
        status = end.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["0", "/dev/video2"], ["0", "dev_video2"]),
        (["rtsp://me:secret@10.0.0.5:554/main", "rtsp://10.0.0.6/main"],
         ["rtsp_10.0.0.5_554_main", "rtsp_10.0.0.6_main"]),
        (["a b", "a_b"], ["a_b", "a_b_"]),
        (["///"], ["source"]),
    ],
    ids=["cameras", "streams", "alike", "nothing"],
)  # fmt: skip
def test_videos_are_named_after_their_sources(uris, names):
    videos = videos_of(Path("x/{source}.mkv"), uris)
    assert videos == [Path(f"x/{name}.mkv") for name in names]


def test_video_of_a_file_has_its_name_without_folder_and_suffix(films):
    assert videos_of(Path("o_{source}.mp4"), [str(films["left"])]) == [Path("o_left.mp4")]
