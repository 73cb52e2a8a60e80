from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.kill_while_recording import main
from benchmarks.measure.recording import (
    FPS,
    KINDS,
    SIZE_WH,
    examine,
    kill_once,
    read_number,
    write_number,
)
from runtime.pipeline.sinks import FrameResult
from runtime.pipeline.sinks.json_lines import JsonLinesSink
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.pipeline.sources import Frame

STARTED = 1_700_000_000.0  # Unix time of the first frame


class Nothing:
    def to_json(self):
        return {"detections": []}


@pytest.fixture
def recording(tmp_path):
    """Two files of 100 frames, closed in order."""
    video, lines = tmp_path / "a.mp4", tmp_path / "a.jsonl"
    sinks = [VideoFileSink(video, size_wh=SIZE_WH, fps=FPS), JsonLinesSink(lines)]
    for index in range(100):
        image = np.full((SIZE_WH[1], SIZE_WH[0], 3), 100, np.uint8)
        write_number(image, index)
        frame = Frame(image, index, index / FPS, 0.0, 0.0, "x", STARTED + index / FPS)
        for sink in sinks:
            sink.write(FrameResult(frame, Nothing(), 0.0))
    for sink in sinks:
        sink.close()
    return video, lines


def look(video, lines, killed_after_s=4.0):
    return examine(KINDS[0], video, lines, killed_at=STARTED + killed_after_s, after_s=4.0)


@pytest.mark.parametrize("kind", ["camera .mp4", "camera .mkv", "film .mp4"])
def test_killed_recording_opens_and_lacks_at_most_the_last_second(tmp_path, kind):
    loss = kill_once(kind, tmp_path / "run", after_s=1.0)
    assert loss.problems == ()
    assert loss.is_good
    assert loss.num_frames > 5


def test_whole_recording_lost_nothing(recording):
    loss = look(*recording)
    assert (loss.num_lines, loss.num_frames, loss.problems) == (100, 100, ())
    assert loss.lines_lost_s == pytest.approx(1 / FPS)
    assert loss.video_lost_s == pytest.approx(1 / FPS, abs=2e-3)


def test_loss_is_counted_up_to_the_kill(recording):
    loss = look(*recording, killed_after_s=5.5)
    assert loss.video_lost_s == pytest.approx(1.5 + 1 / FPS, abs=2e-3)
    assert not loss.is_good


def test_torn_line_is_found(recording):
    video, lines = recording
    lines.write_bytes(lines.read_bytes()[:-3])
    loss = look(video, lines)
    assert loss.problems == ("the last JSON line has no end", "JSON line 99 does not parse")
    assert not loss.is_good


def test_video_that_does_not_open_is_found(recording):
    video, lines = recording
    video.write_bytes(video.read_bytes()[:10])
    assert any("does not open" in problem for problem in look(video, lines).problems)


def test_video_without_a_frame_lost_all_there_was(recording):
    video, lines = recording
    data = video.read_bytes()
    video.write_bytes(data[: data.index(b"moof") - 4])
    loss = look(video, lines)
    assert (loss.num_frames, loss.problems) == (0, ())
    assert loss.video_lost_s == pytest.approx(4.0)
    assert not loss.is_good


def test_frames_at_the_wrong_time_are_found(recording):
    video, lines = recording
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    records[50]["time_s"] += 0.1
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert look(video, lines).problems == ("frame 50 is -0.100 s off",)


@pytest.mark.parametrize("number", [0, 1, 12_345, 65_535])
def test_number_is_read_back(number):
    image = np.full((240, 320, 3), 128, np.uint8)
    write_number(image, number)
    assert read_number(image) == number


@pytest.mark.slow
def test_fifty_kills_cost_at_most_a_second_each(tmp_path):
    assert main(["--out", str(tmp_path / "record.json")]) == 0
