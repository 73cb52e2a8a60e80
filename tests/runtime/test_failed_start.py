"""A run that does not start leaves earlier results as they were; one that ends badly says so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import InputGeometry, paint, write_tiny_bundle

from runtime import run_video, video_outputs
from runtime.contract.errors import SinkError, run_script
from runtime.pipeline.sinks import FrameResult
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.pipeline.sources import Frame
from runtime.video_options import names_of

ROOT = Path(__file__).resolve().parents[2]
BACKEND = ("--backend", "onnxruntime")
NUM_FRAMES = 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return write_tiny_bundle(folder, geometry=InputGeometry(96, 128), num_samples=0)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for name in ("left", "right"):
        sink = VideoFileSink(folder / f"{name}.mp4", size_wh=(128, 96), fps=25.0)
        for index in range(NUM_FRAMES):
            image = paint(96, 128, {0: (20, 20, 80, 80)})
            sink.write(FrameResult(Frame(image, index, index / 25, 0.0, 0.0, name), [], 0.0))
        sink.close()
    return [folder / "left.mp4", folder / "right.mp4"]


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def run(bundle, *arguments):
    words = [str(bundle), *map(str, arguments), *BACKEND]
    return run_script(lambda: run_video.main(words))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.exists()}


def outputs_in(folder):
    files = {"--json": "a.jsonl", "--coco": "a.json", "--out": "{source}.mp4"}
    return [word for option, name in files.items() for word in (option, folder / name)]


def fill(folder):
    for name in ("a.jsonl", "a.json", "a.images.json", "left.mp4", "right.mp4"):
        (folder / name).write_text(f"earlier results in {name}")


@pytest.mark.parametrize("was_there", [True, False])
@pytest.mark.parametrize("failing", ["mjpeg", "rtsp"])
def test_network_output_that_cannot_be_opened_leaves_all_files_as_they_were(
    bundle, films, tmp_path, taken_port, capsys, failing, was_there
):
    if was_there:
        fill(tmp_path)
    before = contents(tmp_path)
    wrong = {"mjpeg": ("--mjpeg", taken_port), "rtsp": ("--rtsp-out", "ftp://x/{source}")}
    sources = [word for film in films for word in ("--source", film)]
    assert run(bundle, *sources, *outputs_in(tmp_path), *wrong[failing]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("error", [SinkError, RuntimeError, KeyboardInterrupt])
def test_second_video_that_cannot_be_opened_closes_the_first_and_removes_what_is_new(
    bundle, films, tmp_path, monkeypatch, error
):
    fill(tmp_path)
    (tmp_path / "left.mp4").unlink()
    before = contents(tmp_path)
    opened = []

    def open_first_alone(path, **about):
        if opened:
            raise error("no more")
        opened.append(VideoFileSink(path, **about))
        return opened[0]

    monkeypatch.setattr(video_outputs, "open_video_sink", open_first_alone)
    sources = [word for film in films for word in ("--source", film)]
    words = [str(word) for word in (bundle, *sources, *outputs_in(tmp_path), *BACKEND)]
    with pytest.raises(error, match="no more"):
        run_video.main(words)
    assert opened[0]._is_closed
    assert contents(tmp_path) == before


@pytest.mark.parametrize("failing", ["right.mp4", "a.jsonl"])
def test_file_that_cannot_be_opened_leaves_the_others_as_they_were(
    bundle, films, tmp_path, capsys, failing
):
    """Refused by the system when it is opened, not by the checks before."""
    fill(tmp_path)
    (tmp_path / failing).unlink()
    (tmp_path / failing).symlink_to(tmp_path / "no folder" / "file")
    before = contents(tmp_path)
    sources = [word for film in films for word in ("--source", film)]
    assert run(bundle, *sources, *outputs_in(tmp_path)) == 2
    assert f"{failing} cannot be opened: No such file" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_link_to_a_file_that_is_not_there_stays_a_link(
    bundle, films, tmp_path, monkeypatch, taken_port
):
    link, target = tmp_path / "a.mp4", tmp_path / "target.mp4"
    link.symlink_to(target)

    def fail(path, **options):
        assert target.exists()
        raise SinkError("no lines")

    monkeypatch.setattr(video_outputs, "JsonLinesSink", fail)
    outputs = ("--out", link, "--json", tmp_path / "a.jsonl")
    assert run(bundle, "--source", films[0], *outputs) == 2
    assert link.is_symlink()
    assert not target.exists()


# --- closed streams


def test_results_for_a_closed_standard_output_are_refused_in_one_line(
    bundle, films, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert run(bundle, "--source", films[0], "--json", "-") == 2
    assert "standard output, which is closed" in capsys.readouterr().err


def test_words_for_a_closed_standard_error_do_not_get_between_the_results(
    bundle, films, monkeypatch, capfd
):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        assert run(bundle, "--source", films[0], "--json", "-") == 0
        assert run(bundle, "--source", films[0], "--json", "a.gif") == 2
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == NUM_FRAMES
    assert all(line.startswith("{") for line in lines)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes descriptors")
def test_file_does_not_get_the_number_of_a_closed_stream(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from runtime.contract.errors import run_script
def main():
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    os.write(2, b"a library speaks")
    return 0 if file > 2 else 1
sys.exit(run_script(main))
"""
    words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    done = subprocess.run([*words, str(tmp_path / "a")], timeout=120, check=False)
    assert done.returncode == 0
    assert (tmp_path / "a").read_bytes() == b""


