"""Sources that an environment variable holds, and two runs into one file of JSON lines."""

from __future__ import annotations

import json

import pytest
from pipeline_fakes import results_of
from tiny_bundle import InputGeometry, write_tiny_bundle

from runtime import run_video
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.video_options import check_targets, parse, videos_of

CAMERA = "rtsp://user:s3cret@127.0.0.1:1/live"
NUM_FRAMES = 5


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    sink = VideoFileSink(path, size_wh=(64, 48), fps=25.0)
    for result in results_of(NUM_FRAMES):
        sink.write(result)
    sink.close()
    return path


def test_variable_gives_the_source_and_no_command_line_holds_it(monkeypatch):
    monkeypatch.setenv("KESTREL_TEST_GATE", CAMERA)
    args = parse(["bundle", "--source", "env:KESTREL_TEST_GATE", "--source", "0"])
    assert args.sources == [CAMERA, "0"]


@pytest.mark.parametrize("held", [None, ""], ids=["not set", "empty"])
def test_variable_that_holds_no_source_is_refused_in_one_line(held, monkeypatch, capsys):
    monkeypatch.delenv("KESTREL_TEST_GATE", raising=False)
    if held is not None:
        monkeypatch.setenv("KESTREL_TEST_GATE", held)
    with pytest.raises(SystemExit) as ended:
        parse(["bundle", "--source", "env:KESTREL_TEST_GATE"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'KESTREL_TEST_GATE', which is not set; expected one that holds a source" in line


def test_password_of_a_variable_is_shown_nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("KESTREL_TEST_GATE", CAMERA)
    words = ["bundle", "--source", "env:KESTREL_TEST_GATE", "--source", CAMERA]
    with pytest.raises(ValueError, match="given twice") as refused:
        check_targets(parse(words))
    out = tmp_path / "{source}.mp4"
    (video,) = videos_of(out, parse(words[:3]).sources)
    for said in (str(refused.value), str(video)):
        assert "127.0.0.1" in said
        assert "s3cret" not in said


def test_two_runs_with_a_variable_add_their_lines_to_one_file(monkeypatch, tmp_path, film):
    monkeypatch.setenv("KESTREL_TEST_FILM", str(film))
    bundle = write_tiny_bundle(tmp_path / "b", geometry=InputGeometry(96, 128), num_samples=0)
    lines = tmp_path / "a.jsonl"
    words = [str(bundle), "--source", "env:KESTREL_TEST_FILM", "--backend", "onnxruntime"]
    for is_kept in (False, True, False):
        more = ["--json", str(lines), *(["--json-append"] if is_kept else [])]
        assert run_video.main([*words, *more]) == 0
        found = [json.loads(line) for line in lines.read_text().splitlines()]
        times = 2 if is_kept else 1
        assert [each["frame"] for each in found] == [*range(NUM_FRAMES)] * times
        assert {each["source"] for each in found} == {str(film)}
