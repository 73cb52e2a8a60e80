from __future__ import annotations

import http.client
import socket
import threading
import time

import cv2
import numpy as np
import pytest
from pipeline_fakes import number_of, picture, results_of
from sink_servers import PATIENCE_S, wait_for

from runtime.contract.errors import SinkError
from runtime.pipeline.sinks import FrameResult
from runtime.pipeline.sinks.mjpeg import MjpegSink, parse_address
from runtime.pipeline.sources import Frame

JPEG_ERROR = 8  # of a picture of one colour


class Feeder:
    """Writes the same pictures again and again, as a live run does."""

    def __init__(self, sink, names=("numbered",), number=40):
        self.sink, self.names, self.number = sink, names, number
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        index = 0
        while not self.is_over.is_set():
            for name in self.names:
                image = picture(self.number + 50 * self.names.index(name))
                frame = Frame(image, index, index / 30, 0.0, 0.0, name)
                self.sink.write(FrameResult(frame, [], 0.0))
            index += 1
            time.sleep(0.002)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.is_over.set()
        self.thread.join()


@pytest.fixture
def mjpeg():
    sink = MjpegSink("0")
    yield sink
    sink.close()


def get(sink, path):
    connection = http.client.HTTPConnection("127.0.0.1", sink.port, timeout=PATIENCE_S)
    connection.request("GET", path)
    return connection.getresponse()


def read_part(response) -> np.ndarray:
    """The next picture of a stream."""
    assert response.readline().startswith(b"--")
    fields = {}
    while line := response.readline().strip():
        name, _, value = line.decode().partition(":")
        fields[name] = value.strip()
    data = response.read(int(fields["Content-Length"]))
    response.readline()
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_mjpeg_streams_pictures(mjpeg):
    with Feeder(mjpeg):
        response = get(mjpeg, "/stream.mjpg")
        assert response.getheader("Content-Type").startswith("multipart/x-mixed-replace")
        pictures = [read_part(response) for _ in range(5)]
        response.close()
    assert all(abs(number_of(image) - 40) < JPEG_ERROR for image in pictures)


def test_mjpeg_tells_sources_apart(mjpeg):
    with Feeder(mjpeg, names=("left", "a/b ü")):
        right = get(mjpeg, "/frame.jpg?source=a%2Fb%20%C3%BC").read()
        first = get(mjpeg, "/frame.jpg").read()
        page = get(mjpeg, "/").read().decode()
    numbers = [
        number_of(cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_COLOR))
        for each in (first, right)
    ]
    assert np.allclose(numbers, [40, 90], atol=JPEG_ERROR)
    assert "left" in page
    assert "source=a%2Fb%20%C3%BC" in page


@pytest.mark.parametrize("path", ["/other", "/../etc/passwd", "/stream.mjpg?source=none"])
def test_mjpeg_has_nothing_else(mjpeg, path, monkeypatch):
    monkeypatch.setattr("runtime.pipeline.sinks.mjpeg.FRAME_WAIT_S", 0.05)
    with Feeder(mjpeg):
        assert get(mjpeg, path).status == 404


def test_mjpeg_encodes_only_while_someone_looks(mjpeg, monkeypatch):
    num_encoded = []
    encode = cv2.imencode
    monkeypatch.setattr(cv2, "imencode", lambda *args: num_encoded.append(1) or encode(*args))
    for result in results_of(20):
        mjpeg.write(result)
    assert not num_encoded
    with Feeder(mjpeg):
        assert get(mjpeg, "/frame.jpg").status == 200
        wait_for(lambda: mjpeg._board.num_viewers == 0)
    assert num_encoded


def test_viewer_that_takes_nothing_holds_up_neither_the_run_nor_others(mjpeg, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    monkeypatch.setitem(Feeder.__init__.__globals__, "picture", lambda number: noise)
    with Feeder(mjpeg) as feeder:
        stuck = socket.create_connection(("127.0.0.1", mjpeg.port))
        stuck.sendall(b"GET /stream.mjpg HTTP/1.0\r\n\r\n")
        wait_for(lambda: mjpeg._board.num_viewers == 1)
        response = get(mjpeg, "/stream.mjpg")
        for _ in range(30):
            assert read_part(response).shape == (480, 640, 3)
        response.close()
        assert feeder.thread.is_alive()
        stuck.close()


def test_mjpeg_has_no_more_viewers_than_it_can_serve(mjpeg, monkeypatch):
    monkeypatch.setattr("runtime.pipeline.sinks.mjpeg.MOST_VIEWERS", 1)
    with Feeder(mjpeg):
        first = get(mjpeg, "/stream.mjpg")
        read_part(first)
        assert get(mjpeg, "/stream.mjpg").status == 503
        first.close()


def test_mjpeg_says_that_the_port_is_taken(mjpeg):
    with pytest.raises(SinkError, match="Address already in use"):
        MjpegSink(str(mjpeg.port))


def test_mjpeg_is_for_this_machine_unless_a_host_is_given():
    assert parse_address("8080") == ("127.0.0.1", 8080)
    assert parse_address("0.0.0.0:8080") == ("0.0.0.0", 8080)
    assert parse_address("[::]:8080") == ("::", 8080)


@pytest.mark.parametrize("address", ["", "host", "host:", "8080x", "70000", "-1"])
def test_mjpeg_refuses_what_is_no_address(address):
    with pytest.raises(SinkError, match="expected PORT or HOST:PORT"):
        parse_address(address)


def test_mjpeg_leaves_no_thread_behind():
    before = threading.active_count()
    sink = MjpegSink("0")
    with Feeder(sink):
        response = get(sink, "/stream.mjpg")
        read_part(response)
        sink.close()
        response.close()
    wait_for(lambda: threading.active_count() <= before)