# --- devices, bundles of one name, outputs that never worked


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no /dev/null on this system")
def test_json_lines_may_go_to_a_device(bundle, films):
    assert run(bundle, "--source", films[0], "--json", "/dev/null") == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_coco_results_do_not_take_the_place_of_a_device(bundle, films, capsys):
    assert run(bundle, "--source", films[0], "--coco", "/dev/full") == 2
    assert "expected one of .json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bundles", "names"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["a/net", "b/net", "other"], ["a/net", "b/net", "other"]),
        (["x/a/net", "y/a/net/", "b/net"], ["x/a/net", "y/a/net", "b/net"]),
    ],
    ids=["differ", "one name", "two parts alike"],
)
def test_bundles_are_told_apart_by_as_much_of_their_paths_as_is_needed(bundles, names):
    assert names_of(bundles) == names


def test_one_bundle_twice_is_refused_in_one_line(bundle, films, capsys):
    also = ("--also", "runs/a", "--also", "runs/b/../a/")
    assert run(bundle, "--source", films[0], *also) == 2
    assert "is given twice; expected different bundles" in capsys.readouterr().err


def test_bundles_of_one_name_all_give_results(bundle, films, tmp_path):
    import json
    import shutil

    others = [shutil.copytree(bundle, tmp_path / name / "net") for name in "ab"]
    also = [word for other in others for word in ("--also", other)]
    lines = tmp_path / "a.jsonl"
    assert run(bundle, "--source", films[0], *also, "--json", lines) == 0
    assert set(json.loads(lines.read_text().splitlines()[0])["also"]) == {"a/net", "b/net"}


@pytest.mark.parametrize("way", [(), ("--sequential",)], ids=["overlap", "sequential"])
@pytest.mark.parametrize("scheme", ["http", "mqtt"])
def test_output_that_took_nothing_makes_the_exit_status_2(
    bundle, films, tmp_path, capsys, scheme, way
):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server, lines = f"{scheme}://127.0.0.1:{port}/a", tmp_path / "a.jsonl"
    words = ("--webhook" if scheme == "http" else "--mqtt", server, "--json", lines)
    assert run(bundle, "--source", films[0], *words, *way) == 2
    assert len(lines.read_text().splitlines()) == NUM_FRAMES
    end = capsys.readouterr().err.splitlines()[-1]
    assert end.startswith(f"error: output {server} took none of {NUM_FRAMES} results")
