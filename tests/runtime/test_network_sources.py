from __future__ import annotations

import contextlib
import http.server
import importlib.util
import itertools
import threading
import time
from email.message import Message

import av
import numpy as np
import pytest
from fake_camera import LONG_S, read_frame, wait_for
from http_camera import HttpCamera, jpeg, part
from pipeline_fakes import number_of, picture, results_of

from benchmarks.measure.numbered_pictures import read_number
from runtime.contract.errors import SourceError
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.pipeline.sources import gstreamer, network, open_source
from runtime.pipeline.sources.base import SourceState


@pytest.fixture
def camera():
    camera = HttpCamera()
    yield camera
    camera.kill()


@pytest.fixture(params=["PyAV", "OpenCV"])
def library(request, monkeypatch):
    """Streams are read by the one and by the other."""
    if request.param == "OpenCV":
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *more: None if name == "av" else found(name)
        )
    return request.param


def numbers(source, count):
    return [read_number(read_frame(source).image_bgr) for _ in range(count)]


def rise(found):
    return all(later > earlier for earlier, later in itertools.pairwise(found))


@pytest.mark.usefixtures("library")
def test_mjpeg_over_http_is_a_live_source(camera):
    with open_source(camera.url + "#rate=50") as source:
        assert rise(numbers(source, 10))
        assert source.is_live
        assert source.size_wh == (64, 48)
        assert source.num_corrupt == 0
    wait_for(lambda: threading.active_count() < 10)


def test_mjpeg_has_the_rate_that_the_user_knows(camera):
    with open_source(camera.url + "#rate=50") as source:
        assert source.fps == 50.0  # the stream does not tell it


@pytest.mark.usefixtures("library")
def test_mjpeg_server_that_is_killed_and_restarted_gives_no_picture_twice(camera):
    with open_source(camera.url) as source:
        found = numbers(source, 5)
        before = threading.active_count()
        for _ in range(2):
            camera.kill()
            wait_for(lambda: _state(source) is SourceState.RECONNECTING)
            camera.start()
            found += numbers(source, 5)
        assert rise(found)
        assert source.num_reconnects == 2
        wait_for(lambda: threading.active_count() <= before)


def _state(source):
    """After a read, of which the pictures that are left from before are of no interest."""
    with contextlib.suppress(TimeoutError):
        source.read()
    return source.state


def test_size_may_change_in_mid_stream_and_over_a_restart(camera):
    with open_source(camera.url) as source:
        camera.size_wh = (128, 96)
        wait_for(lambda: read_frame(source).image_bgr.shape == (96, 128, 3))
        camera.kill()
        camera.size_wh = (32, 24)
        camera.start()
        wait_for(lambda: read_frame(source).image_bgr.shape == (24, 32, 3))
        assert source.size_wh == (64, 48)  # of the first frame


