from __future__ import annotations

import queue

import cv2
import pytest
from fake_camera import LONG_S, read_frame, wait_for
from pipeline_fakes import number_of, picture

from runtime.contract.errors import SourceError
from runtime.pipeline.sources import open_source, scheme_of
from runtime.pipeline.sources.base import SourceState
from runtime.pipeline.sources.camera import CameraSource
from runtime.pipeline.sources.gstreamer import csi_pipeline, with_sink
from runtime.pipeline.sources.live_options import LiveOptions, device_options, url_options
from runtime.pipeline.sources.network import check_url, without_password

SIZE = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)


class Plugged:
    """The cameras that are plugged in, as OpenCV's captures; `wishes` are of all of them."""

    def __init__(self):
        self.is_there = True
        self.modes = {SIZE[0]: 64.0, SIZE[1]: 48.0, cv2.CAP_PROP_FPS: 0.0}
        self.obeys = True
        self.asked = []
        self.num_open = self.num_opened = 0
        self.wishes = queue.Queue()

    def open_one(self):
        return PluggedCapture(self) if self.is_there else None


class PluggedCapture:
    def __init__(self, plugged):
        self.plugged = plugged
        self.wish = None
        plugged.num_open += 1
        plugged.num_opened += 1

    def grab(self):
        try:
            self.wish = self.plugged.wishes.get(timeout=LONG_S)
        except queue.Empty:
            return False
        if self.wish == "fault":
            raise cv2.error("select() failed")
        return self.wish != "unplugged"

    def retrieve(self, image=None):
        if self.wish == "broken":
            return False, None
        return True, picture(self.wish)[:, :, 0] if self.wish == 77 else picture(self.wish)

    def get(self, prop):
        return self.plugged.modes.get(prop, 0.0)

    def set(self, prop, value):
        self.plugged.asked.append(prop)
        if self.plugged.obeys:
            self.plugged.modes[prop] = value
        return self.plugged.obeys

    def release(self):
        self.plugged.num_open -= 1


@pytest.fixture
def plugged():
    plugged = Plugged()
    plugged.wishes.put(0)
    return plugged


@pytest.fixture
def camera(plugged):
    with CameraSource("0", plugged.open_one) as source:
        yield source
        plugged.wishes.put("unplugged")  # its thread waits for a picture
        plugged.is_there = False


def test_camera_gives_live_frames_with_rising_times(plugged, camera):
    frames = [read_frame(camera)]
    for number in (1, 2):
        plugged.wishes.put(number)
        frames.append(read_frame(camera))
    assert camera.is_live
    assert (camera.name, camera.size_wh, camera.fps) == ("camera 0", (64, 48), 30.0)
    assert [number_of(frame.image_bgr) for frame in frames] == [0, 1, 2]
    assert frames[0].time_s == 0.0
    assert frames[0].time_s < frames[1].time_s < frames[2].time_s


def test_camera_counts_pictures_that_do_not_decode(plugged, camera):
    read_frame(camera)
    for wish in ("broken", "broken", 3):
        plugged.wishes.put(wish)
    assert number_of(read_frame(camera).image_bgr) == 3
    assert camera.num_corrupt == 2


@pytest.mark.parametrize("how", ["unplugged", "fault"])
def test_camera_that_is_unplugged_comes_back_when_it_is_plugged_in(plugged, camera, how):
    read_frame(camera)
    plugged.is_there = False
    plugged.wishes.put(how)
    wait_for(lambda: plugged.num_open == 0)
    plugged.wishes.put(1)
    plugged.is_there = True
    assert number_of(read_frame(camera).image_bgr) == 1
    assert (camera.num_reconnects, camera.state) == (1, SourceState.RUNNING)
    assert plugged.num_open == 1


def test_monochrome_camera_gives_three_channels(plugged, camera):
    read_frame(camera)
    plugged.wishes.put(77)
    assert read_frame(camera).image_bgr.shape == (48, 64, 3)


