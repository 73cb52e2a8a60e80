"""The script that runs videos, with tracks and counters."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pipeline_fakes import CollectingSink, NumberedSource, NumberPredictor
from tiny_bundle import CLASSES, InputGeometry, paint, write_tiny_bundle

from runtime import run_video
from runtime.contract.errors import run_script
from runtime.pipeline.sinks import FrameResult
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.pipeline.sources import Frame
from runtime.pipeline.stages import Pipeline

NUM_FRAMES = 30
BLUE, RED = CLASSES[0], CLASSES[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return write_tiny_bundle(folder, geometry=InputGeometry(96, 128), num_samples=0)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A blue rectangle that moves right, four pixels a frame, and a red one that stands."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_film(path, step=4)
    return path


def write_film(path, step):
    sink = VideoFileSink(path, size_wh=(256, 192), fps=25.0)
    for index in range(NUM_FRAMES):
        left = 60 + step * (index - NUM_FRAMES // 2)
        image = paint(192, 256, {0: (left, 20, left + 40, 60), 2: (150, 100, 230, 160)})
        sink.write(FrameResult(Frame(image, index, index / 25, 0.0, 0.0, "film"), [], 0.0))
    sink.close()


def run(*arguments):
    return run_script(lambda: run_video.main([*map(str, arguments), "--backend", "onnxruntime"]))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def ids_of(records):
    return {(d["name"], d["track_id"]) for record in records for d in record["detections"]}


@pytest.mark.parametrize("way", [(), ("--sequential",)], ids=["overlap", "sequential"])
def test_tracks_and_counts_are_in_every_line_and_at_the_end(bundle, film, tmp_path, capsys, way):
    lines = tmp_path / "a.jsonl"
    places = ("--line", "80,192,80,0:gate", "--zone", "90,0,200,0,200,192,90,192:middle")
    assert run(bundle, "--source", film, "--json", lines, "--track", *places, *way) == 0
    records = read(lines)
    assert len(ids_of(records)) == 2  # each thing has one id
    crossed = [r["frame"] for r in records if r["lines"][0]["events"]]
    assert crossed == [16]  # the middle of the box is 2 px, its margin, beyond 80 after frame 15
    assert records[-1]["lines"][0]["to_right"] == {BLUE: 1}
    assert records[0]["zones"][0]["inside"] == {RED: 1}
    assert records[-1]["zones"][0]["inside"] == {RED: 1, BLUE: 1}
    told = f"line gate: 1 {BLUE} to the right, 0 to the left; zone middle: 1 {BLUE}, 1 {RED} inside"
    assert told in capsys.readouterr().out


def test_a_line_alone_is_enough_to_track(bundle, film, tmp_path):
    lines = tmp_path / "a.jsonl"
    assert run(bundle, "--source", film, "--json", lines, "--line", "80,192,80,0") == 0
    assert {track_id for _, track_id in ids_of(read(lines))} == {1, 2}


def test_without_tracking_results_are_as_before(bundle, film, tmp_path):
    lines = tmp_path / "a.jsonl"
    assert run(bundle, "--source", film, "--json", lines) == 0
    assert "track_id" not in read(lines)[0]["detections"][0]
    assert "lines" not in read(lines)[0]


def test_each_of_several_sources_has_tracks_and_counts_of_its_own(bundle, film, tmp_path, capsys):
    backwards, lines = tmp_path / "backwards.mp4", tmp_path / "a.jsonl"
    write_film(backwards, step=-4)
    sources = ("--source", film, "--source", backwards)
    assert run(bundle, *sources, "--json", lines, "--line", "80,192,80,0:gate") == 0
    records = read(lines)
    for source, figures in ((film, ({BLUE: 1}, {})), (backwards, ({}, {BLUE: 1}))):
        mine = [record for record in records if record["source"] == str(source)]
        assert [record["frame"] for record in mine] == list(range(NUM_FRAMES))
        assert {track_id for _, track_id in ids_of(mine)} == {1, 2}
        last = mine[-1]["lines"][0]
        assert (last["to_right"], last["to_left"]) == figures
    told = capsys.readouterr().out
    assert f"film.mp4: line gate: 1 {BLUE} to the right, 0 to the left" in told
    assert f"backwards.mp4: line gate: 0 to the right, 1 {BLUE} to the left" in told


def test_counts_are_an_event_of_the_json_log(bundle, film):
    arguments = ("--source", film, "--log", "json", "--line", "80,192,80,0:gate")
    command = [sys.executable, run_video.__file__, bundle, *arguments, "--backend", "onnxruntime"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    (counts,) = (event for event in events if event.get("event") == "counts")
    assert counts["source"] == str(film)
    assert counts["lines"][0]["to_right"] == {BLUE: 1}


def test_bundles_beside_the_first_have_ids_of_their_own(bundle, film, tmp_path):
    lines = tmp_path / "a.jsonl"
    assert run(bundle, "--source", film, "--also", bundle, "--json", lines, "--track") == 0
    record = read(lines)[-1]
    (also,) = record["also"].values()
    ids = [d["track_id"] for each in (record, also) for d in each["detections"]]
    assert sorted(ids) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--line", "1,2,3"), "3 numbers; expected 4"),
        (("--zone", "1,2,3,4"), "expected two for each of 3 or more corners"),
        (("--line", "1,2,3,4:a", "--line", "5,6,7,8:a"), "'a' is there 2 times"),
    ],
    ids=["line", "zone", "names"],
)
def test_what_cannot_be_counted_is_refused_before_anything_is_loaded(film, capsys, option, words):
    assert run("no bundle", "--source", film, *option) == 2
    assert words in capsys.readouterr().err


def test_tracks_begin_anew_after_a_reconnect():
    class Reconnecting(NumberedSource):
        def read(self):
            self.num_reconnects = 1 if self.num_decoded >= 2 else 0
            return super().read()

    class Remembering(NumberPredictor):
        def restart(self, reason="asked"):
            self.told.append(reason)

    predictor = Remembering()
    Pipeline(Reconnecting(4), predictor, [CollectingSink()], is_sequential=True).run()
    assert predictor.told.count("reconnect") == 1
    assert predictor.told.index("reconnect") == 2