def test_picture_that_is_cut_off_is_not_handed_out(camera):
    whole = jpeg(0, (640, 480))
    with open_source(camera.url) as source:
        camera.script = [part(whole[: len(whole) // 2]), part(b"no picture"), part(b"")]
        wait_for(lambda: not camera.script)
        camera.size_wh = (128, 96)
        shapes = [read_frame(source).image_bgr.shape for _ in range(30)]
    assert set(shapes) <= {(48, 64, 3), (96, 128, 3)}
    assert source.num_corrupt >= 1


def test_pictures_of_a_camera_that_never_marks_their_end_are_taken(camera):
    camera.script = [part(jpeg(number).removesuffix(b"\xff\xd9")) for number in range(200)]
    with open_source(camera.url) as source:
        assert rise(numbers(source, 10))
        assert source.num_corrupt == 0


def test_bytes_behind_the_end_of_a_picture_do_no_harm(camera):
    camera.script = [part(jpeg(number) + bytes(5000)) for number in range(200)]
    with open_source(camera.url) as source:
        assert rise(numbers(source, 10))
        assert source.num_corrupt == 0


@pytest.mark.usefixtures("library")
def test_server_that_falls_silent_is_left_for_a_new_connection(camera):
    with open_source(camera.url + "#stall-timeout=0.5") as source:
        found = numbers(source, 3)
        camera.is_quiet = True
        wait_for(lambda: _state(source) is SourceState.RECONNECTING or camera.num_clients > 1)
        camera.is_quiet = False
        found += numbers(source, 3)
        assert rise(found)
        assert source.num_reconnects >= 1


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_server_that_does_not_answer_is_an_error_in_its_time(camera, scheme):
    camera.is_mute = True
    url = camera.url.replace("http", scheme)
    begun = time.monotonic()
    with pytest.raises(SourceError, match="cannot be opened") as error:
        open_source(url + "#open-timeout=0.5")
    assert time.monotonic() - begun < LONG_S / 2  # FFmpeg alone waits for ever, OpenCV 30 s
    assert "\n" not in str(error.value)


def test_refusal_is_told_in_the_servers_words(camera):
    with pytest.raises(SourceError, match="404 Not Found"):
        open_source(camera.url + "/nothing")
    camera.password = "secret"
    with pytest.raises(SourceError, match="401 Unauthorized"):
        open_source(camera.url)


@pytest.mark.usefixtures("library")
def test_password_is_sent_and_not_shown(camera):
    camera.password = "secret"
    with open_source(camera.url.replace("://", "://admin:secret@")) as source:
        assert read_frame(source).source == f"http://admin:***@127.0.0.1:{camera.port}/live"


def test_server_is_waited_for_when_asked(camera):
    url = camera.url + f"#wait={LONG_S:.0f}"
    camera.kill()
    threading.Timer(0.5, camera.start).start()
    with open_source(url) as source:
        assert rise(numbers(source, 3))
        assert source.num_reconnects == 0


@pytest.fixture
def server_url(tmp_path):
    """Of a web server of a folder's files."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def film_url(server_url, tmp_path):
    """A film of 40 numbered frames on a web server."""
    sink = VideoFileSink(tmp_path / "film.mp4", size_wh=(64, 48), fps=25.0)
    for result in results_of(40):
        sink.write(result)
    sink.close()
    return f"{server_url}/film.mp4"


@pytest.mark.usefixtures("library")
def test_file_on_a_web_server_is_read_to_its_end_every_frame_of_it(film_url, tmp_path):
    with open_source(film_url) as source:
        remote = list(source)
        assert not source.is_live
        assert source.state is SourceState.ENDED
    with open_source(str(tmp_path / "film.mp4")) as source:
        local = list(source)
    assert len(remote) == len(local) == 40
    assert [number_of(f.image_bgr) for f in remote] == [number_of(f.image_bgr) for f in local]
    assert [f.time_s for f in remote] == pytest.approx([n / 25.0 for n in range(40)], abs=1e-3)
    assert [f.index for f in remote] == list(range(40))


def write_stream(path, codec, num_frames=12):
    """A film in a format without a header that tells its duration."""
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, width=64, height=48, pix_fmt=pixels)
        for number in range(num_frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="bgr24")))
        file.mux(stream.encode())


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("name", "codec"), [("a.ts", "libx264"), ("a.h264", "libx264"), ("a.mjpeg", "mjpeg")]
)
def test_file_that_tells_no_duration_ends_all_the_same(server_url, tmp_path, name, codec):
    write_stream(tmp_path / name, codec)
    with open_source(f"{server_url}/{name}#rate=25") as source:
        frames = list(source)
        assert not source.is_live
        assert source.state is SourceState.ENDED
    with av.open(str(tmp_path / name)) as file:
        pictures = [frame.to_ndarray(format="bgr24") for frame in file.decode(video=0)]
    assert len(frames) == len(pictures) == 12
    for frame, local in zip(frames, pictures, strict=True):
        assert np.abs(frame.image_bgr.astype(int) - local).max() <= 3  # of two converters
    assert [f.time_s for f in frames] == pytest.approx([n / 25.0 for n in range(12)], abs=1e-3)


@pytest.mark.usefixtures("library")
def test_single_picture_on_a_web_server_is_one_frame(server_url, tmp_path):
    (tmp_path / "jpg").write_bytes(jpeg(7))
    with open_source(f"{server_url}/jpg") as source:
        assert [read_number(frame.image_bgr) for frame in source] == [7]


@pytest.mark.parametrize("name", ["page", "page.html"])
@pytest.mark.usefixtures("library")
def test_web_page_is_told_to_be_no_video(server_url, tmp_path, name):
    (tmp_path / name).write_text("<!DOCTYPE html><html><body>" + 500 * "hello " + "</body></html>")
    with pytest.raises(SourceError, match="it is no video but a web page") as error:
        open_source(f"{server_url}/{name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "length", "is_file"),
    [
        ("video/mp2t", "4700", True),
        (None, "4700", True),
        ("video/mp2t", None, False),
        ("video/mp2t", "0", False),
        ("multipart/x-mixed-replace; boundary=frame", "999999999", False),
        ("application/vnd.apple.mpegurl", "300", False),
    ],
)
def test_length_of_a_camera_or_a_list_says_nothing(kind, length, is_file):
    headers = Message()
    for name, value in (("Content-Type", kind), ("Content-Length", length)):
        if value is not None:
            headers[name] = value
    assert network._has_length(headers) is is_file


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rstp://admin:secret@10.0.0.5:554/live", "rstp://admin:***@10.0.0.5:554/live"),
        ("rstp://admin:se/cr@et?secret#@cam/live", "rstp://admin:***@cam/live"),
        ("rtsp//admin:secret@cam", "rtsp//admin:***@cam"),
        ("rstp:admin:secret@cam", "rstp:admin:***@cam"),
        ("admin:secret@cam/live", "admin:***@cam/live"),
        ("video:rtsp://admin:secret@cam", "video:***@cam"),
        ("rtsp://:secret@cam", "rtsp://:***@cam"),
        ("rtsp://admin@cam:554/live", "rtsp://admin@cam:554/live"),
        ("camra:0", "camra:0"),
    ],
)
def test_password_is_not_shown_however_the_source_is_mistyped(uri, shown):
    assert network.as_shown(uri) == shown


@pytest.mark.parametrize("uri", ["rstp://admin:secret@cam/live", "rtsp//admin:secret@cam/a.jpg"])
def test_error_about_a_mistyped_source_keeps_its_password(uri):
    with pytest.raises(SourceError, match=r"admin:\*\*\*@cam") as error:
        open_source(uri)
    assert "secret" not in str(error.value)


def test_password_in_a_pipeline_is_not_shown():
    text = 'rtspsrc location=rtsp://a:secret@cam/x user-pw="se cret" ! decodebin'
    shown = "rtspsrc location=rtsp://a:***@cam/x user-pw=*** ! decodebin"
    assert gstreamer._without_passwords(text) == shown