def test_camera_is_asked_for_format_size_and_rate_in_this_order(plugged):
    uri = "0?size=640x480&rate=15&format=mjpg"
    with CameraSource(uri, plugged.open_one) as source:
        plugged.wishes.put("unplugged")
        assert source.fps == 15.0
    wanted = [cv2.CAP_PROP_FOURCC, *SIZE, cv2.CAP_PROP_FPS]
    assert [prop for prop in plugged.asked if prop in wanted][:4] == wanted
    assert plugged.modes[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter_fourcc(*"MJPG")


def test_camera_that_gives_another_size_says_so(plugged, caplog):
    plugged.obeys = False
    with CameraSource("0?size=640x480", plugged.open_one):
        plugged.wishes.put("unplugged")
    assert "asked for 640x480, it gives 64x48" in caplog.text


@pytest.mark.parametrize("uri", ["97", "/dev/video97", "camera:97", "camera:nothing/here"])
def test_camera_that_is_not_there_is_an_error_of_one_line(uri):
    with pytest.raises(SourceError, match=r"camera \S+ cannot be opened") as error:
        open_source(uri)
    assert "\n" not in str(error.value)


# --- addresses


@pytest.mark.parametrize(
    ("uri", "scheme", "rest"),
    [
        ("0?size=1280x720", "camera", "0?size=1280x720"),
        ("/dev/v4l/by-id/usb-cam", "camera", "/dev/v4l/by-id/usb-cam"),
        ("csi://1?rate=60", "csi", "1?rate=60"),
        ("csi:1", "csi", "1"),
        ("gst:" + "videotestsrc ! " * 40, "gst", "videotestsrc ! " * 40),
        ("rtsp://camera:8554/live?channel=1", "rtsp", "camera:8554/live?channel=1"),
        ("RTSP://camera/live", "rtsp", "camera/live"),
        ("https://camera/film.mp4", "https", "camera/film.mp4"),
    ],
)
def test_live_source_is_told_by_its_address(uri, scheme, rest):
    assert scheme_of(uri) == (scheme, rest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", LiveOptions()),
        ("0?size=1280x720&rate=29.97", LiveOptions(size_wh=(1280, 720), fps=29.97)),
        ("0?format=yuyv&reconnect=no", LiveOptions(pixel_format="YUYV", reconnects=False)),
        (
            "0?open-timeout=3&stall-timeout=.5&wait=60",
            LiveOptions(open_timeout_s=3.0, stall_timeout_s=0.5, wait_s=60.0),
        ),
    ],
)
def test_options_of_a_device_are_read(text, expected):
    assert device_options(text, ("size", "rate", "format"), "it") == ("0", expected)


@pytest.mark.parametrize(
    ("url", "bare", "expected"),
    [
        ("rtsp://a/b?c=1&d=2", "rtsp://a/b?c=1&d=2", LiveOptions()),
        ("rtsp://a/b?c=1#transport=udp", "rtsp://a/b?c=1", LiveOptions(transport="udp")),
        ("rtsp://a/b#rate=5&wait=9", "rtsp://a/b", LiveOptions(fps=5.0, wait_s=9.0)),
        ("rtsp://u:p#q=1@a/b", "rtsp://u:p#q=1@a/b", LiveOptions()),
        ("rtsp://a/b#top", "rtsp://a/b#top", LiveOptions()),
    ],
)
def test_options_of_a_url_stand_behind_a_hash_and_the_query_is_the_servers(url, bare, expected):
    assert url_options(url, ("rate", "transport"), url) == (bare, expected)


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("0?size=640", "expected WIDTHxHEIGHT"),
        ("0?sise=640x480", "Did you mean size"),
        ("0?rate=-1", "frames a second"),
        ("0?format=MJPEG", "four letters"),
        ("0?wait=soon", "expected seconds"),
        ("0?stall-timeout=0", "expected seconds"),
        ("0?reconnect=maybe", "expected yes, no"),
        ("0?transport=udp", "unknown option 'transport'"),
        ("csi:first", "names no sensor"),
        ("rtsp://127.0.0.1/live#transport=sctp", "expected tcp, udp"),
        ("rtsp://127.0.0.1/live#size=640x480", "unknown option 'size'"),
        ("rtsp:///live", "names no host"),
        ("rtsp://host:many/live", "names no host"),
        ("http://127.0.0.1:1/x", "cannot be opened: 127.0.0.1 port 1: connection refused"),
        ("gst:", "gst:"),
    ],
)
def test_address_that_cannot_be_is_an_error_of_one_line(uri, match):
    with pytest.raises(SourceError, match=match) as error:
        open_source(uri)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://admin:secret@cam:554/live?a=b@c", "rtsp://admin:***@cam:554/live?a=b@c"),
        ("rtsp://admin:se@cret@cam/live", "rtsp://admin:***@cam/live"),
        ("rtsp://cam/live@1", "rtsp://cam/live@1"),
        ("rtsp://admin@cam/live", "rtsp://admin@cam/live"),
    ],
)
def test_password_is_never_shown(url, shown):
    assert without_password(url) == shown


@pytest.mark.parametrize("password", ["se/cret", "se#cret", "se?cret"])
def test_password_with_unescaped_letters_is_refused_and_not_shown(password):
    with pytest.raises(SourceError, match="%23") as error:
        check_url(f"rtsp://admin:{password}@cam/live")
    assert "cret" not in str(error.value)
    assert "cam/live" in str(error.value)


# --- GStreamer, as text


def test_csi_camera_is_a_pipeline_of_a_jetson():
    text = csi_pipeline(1, (1920, 1080), 29.97)
    assert text.startswith("nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),")
    assert "width=1920,height=1080,framerate=30000/1001 ! nvvidconv !" in text
    assert text.endswith("appsink drop=true max-buffers=1 sync=false")
    assert "framerate=12500/1000" in csi_pipeline(0, (640, 480), 12.5)


def test_pipeline_without_an_end_gets_one_that_keeps_the_newest():
    assert with_sink("videotestsrc !").startswith(
        "videotestsrc ! videoconvert ! video/x-raw,format="
    )
    assert "max-buffers=1" in with_sink("videotestsrc")
    assert with_sink("videotestsrc ! appsink") == "videotestsrc ! appsink"
