"""With what Debian's packages bring: an RTSP server, and an OpenCV that has GStreamer."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from calling import call
from fake_camera import read_frame, wait_for

from benchmarks.measure.numbered_pictures import read_number
from benchmarks.measure.rtsp_process import PACKAGES, SYSTEM_PYTHON, RtspServer, has_rtsp_server
from runtime.contract.errors import SourceError
from runtime.pipeline.sources import open_source

ROOT = Path(__file__).resolve().parents[2]
LONG_S = 60.0


def run(code: str) -> subprocess.CompletedProcess:
    """A program of the system's Python, which knows this repository alone."""
    return subprocess.run(
        [SYSTEM_PYTHON, "-c", code], cwd=ROOT, timeout=LONG_S, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


@functools.cache
def has_opencv() -> bool:
    code = "import cv2; assert 'GStreamer:                   YES' in cv2.getBuildInformation()"
    return SYSTEM_PYTHON.exists() and run(code).returncode == 0


@pytest.fixture
def serve():
    if not has_rtsp_server():
        pytest.skip(f"no RTSP server: apt-get install {PACKAGES}")
    servers = []

    def serve(*options):
        servers.append(RtspServer(*options))
        return servers[-1]

    yield serve
    for server in servers:
        server.kill()


@pytest.fixture
def needs_opencv_with_gstreamer():
    if not has_opencv():
        pytest.skip("no OpenCV with GStreamer: apt-get install python3-opencv")


def numbers(source, count):
    return [read_number(read_frame(source).image_bgr) for _ in range(count)]


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("codec", ["h264", "jpeg"])
def test_rtsp_is_read_over_both_transports(serve, transport, codec):
    server = serve("--codec", codec)
    with open_source(f"{server.url}#transport={transport}") as source:
        found = numbers(source, 20)
        assert (source.size_wh, source.is_live) == ((320, 240), True)
        assert source.fps == pytest.approx(25.0, abs=1.0)
    assert all(later > earlier for earlier, later in itertools.pairwise(found))


def test_rtsp_server_that_is_killed_comes_back_with_another_size(serve):
    server = serve()
    with open_source(server.url) as source:
        found = numbers(source, 10)
        server.kill()
        server.options = ("--size", "160x120")
        server.start()
        wait_for(lambda: read_frame(source).image_bgr.shape == (120, 160, 3))
        found += numbers(source, 10)
        assert source.num_reconnects == 1
    assert all(later > earlier for earlier, later in itertools.pairwise(found))


def test_rtsp_address_without_a_stream_is_an_error_in_the_servers_words(serve):
    with pytest.raises(SourceError, match="404"):
        open_source(serve().url + "/nothing")


@pytest.mark.slow
@pytest.mark.usefixtures("serve")
def test_server_that_dies_and_returns_costs_no_thread_and_gives_nothing_twice(tmp_path):
    record = tmp_path / "record.json"
    done = call(
        "benchmarks.reconnect", "--times", 3, "--longest-away", 2, "--within", 20, "--out", record
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(record.read_text())["repeated"] == 0


@pytest.mark.usefixtures("needs_opencv_with_gstreamer")
def test_pipeline_of_gstreamer_is_a_live_source_that_starts_again_when_it_ends():
    done = run("""
from runtime.pipeline.sources import open_source
from runtime.pipeline.sources.base import NoFrameYet
pipeline = "videotestsrc is-live=true num-buffers=5 ! video/x-raw,width=64,height=48"
with open_source("gst:" + pipeline) as source:
    print(source.size_wh, source.is_live)
    while source.num_reconnects < 2:
        try:
            frame = source.read()
        except NoFrameYet:
            continue
        assert frame.image_bgr.shape == (48, 64, 3) and frame.image_bgr.max() > 100
        assert frame.index == source.num_decoded + source.num_overtaken - 1
print("done")
""")
    assert done.stdout.splitlines() == ["(64, 48) True", "done"], done.stderr


# OpenCV 4.6 hangs in opening a pipeline of elements that are not there.
@pytest.mark.slow  # it is left behind after seconds
@pytest.mark.usefixtures("needs_opencv_with_gstreamer")
@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("gst:videotestsrc ! nonsense", "(GStreamer does not start it|no answer for)"),
        ("csi://0?open-timeout=1", "(GStreamer does not start it|no answer for)"),
        ("gst:videotestsrc ! identity sleep-time=60000000", "(it gives no more|no answer for)"),
    ],
    ids=["nonsense", "no Jetson", "silent"],
)
def test_pipeline_that_gives_nothing_is_an_error_of_one_line(uri, why):
    done = run(f"""
from runtime.pipeline.sources import gstreamer, open_source
from runtime.pipeline.sources.live_options import LiveOptions
gstreamer.LiveOptions = lambda: LiveOptions(open_timeout_s=1.0, stall_timeout_s=1.0)
try:
    open_source({uri!r})
except ValueError as error:
    print(error)
""")
    assert re.match(f"source .* cannot be opened: {why}", done.stdout), done.stderr
    assert len(done.stdout.splitlines()) == 1
