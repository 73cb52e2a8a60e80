from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pipeline_fakes import count_with_opencv, decode_with_pyav, results_of

from runtime.contract.errors import SinkError
from runtime.pipeline.sinks import FrameResult, check_target
from runtime.pipeline.sinks.h264 import PictureFit
from runtime.pipeline.sinks.json_lines import JsonLinesSink
from runtime.pipeline.sinks.progress import ProgressSink
from runtime.pipeline.sinks.video_file import (
    CONTAINERS,
    FRAGMENT_S,
    OpencvVideoSink,
    VideoFileSink,
    open_video_sink,
)
from runtime.pipeline.sources import Frame

ROOT = Path(__file__).resolve().parents[2]
TICK_S = 2e-3  # Matroska's clock counts milliseconds
COLOUR_ERROR = 12  # 8-bit limited-range YUV with quarter chroma, and the encoder's loss


def write_video(path, num_frames, fps=25.0, size_wh=(64, 48)):
    sink = open_video_sink(path, size_wh=size_wh, fps=fps)
    for result in results_of(num_frames, size_wh, fps):
        sink.write(result)
    sink.close()
    return path


# --- video


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_video_holds_every_frame_for_both_decoders(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", 60)
    assert decode_with_pyav(path)[0] == count_with_opencv(path) == 60


@pytest.mark.parametrize("fps", [12.5, 25.0, 30000 / 1001])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_video_has_the_sources_times(tmp_path, suffix, fps):
    _, times = decode_with_pyav(write_video(tmp_path / f"a{suffix}", 30, fps))
    assert np.allclose(times, np.arange(30) / fps, atol=TICK_S)


def test_video_keeps_the_gap_that_lost_frames_left(tmp_path):
    sink = VideoFileSink(tmp_path / "a.mp4", size_wh=(64, 48), fps=25.0)
    kept = [result for result in results_of(20) if not 5 <= result.frame.index < 15]
    for result in kept:
        sink.write(result)
    sink.close()
    _, times = decode_with_pyav(tmp_path / "a.mp4")
    assert np.allclose(times, [result.frame.time_s for result in kept], atol=TICK_S)


@pytest.mark.parametrize("size_wh", [(65, 49), (64, 49), (1, 1), (33, 48)], ids=str)
def test_odd_sizes_get_one_more_pixel(tmp_path, size_wh):
    path = write_video(tmp_path / "a.mp4", 3, size_wh=size_wh)
    capture = cv2.VideoCapture(str(path))
    is_read, image = capture.read()
    assert is_read
    assert image.shape == (size_wh[1] + size_wh[1] % 2, size_wh[0] + size_wh[0] % 2, 3)


def test_picture_of_another_shape_is_fitted_in_whole():
    wide = np.full((10, 100, 3), 200, np.uint8)
    fitted = PictureFit((50, 40))(wide)
    assert fitted.shape == (40, 50, 3)
    assert (fitted[20] == 200).all()
    assert (fitted[0] == 0).all()


def test_picture_that_fits_is_not_copied():
    image = np.zeros((48, 64, 3), np.uint8)
    assert PictureFit((64, 48))(image) is image


@pytest.mark.parametrize("colour", [(0, 0, 255), (0, 255, 0), (255, 0, 0), (90, 160, 200)], ids=str)
def test_video_keeps_colours(tmp_path, colour):
    frame = Frame(np.full((64, 64, 3), colour, np.uint8), 0, 0.0, 0.0, 0.0, "one")
    sink = VideoFileSink(tmp_path / "a.mp4", size_wh=(64, 64), fps=25.0)
    sink.write(FrameResult(frame, [], 0.0))
    sink.close()
    _, image = cv2.VideoCapture(str(tmp_path / "a.mp4")).read()
    assert np.abs(image[32, 32].astype(int) - colour).max() <= COLOUR_ERROR


def test_video_is_playable_before_it_is_closed(tmp_path):
    sink = VideoFileSink(tmp_path / "a.mp4", size_wh=(64, 48), fps=25.0)
    for result in results_of(200):
        sink.write(result)
    count = decode_with_pyav(tmp_path / "a.mp4")[0]
    sink.close()
    assert 180 <= count < 200  # a quarter second's fragment and what the encoder holds are missing


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_live_video_without_its_end_lacks_less_than_half_a_second(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    sink = open_video_sink(path, size_wh=(64, 48), fps=25.0, is_live=True)
    for result in results_of(100):
        sink.write(result)
    _, times = decode_with_pyav(path)
    sink.close()
    assert times[-1] > 99 / 25 - FRAGMENT_S - 2 / 25


@pytest.mark.parametrize("fps", [2.0, 8.0, 30.0])
def test_live_video_is_as_fresh_when_frames_come_slower_than_the_camera_says(tmp_path, fps):
    sink = VideoFileSink(tmp_path / "a.mp4", size_wh=(64, 48), fps=30.0, is_live=True)
    for result in results_of(40, fps=fps):
        sink.write(result)
    _, times = decode_with_pyav(tmp_path / "a.mp4")
    sink.close()
    assert 39 / fps - times[-1] < max(FRAGMENT_S, 1 / fps) + 1 / fps


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "file"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_video_has_uneven_times_as_they_were(tmp_path, suffix, is_live):
    path = tmp_path / f"a{suffix}"
    sink = VideoFileSink(path, size_wh=(64, 48), fps=30.0, is_live=is_live)
    times_s = 7 + np.cumsum(np.random.default_rng(0).choice([0.004, 0.03, 0.05, 0.3, 2.0], 60))
    for result, time_s in zip(results_of(60), times_s, strict=True):
        result.frame.time_s = time_s
        sink.write(result)
    sink.close()
    assert np.allclose(decode_with_pyav(path)[1], times_s - times_s[0], atol=TICK_S)


def test_frames_of_another_size_are_fitted_in_and_that_is_said_once(tmp_path, caplog):
    sink = VideoFileSink(tmp_path / "a.mp4", size_wh=(64, 48), fps=25.0)
    for size_wh in [(64, 48), (48, 64), (64, 48), (320, 240)]:
        for result in results_of(5, size_wh):
            sink.write(result)
    sink.close()
    assert decode_with_pyav(tmp_path / "a.mp4")[0] == 20
    assert [record.getMessage() for record in caplog.records] == [
        f"frames are 48x64 now; fitted into {tmp_path / 'a.mp4'}'s 64x48"
    ]


@pytest.mark.parametrize("kind", [VideoFileSink, OpencvVideoSink])
def test_size_that_is_not_known_is_the_first_frames(tmp_path, kind):
    sink = kind(tmp_path / "a.mp4", size_wh=(0, 0), fps=25.0)
    for result in results_of(5, (80, 60)):
        sink.write(result)
    sink.close()
    _, image = cv2.VideoCapture(str(tmp_path / "a.mp4")).read()
    assert image.shape == (60, 80, 3)


@pytest.mark.parametrize("kind", [VideoFileSink, OpencvVideoSink])
def test_video_that_got_no_frame_closes_without_a_word(tmp_path, kind, caplog):
    sink = kind(tmp_path / "a.mp4", size_wh=(0, 0), fps=25.0)
    sink.close()
    sink.close()
    assert not caplog.records


def test_missing_folder_is_made(tmp_path):
    assert write_video(tmp_path / "new" / "deep" / "a.mp4", 2).exists()


def test_video_without_pyav_is_mpeg4_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "av" else find_spec(name)
    )
    with caplog.at_level(logging.WARNING):
        path = write_video(tmp_path / "a.mp4", 10)
    assert "PyAV is missing" in caplog.text
    assert count_with_opencv(path) == 10


def test_opencv_that_cannot_open_is_an_error(tmp_path):
    with pytest.raises(SinkError, match="cannot be opened"):
        OpencvVideoSink(tmp_path / "missing" / "a.mp4", size_wh=(64, 48), fps=25.0)


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 300 KB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if os.name == "nt" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system here")
    yield place
    subprocess.run(["umount", str(place)], check=False)


def test_full_disk_ends_the_video_with_one_line_and_the_part_plays(full_disk):
    noise = np.random.default_rng(0)
    sink = VideoFileSink(full_disk / "a.mp4", size_wh=(320, 240), fps=25.0)

    def write_noise():
        for index in range(500):
            image = noise.integers(0, 256, (240, 320, 3), np.uint8)
            sink.write(FrameResult(Frame(image, index, index / 25, 0.0, 0.0, "x"), [], 0.0))

    with pytest.raises(SinkError, match="No space left") as error:
        write_noise()
    sink.close()
    assert "\n" not in str(error.value)
    assert decode_with_pyav(full_disk / "a.mp4")[0] > 0


def test_full_disk_leaves_whole_json_lines(full_disk):
    sink = JsonLinesSink(full_disk / "a.jsonl")

    def write_lines():
        for result in results_of(100_000):
            sink.write(result)

    with pytest.raises(SinkError, match="No space left"):
        write_lines()
    sink.close()
    lines = (full_disk / "a.jsonl").read_text().split("\n")
    assert lines[-1] == ""
    assert [json.loads(line)["frame"] for line in lines[:-1]] == list(range(len(lines) - 1))


def test_limit_of_a_files_size_ends_video_and_lines_but_not_the_run(tmp_path):
    """As a full disk, for those who may not mount one."""
    code = f"""
import resource, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "runtime")!r}]
from test_pipeline_sinks import *
from runtime.pipeline.sinks import BufferedSink
folder = Path(sys.argv[1])
sinks = [
    BufferedSink(VideoFileSink(folder / "a.mp4", size_wh=(320, 240), fps=25.0), keeps_all=True),
    BufferedSink(JsonLinesSink(folder / "a.jsonl"), keeps_all=True),
]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
random = np.random.default_rng(0)
for result in results_of(1200, (320, 240)):
    if sinks[0].is_open:
        result.frame.image_bgr[:] = random.integers(0, 256, (240, 320, 3), np.uint8)
    for sink in sinks:
        sink.write(result)
for sink in sinks:
    sink.close()
print(json.dumps([[sink.num_written, sink.num_failed, str(sink.error)] for sink in sinks]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    (num_frames, *video), (num_lines, *lines) = json.loads(done.stdout)
    assert num_frames + video[0] == num_lines + lines[0] == 1200
    assert "cannot be written after" in video[1]
    assert "The lines before frame" in lines[1]
    assert done.stderr.count("File too large") == 2
    assert done.stderr.count("\n") == 2
    assert decode_with_pyav(tmp_path / "a.mp4")[0] > 0
    whole = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(whole) == num_lines > 100


# --- JSON lines


def test_json_has_a_line_a_frame_with_its_fields(tmp_path):
    sink = JsonLinesSink(tmp_path / "a.jsonl")
    for result in results_of(3):
        result.frame.wall_time_s = 1_700_000_000.25
        sink.write(result)
    sink.close()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines[2] == {
        "frame": 2,
        "time_s": 0.08,
        "source": "numbered",
        "wall_time_s": 1_700_000_000.25,
        "age_ms": 1.5,
        "detections": [{"number": 2}],
    }
    assert len(lines) == 3


def test_json_line_is_in_the_file_at_once(tmp_path):
    sink = JsonLinesSink(tmp_path / "a.jsonl")
    sink.write(next(results_of(1)))
    assert (tmp_path / "a.jsonl").read_bytes().endswith(b"}\n")
    sink.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_device_that_is_full_is_an_error_of_one_line():
    sink = JsonLinesSink("/dev/full")
    with pytest.raises(SinkError, match="No space left") as error:
        sink.write(next(results_of(1)))
    sink.close()
    assert "\n" not in str(error.value)


def test_json_with_nan_is_json(tmp_path):
    sink = JsonLinesSink(tmp_path / "a.jsonl")
    result = next(results_of(1))
    result.results.number = float("nan")
    sink.write(result)
    sink.close()
    text = (tmp_path / "a.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["detections"] == [{"number": None}]


# --- targets


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.gif", "expected one of .mp4"),
        ("noname", "no suffix"),
        ("folder.mp4", "is a folder"),
        ("source.mp4", "read or written already"),
        ("file.txt/a.mp4", "no folder"),
    ],
)
def test_target_that_cannot_be_is_refused_and_nothing_is_written(tmp_path, name, message):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "source.mp4").write_bytes(b"film")
    (tmp_path / "file.txt").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SinkError, match=message):
        check_target(tmp_path / name, suffixes=(".mp4",), taken=[tmp_path / "source.mp4"])
    assert sorted(tmp_path.rglob("*")) == before


def test_target_that_is_the_source_by_another_name_is_refused(tmp_path):
    (tmp_path / "source.mp4").write_bytes(b"film")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "source.mp4")
    with pytest.raises(SinkError, match="read or written already"):
        check_target(tmp_path / "link.mp4", suffixes=(), taken=[tmp_path / "source.mp4"])


def test_target_in_a_folder_to_be_made_is_accepted_and_not_made(tmp_path):
    check_target(tmp_path / "new" / "a.mp4", suffixes=(".mp4",))
    assert not (tmp_path / "new").exists()


# --- progress


def test_progress_says_frames_rate_and_age_on_one_line(monkeypatch):
    import io

    monkeypatch.setattr("runtime.pipeline.sinks.progress.INTERVAL_S", 0.0)
    stream = io.StringIO()
    sink = ProgressSink(stream, num_promised=50)
    for result in results_of(3):
        sink.write(result)
    sink.close()
    text = stream.getvalue()
    assert "3/50 frames" in text
    assert "age 2 ms" in text
    assert "\n" not in text
    assert text.endswith("\r")
