"""The script with its web page, as it is started from the shell."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sink_servers import PATIENCE_S
from tiny_bundle import InputGeometry, paint, write_tiny_bundle
from web_run import TOKEN

from runtime.pipeline.sinks import FrameResult
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.pipeline.sources import Frame

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "runtime" / "run_video.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return write_tiny_bundle(folder, geometry=InputGeometry(96, 128), num_samples=0)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    sink = VideoFileSink(path, size_wh=(256, 192), fps=25.0)
    for index in range(20):
        image = paint(192, 256, {0: (20, 20, 80, 80), 2: (150, 100, 230, 160)})
        sink.write(FrameResult(Frame(image, index, index / 25, 0.0, 0.0, "film"), [], 0.0))
    sink.close()
    return path


def start(*arguments, **environment):
    words = [sys.executable, str(SCRIPT), *map(str, arguments), "--backend", "onnxruntime"]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def read_url(process):
    """The address that the script tells, as JSON lines do."""
    for line in process.stderr:
        found = json.loads(line)
        if found.get("event") == "web":
            return found["url"]
    raise AssertionError(process.stdout.read())


def ask(port, path, method="GET", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.read()


def test_script_serves_the_page_until_it_is_stopped(bundle, film, tmp_path):
    process = start(
        bundle, "--source", film, "--loops", 1_000_000, "--web", 0, "--log", "json",
        "--web-bundle", bundle, KESTREL_WEB_TOKEN="",
    )  # fmt: skip
    try:
        url = read_url(process)
        assert url.startswith("http://127.0.0.1:")
        assert "token" not in url
        port = int(url.rstrip("/").rpartition(":")[2])
        assert b"<!doctype html>" in ask(port, "/")[1]
        status, text = ask(port, "/api/state")
        assert status == 200
        assert json.loads(text)["bundle"]["name"] == "tiny"
        stream = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        stream.request("GET", "/stream.mjpg")
        assert stream.getresponse().read(1000)
    finally:
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, words
    summary = [json.loads(line) for line in words.splitlines()][-1]
    assert summary["event"] == "summary"
    assert summary["sinks"] == [{"target": url, "failed": 0}]
    assert "Traceback" not in words


def test_script_makes_a_token_for_other_addresses(bundle, film):
    process = start(
        bundle, "--source", film, "--loops", 1_000_000, "--web", "0.0.0.0:0", "--log", "json",
        KESTREL_WEB_TOKEN="",
    )  # fmt: skip
    try:
        url, _, token = read_url(process).partition("#token=")
        assert len(token) >= 32
        port = int(url.rstrip("/").rpartition(":")[2])
        assert ask(port, "/api/sources")[0] == 401
        assert ask(port, "/api/sources", Authorization=f"Bearer {token}")[0] == 200
        assert ask(port, "/api/sources", Authorization=f"Bearer {TOKEN}")[0] == 401
        named = {"Authorization": f"Bearer {token}", "Host": "rebound.example"}
        assert ask(port, "/api/sources", **named)[0] == 421
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


def test_port_that_is_taken_ends_the_start_and_writes_nothing(bundle, film, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        out = tmp_path / "a.jsonl"
        process = start(bundle, "--source", film, "--web", port, "--json", out)
        _, words = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert f"error: --web 127.0.0.1:{port} cannot be served: Address already in use" in words
    assert not out.exists()


def test_run_without_a_page_loads_no_web_framework(bundle, film):
    code = f"""
import sys
sys.modules["starlette"] = sys.modules["uvicorn"] = None
from runtime.run_video import main
sys.exit(main({[str(bundle), "--source", str(film), "--backend", "onnxruntime"]!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
