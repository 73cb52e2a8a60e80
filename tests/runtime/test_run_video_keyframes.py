"""The script that runs videos, on a bundle with key frames."""

from __future__ import annotations

import json

import pytest
from tiny_bundle import InputGeometry, paint, write_tiny_bundle
from tiny_video_bundle import write_tiny_video_bundle

from runtime import run_video
from runtime.contract.errors import run_script
from runtime.pipeline.sinks import FrameResult
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.pipeline.sources import Frame

NUM_FRAMES = 24
PIXELS_OFF = 2.0  # the letterbox's scale and the encoder's loss move an edge by this much
GEOMETRY = InputGeometry(96, 128)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_video_bundle(tmp_path_factory.mktemp("bundle"), GEOMETRY)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A rectangle that moves right, four pixels a frame."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    sink = VideoFileSink(path, size_wh=(256, 192), fps=25.0)
    for index in range(NUM_FRAMES):
        image = paint(192, 256, {0: (left_of(index), 20, left_of(index) + 60, 80)})
        sink.write(FrameResult(Frame(image, index, index / 25, 0.0, 0.0, "film"), [], 0.0))
    sink.close()
    return path


def left_of(index):
    return 20 + 4 * index


def run(bundle, film, lines, *options):
    arguments = [str(bundle), "--source", str(film), "--json", str(lines), *options]
    status = run_script(lambda: run_video.main([*arguments, "--backend", "onnxruntime"]))
    found = lines.read_text().splitlines() if lines.exists() else []
    return status, [json.loads(line) for line in found]


@pytest.mark.parametrize("way", [(), ("--sequential",)], ids=["overlap", "sequential"])
def test_frames_between_show_what_their_key_frame_showed(bundle, film, tmp_path, capsys, way):
    options = ("--schedule", "fixed", "--key-interval", "4", "--max-key-age-ms", "1e5", *way)
    status, records = run(bundle, film, tmp_path / "a.jsonl", *options)
    assert status == 0
    assert [record["is_key"] for record in records] == [n % 4 == 0 for n in range(NUM_FRAMES)]
    for index, record in enumerate(records):
        left = record["detections"][0]["box_xyxy"][0]
        assert left == pytest.approx(left_of(index - index % 4), abs=PIXELS_OFF)
    line = capsys.readouterr().out
    assert "; 6 key frames (25 %: interval 5, first 1), " in line
    assert "; 18 between, " in line


def test_age_of_key_frames_counts_in_the_videos_own_time(bundle, film, tmp_path, capsys):
    options = ("--schedule", "fixed", "--key-interval", "20", "--max-key-age-ms", "210")
    status, records = run(bundle, film, tmp_path / "a.jsonl", *options)
    assert status == 0
    assert [n for n, record in enumerate(records) if record["is_key"]] == [0, 6, 12, 18]
    assert "age 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--key-interval", "0"), "key_interval is 0; expected 1 frame or more"),
        (("--max-key-age-ms", "-5"), "max_key_age_ms is -5.0; expected a number above 0"),
    ],
    ids=["interval", "age"],
)
def test_wrong_options_end_with_one_line_and_nothing_written(
    bundle, film, tmp_path, capsys, options, message
):
    status, records = run(bundle, film, tmp_path / "a.jsonl", *options)
    assert (status, records) == (2, [])
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_options_of_key_frames_are_refused_for_a_model_without_them(film, tmp_path, capsys):
    plain = write_tiny_bundle(tmp_path / "plain", geometry=GEOMETRY, num_samples=0)
    status, records = run(plain, film, tmp_path / "a.jsonl", "--key-interval", "4")
    assert (status, records) == (2, [])
    assert "key_interval is for models with key frames" in capsys.readouterr().err
