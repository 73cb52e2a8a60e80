"""Pictures of the web page: made only for who looks, once each, and never waited for."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading

import cv2
import numpy as np
import pytest
from pipeline_fakes import number_of, picture, results_of
from sink_servers import wait_for
from tiny_bundle import InputGeometry, write_tiny_bundle
from web_run import SIZE_WH, Camera, WebRun

from runtime.pipeline.sinks import FrameResult
from runtime.pipeline.sources import Frame
from runtime.web import board as board_module
from runtime.web import handlers, push
from runtime.web.board import Board, WebSink

JPEG_ERROR = 8  # of a picture of one colour
BLUE_EDGE_XY = (50, 20)  # a pixel of the box that is drawn


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return write_tiny_bundle(folder, geometry=InputGeometry(96, 128), num_samples=0)


@pytest.fixture(scope="module")
def run(bundle):
    with WebRun(bundle, [Camera("left"), Camera("a/b ü")]) as run:
        yield run


def decode(data) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def read_part(response) -> np.ndarray:
    """The next picture of a stream."""
    line = response.readline()
    assert line.strip() == b"--kestrel-frame", line
    fields = {}
    while line := response.readline().strip():
        name, _, value = line.decode().partition(": ")
        fields[name] = value
    assert fields["Content-Type"] == "image/jpeg"
    data = response.read(int(fields["Content-Length"]))
    assert response.readline() == b"\r\n"
    return decode(data)


def is_annotated(image) -> bool:
    """Whether the box around the blue rectangle is drawn: its colour is not the rectangle's."""
    x, y = BLUE_EDGE_XY
    return image.shape[1::-1] == SIZE_WH and bool(image[y - 1 : y + 2, x, 2].max() > 150)


def drawn(results):
    """Results as the pipeline hands them on when it has drawn them."""
    for result in results:
        result.times_ms["draw"] = 1.0
        yield result


def result_of(number, name="numbered"):
    frame = Frame(picture(number), number, number / 25, 0.0, 0.1, name)
    return FrameResult(frame, [], 0.5, {"draw": 1.0})


# --- the board


@pytest.fixture
def is_always_seen(monkeypatch):
    """Who has asked once is taken to look for ever, however slow this machine is."""
    monkeypatch.setattr(board_module, "LOOKING_S", 1e9)


