from __future__ import annotations

import argparse
import json
import threading
import urllib.request

import pytest
from sink_servers import WebServer
from test_run_video import BACKEND, bundle, film, run_script  # noqa: F401 - fixtures

from runtime.contract.errors import SinkError
from runtime.pipeline.sinks.opening import (
    add_options,
    check_options,
    open_shared,
    open_streams,
)


def parse(*options, sources=("a.mp4",), also=None):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return argparse.Namespace(
        **vars(parser.parse_args(list(map(str, options)))), sources=sources, also=also
    )


def test_nothing_is_opened_unless_it_is_asked_for():
    args = parse()
    check_options(args, taken=[])
    assert list(open_shared(args, [1], lambda: None)) == []
    assert open_streams(args, []) == {}


@pytest.mark.parametrize(
    ("options", "about", "message"),
    [
        (("--coco", "a.txt"), {}, "expected one of .json"),
        (("--coco", "a.json"), {"also": ["b"]}, "results of one bundle"),
        (("--mjpeg", "here"), {}, "expected PORT or HOST:PORT"),
        (("--rtsp-out", "rtsp://u:pw@h/a"), {"sources": ("a", "b")}, "one stream for 2 sources"),
        (("--window",), {}, "--window"),
    ],
    ids=["coco-suffix", "coco-also", "mjpeg", "rtsp", "window"],
)
def test_output_that_cannot_be_is_refused_in_one_line(options, about, message, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(SinkError, match=message) as error:
        check_options(parse(*options, **about), taken=[])
    assert "\n" not in str(error.value)
    assert "pw" not in str(error.value)


def test_coco_results_do_not_replace_what_is_read(tmp_path):
    (tmp_path / "truth.json").write_text("[]")
    with pytest.raises(SinkError, match="read or written already"):
        check_options(parse("--coco", tmp_path / "truth.json"), taken=[tmp_path / "truth.json"])


def test_run_fills_coco_and_webhook_with_the_same_results(bundle, film, tmp_path):  # noqa: F811
    coco, lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    with WebServer() as server:
        options = ("--coco", coco, "--webhook", server.url, "--json", lines)
        done = run_script(bundle, "--source", film, *options, *BACKEND)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert server.records == records
    boxes = [found["box_xyxy"] for record in records for found in record["detections"]]
    entries = json.loads(coco.read_text())
    assert len(entries) == len(boxes) == 60
    for (x1, y1, x2, y2), entry in zip(boxes, entries, strict=True):
        assert entry["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.02)
    assert len(json.loads(coco.with_suffix(".images.json").read_text())) == 30


def test_server_that_is_away_ends_no_run_but_is_told_by_the_exit_status(
    bundle,  # noqa: F811
    film,  # noqa: F811
    tmp_path,
):
    lines = tmp_path / "a.jsonl"
    options = ("--webhook", "http://127.0.0.1:9/", "--json", lines)
    done = run_script(bundle, "--source", film, *options, *BACKEND)
    assert done.returncode == 2
    assert "error: output http://127.0.0.1:9/ took none of 30 results" in done.stderr
    assert len(lines.read_text().splitlines()) == 30
    assert "does not take results" in done.stderr
    assert "failed 30" in done.stdout


def test_annotated_frames_are_served_while_the_run_goes_on(bundle, film, tmp_path):  # noqa: F811
    """A file that is played often, and a browser that finds the address in what the run says."""
    import os
    import signal
    import subprocess

    from test_run_video import command

    run = subprocess.Popen(
        command(bundle, "--source", film, "--loops", 10**6, "--mjpeg", 0, *BACKEND),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    killer = threading.Timer(120, run.kill)
    killer.start()
    try:
        url = next(line.split()[-1] for line in run.stderr if line.startswith("annotated frames:"))
        with urllib.request.urlopen(f"{url}frame.jpg", timeout=60) as response:
            assert response.read(3) == b"\xff\xd8\xff"  # JPEG's first bytes
        os.kill(run.pid, signal.SIGTERM)
        run.stderr.read()
        assert run.wait(60) == 0
    finally:
        killer.cancel()
        run.kill()
        run.stderr.close()
