"""Several sources, opened at once."""

from __future__ import annotations

import json
import socket
import threading

import pytest
from fake_camera import LONG_S, FakeCamera, read_frame, wait_for
from pipeline_fakes import number_of, results_of
from tiny_bundle import InputGeometry, write_tiny_bundle

from runtime import run_video
from runtime.contract.errors import SourceError, run_script
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.pipeline.sources import Source
from runtime.pipeline.sources.base import SourceState
from runtime.pipeline.sources.live_options import LiveOptions
from runtime.pipeline.sources.opening import open_together
from runtime.pipeline.sources.reconnecting import ReconnectingSource


class Opened(Source):
    def __init__(self, name):
        super().__init__(name, fps=25.0, is_live=False)
        self.is_closed = False

    def read(self):
        return None

    def close(self):
        self.is_closed = True


def test_sources_are_opened_at_once_and_kept_in_their_order():
    both = threading.Barrier(2)  # passed only by two together

    def opener(name):
        both.wait(LONG_S)
        return Opened(name)

    sources = open_together([lambda: opener("a"), lambda: opener("b")])
    assert [source.name for source in sources] == ["a", "b"]


def test_error_is_raised_at_once_and_what_is_open_or_will_be_is_closed():
    let_go, is_open = threading.Event(), threading.Event()
    quick, slow = Opened("quick"), Opened("slow")

    def open_quick():
        is_open.set()
        return quick

    def open_slowly():
        let_go.wait(LONG_S)
        return slow

    def fail():
        is_open.wait(LONG_S)
        raise SourceError("no such file")

    with pytest.raises(SourceError, match="no such file"):
        open_together([open_slowly, open_quick, fail])
    wait_for(lambda: quick.is_closed)
    assert not slow.is_closed  # it was not waited for
    let_go.set()
    wait_for(lambda: slow.is_closed)


def test_camera_that_is_away_does_not_hold_up_one_that_is_there():
    here, away = FakeCamera(), FakeCamera()
    here.show(0)
    away.show(7)
    away.is_there = False
    options = LiveOptions(wait_s=LONG_S)
    openers = [
        lambda: ReconnectingSource("away", away.connect, options),
        lambda: ReconnectingSource("here", here.connect, options),
    ]
    first, second = open_together(openers)
    with first, second:
        assert (first.state, second.state) == (SourceState.RECONNECTING, SourceState.RUNNING)
        assert number_of(read_frame(second).image_bgr) == 0
        away.is_there = True
        assert number_of(read_frame(first).image_bgr) == 7


# --- the script


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return write_tiny_bundle(folder, geometry=InputGeometry(96, 128), num_samples=0)


@pytest.fixture
def film(tmp_path):
    sink = VideoFileSink(tmp_path / "film.mp4", size_wh=(64, 48), fps=25.0)
    for result in results_of(8):
        sink.write(result)
    sink.close()
    return tmp_path / "film.mp4"


@pytest.fixture
def away():
    """The address of a camera that is not there: nobody listens at its port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}/live"


def run(bundle, *words):
    words = [str(bundle), *map(str, words), "--backend", "onnxruntime"]
    return run_script(lambda: run_video.main(words))


def test_run_goes_on_without_a_camera_that_does_not_come(
    bundle, film, away, tmp_path, capsys, caplog
):
    caplog.set_level("INFO")
    lines = tmp_path / "found.jsonl"
    both = ("--source", f"{away}#wait=0.3", "--source", film)
    assert run(bundle, *both, "--json", lines, "--out", tmp_path / "{source}_out.mp4") == 2
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["frame"] for line in found] == list(range(8))
    said = capsys.readouterr()
    assert "1 of 2 sources failed" in said.err
    assert "did not come in 0.3 s" in said.out
    assert caplog.text.count("it joins the others when it comes") == 1
    assert "secret" not in said.out + said.err + caplog.text


@pytest.mark.parametrize("wrong", ["AWAY", "none.mp4", "camra:0", "AWAY#wait=soon"])
def test_run_does_not_start_with_a_source_that_cannot_be(bundle, film, away, tmp_path, wrong):
    lines = tmp_path / "found.jsonl"
    both = ("--source", film, "--source", wrong.replace("AWAY", away))
    assert run(bundle, *both, "--json", lines) == 2
    assert not lines.exists()


def test_source_given_twice_is_told_without_its_password(bundle, away, capsys):
    assert run(bundle, "--source", away, "--source", away) == 2
    said = capsys.readouterr().err
    assert "http://me:***@127.0.0.1" in said
    assert "secret" not in said


@pytest.mark.parametrize("uri", ["raw:-?size=64x48", "raw:?size=64x48", "stdin:?size=64x48"])
def test_standard_input_is_not_played_twice(bundle, capsys, uri):
    assert run(bundle, "--source", uri, "--loops", 2) == 2
    said = capsys.readouterr().err
    assert "is standard input, which cannot be played 2 times" in said
    assert said.count("\n") == 1