def on_a_loop(work):
    """Run `work(board)` on an event loop, as the server does."""

    async def whole():
        board = Board(["numbered"])
        board.bind(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(work(board), 60)
        finally:
            board.close()

    return asyncio.run(whole())


def test_many_viewers_get_a_picture_that_is_encoded_once(monkeypatch):
    encoded = []
    encode = board_module.encode_jpeg
    monkeypatch.setattr(
        board_module, "encode_jpeg", lambda image: encoded.append(1) or encode(image)
    )

    async def work(board):
        viewers = [asyncio.ensure_future(board.next("numbered", 0, 60)) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.to_thread(board.put, result_of(40))
        return await asyncio.gather(*viewers)

    found = on_a_loop(work)
    assert len(encoded) == 1
    assert {number for number, _ in found} == {1}
    assert {abs(number_of(decode(jpeg)) - 40) < JPEG_ERROR for _, jpeg in found} == {True}


def test_viewer_gets_the_newest_picture_when_it_is_ready(is_always_seen):
    async def work(board):
        board.put(result_of(10))
        first = await board.next("numbered", 0, 60)
        for number in range(60, 200, 20):
            board.put(result_of(number))
        return first, await board.next("numbered", first[0], 60)

    (one, _), (last, jpeg) = on_a_loop(work)
    assert (one, last) == (1, 8)
    assert abs(number_of(decode(jpeg)) - 180) < JPEG_ERROR


def test_picture_that_is_being_encoded_is_not_written_over(is_always_seen, monkeypatch):
    begun, goes_on = threading.Event(), threading.Event()
    encode = board_module.encode_jpeg

    def encode_slowly(image):
        begun.set()
        assert goes_on.wait(60)
        return encode(image)

    monkeypatch.setattr(board_module, "encode_jpeg", encode_slowly)

    async def work(board):
        board.put(result_of(10))
        viewer = asyncio.ensure_future(board.next("numbered", 0, 60))
        await asyncio.to_thread(begun.wait, 60)
        for number in range(100, 140):
            board.put(result_of(number))
        goes_on.set()
        return await viewer

    _, jpeg = on_a_loop(work)
    assert abs(number_of(decode(jpeg)) - 10) < JPEG_ERROR


def test_pictures_that_nobody_takes_need_no_new_memory(is_always_seen):
    async def work(board):
        await board.next("numbered", 0, 0)
        places = set()
        for number in range(50):
            board.put(result_of(number))
            image = board.last("numbered").image_bgr
            places.add(image.__array_interface__["data"][0])
        return board.last("numbered").number, places

    number, places = on_a_loop(work)
    assert number == 50
    assert len(places) <= 3


def test_undrawn_pictures_are_not_shown():
    async def work(board):
        for result in results_of(3):
            board.put(result)
        return await board.next("numbered", 0, 0.01), board.last("numbered")

    found, last = on_a_loop(work)
    assert found is None
    assert last.age_ms == 1.5


def test_nobody_waits_once_it_is_over():
    async def work(board):
        viewer = asyncio.ensure_future(board.next("numbered", 0, 1e6))
        await asyncio.sleep(0)
        board.close()
        return await viewer

    assert on_a_loop(work) is None


def test_pictures_are_drawn_once_a_second_when_nobody_looks(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(board_module, "monotonic", lambda: now[0])
    board = Board(["numbered", "silent"])
    sink = WebSink(board, "here")
    kept = []
    for number in range(50):
        now[0] = 100 + number / 10
        if sink.wants_picture:
            kept.append(number)
        result = result_of(number)
        if not sink.wants_picture:
            result.times_ms.clear()
        sink.write(result)
    # A source's first picture, then those whose turn was found due by the result before.
    assert kept == [0, 11, 22, 33, 44]
    asyncio.run(board.next("numbered", 0, 0))
    sink.write(result_of(50))
    assert sink.wants_picture
    now[0] += board_module.LOOKING_S
    sink.write(result_of(51))  # it was kept: the client asked, and has not come back
    assert not sink.wants_picture


# --- over HTTP


def test_stream_shows_annotated_pictures(run):
    response = run.open_stream()
    assert response.getheader("Content-Type").startswith("multipart/x-mixed-replace; boundary=")
    assert all(is_annotated(read_part(response)) for _ in range(4))
    wait_for(lambda: run.page.board.num_viewers == 1)
    assert run.get("/api/state").json["clients"] == 1
    response.close()
    wait_for(lambda: run.page.board.num_viewers == 0)


@pytest.mark.parametrize("source", ["left", "a/b ü"])
def test_snapshot_shows_the_newest_picture_and_has_a_files_name(run, source):
    from urllib.parse import quote

    answer = run.get(f"/frame.jpg?source={quote(source, safe='')}&save=1")
    assert answer.status == 200
    assert is_annotated(decode(answer.body))
    name = answer.headers["Content-Disposition"]
    assert name.startswith('attachment; filename="kestrel_')
    assert name.isascii()
    assert "Content-Disposition" not in run.get("/frame.jpg").headers


def test_snapshot_of_a_source_that_stopped_is_its_last_picture(bundle, monkeypatch):
    monkeypatch.setattr(handlers, "NEWER_WAIT_S", 0.05)
    camera = Camera()
    with WebRun(bundle, [camera]) as run:
        wait_for(lambda: run.page.board.last("left").number > 0)
        camera.gate.clear()
        assert is_annotated(decode(run.get("/frame.jpg").body))


def test_snapshot_of_a_source_that_gave_nothing_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(handlers, "NEWER_WAIT_S", 0.05)
    monkeypatch.setattr(handlers, "FRAME_WAIT_S", 0.05)
    camera = Camera()
    camera.gate.clear()
    with WebRun(bundle, [camera]) as run:
        answer = run.get("/frame.jpg")
        assert (answer.status, answer.json) == (503, {"error": "no picture came"})


def test_stream_without_a_name_follows_the_shown_source(run):
    run.put("/api/source", {"name": "left"})
    board = run.page.board
    response = run.open_stream()
    read_part(response)
    assert (board.last("left").num_viewers, board.last("a/b ü").num_viewers) == (1, 0)
    run.put("/api/source", {"name": "a/b ü"})
    while board.last("a/b ü").num_viewers == 0:
        read_part(response)
    assert board.last("left").num_viewers == 0
    response.close()
    run.put("/api/source", {"name": "left"})


def test_there_are_no_more_viewers_than_stated(run, monkeypatch):
    wait_for(lambda: run.page.board.num_viewers == 0)
    streams = []
    for _ in range(handlers.MOST_VIEWERS):
        streams.append(run.open_stream())
        read_part(streams[-1])
    for path in ("/stream.mjpg", "/frame.jpg"):
        answer = run.get(path)
        assert answer.status == 503
        assert answer.json["error"].startswith("16 clients have the pictures already")
    assert run.get("/api/state").json["clients"] == handlers.MOST_VIEWERS
    for stream in streams:
        stream.close()
    wait_for(lambda: run.page.board.num_viewers == 0)
    assert run.get("/frame.jpg").status == 200


def test_client_that_takes_nothing_holds_up_nobody_and_is_let_go(bundle, monkeypatch):
    monkeypatch.setattr(push, "PATIENCE_S", 0.5)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    monkeypatch.setattr("web_run.paint", lambda *_: noise)
    with WebRun(bundle) as run:
        stuck = socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", run.port))
        stuck.sendall(f"GET /stream.mjpg HTTP/1.1\r\nHost: localhost:{run.port}\r\n\r\n".encode())
        wait_for(lambda: run.page.board.num_viewers == 1)
        other = run.open_stream()
        num_before = len(run.results.rows)
        for _ in range(5):
            assert read_part(other).shape == (480, 640, 3)
        assert len(run.results.rows) > num_before
        other.close()
        wait_for(lambda: run.page.board.num_viewers == 0)
        wait_for(lambda: len(run.server.connections) == 0)
        stuck.close()


def test_server_ends_in_time_while_clients_look(bundle):
    with WebRun(bundle) as run:
        streams = [run.open_stream(), run.open_stream("/api/events")]
        read_part(streams[0])
        thread = run.server._thread
    assert not thread.is_alive()
    for stream in streams:
        with contextlib.suppress(ConnectionError, http.client.IncompleteRead):
            stream.read()  # comes to an end
