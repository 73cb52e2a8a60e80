"""GStreamer pipelines, through an OpenCV that was built with GStreamer: cameras of a Jetson too."""

from __future__ import annotations

import re

from runtime.contract.errors import SourceError
from runtime.pipeline.sources.capture import quieten
from runtime.pipeline.sources.connection import Connection, ConnectionLost
from runtime.pipeline.sources.live_options import LiveOptions, device_options
from runtime.pipeline.sources.network import without_password
from runtime.pipeline.sources.opencv_connection import OpenCvConnection, open_timed
from runtime.pipeline.sources.reconnecting import ReconnectingSource

# Pictures as OpenCV takes them; of those that wait the newest alone.
NEWEST_BGR = "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
CSI_SIZE_WH, CSI_FPS = (1280, 720), 30.0  # a mode that every sensor of a Jetson kit has


def require_gstreamer() -> None:
    """Raise SourceError where OpenCV has no GStreamer."""
    quieten()
    import cv2

    has_it = re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()) is not None
    if not has_it:
        raise SourceError(
            f"gst: and csi: need an OpenCV with GStreamer; {cv2.__version__} of this Python was "
            "built without. Use the system's (JetPack's own; python3-opencv on Debian and Ubuntu), "
            "and no opencv-python from pip, which hides it."
        )


def csi_pipeline(sensor: int, size_wh: tuple[int, int], fps: float) -> str:
    """The text of the pipeline from a Jetson's CSI camera to OpenCV."""
    width, height = size_wh
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),format=NV12,"
        f"width={width},height={height},framerate={_fraction(fps)} ! "
        f"nvvidconv ! video/x-raw,format=BGRx ! {NEWEST_BGR}"
    )


def with_sink(pipeline: str) -> str:
    """A pipeline as given, with an end that OpenCV can read where it has none."""
    text = pipeline.strip().rstrip("!").strip()
    return text if re.search(r"\bappsink\b", text) else f"{text} ! {NEWEST_BGR}"


class GStreamerSource(ReconnectingSource):
    """Frames of any pipeline: "gst:v4l2src device=/dev/video0 ! jpegdec".

    Without an appsink at its end one is added that keeps the newest picture. A pipeline that tells
    its length (a file) is read to its end; others are started anew when they end.

    Args:
        uri: the pipeline's text.

    Raises:
        SourceError: OpenCV without GStreamer, or a pipeline that does not start.
    """

    def __init__(self, uri: str) -> None:
        require_gstreamer()
        if not uri.strip():
            raise SourceError(
                "source gst: is empty; expected a pipeline such as gst:videotestsrc is-live=true."
            )
        options = LiveOptions()
        super().__init__(
            f"gst:{_without_passwords(uri)}",
            lambda: _start(with_sink(uri), options, may_end=True),
            options,
            advice="Try it with gst-launch-1.0.",
        )


class CsiSource(ReconnectingSource):
    """Frames of a CSI camera of a Jetson.

    Args:
        uri: the sensor's number; behind a ? options (`LiveOptions`): "0?size=1920x1080&rate=30".

    Raises:
        SourceError: no number, a bad option, OpenCV without GStreamer, or no camera.
    """

    def __init__(self, uri: str) -> None:
        target, options = device_options(uri, ("size", "rate"), f"source csi:{uri}")
        if not target.isdecimal():
            raise SourceError(
                f"source csi:{uri} names no sensor; expected its number, such as csi:0."
            )
        require_gstreamer()
        pipeline = csi_pipeline(int(target), options.size_wh or CSI_SIZE_WH, options.fps or CSI_FPS)
        super().__init__(
            f"csi:{target}",
            lambda: _start(pipeline, options, may_end=False),
            options,
            advice="Check its cable and number, and restart nvargus-daemon.",
            most_hung=0,
        )


def _start(pipeline: str, options: LiveOptions, *, may_end: bool) -> Connection:
    capture = open_timed(pipeline, "CAP_GSTREAMER", options)
    if capture is None:
        raise ConnectionLost("GStreamer does not start it")
    return OpenCvConnection(capture, may_end=may_end)


def _without_passwords(pipeline: str) -> str:
    """A pipeline's text as it may be shown."""
    return re.sub(
        r"(\b(?:user-pw|password)\s*=\s*)(\"[^\"]*\"|\S+)", r"\1***", without_password(pipeline)
    )


def _fraction(fps: float) -> str:
    """As GStreamer writes a rate: 30 -> "30/1", 29.97 -> "30000/1001"."""
    if abs(fps - round(fps)) < 1e-3:
        return f"{round(fps)}/1"
    ntsc = round(fps * 1.001)
    if abs(ntsc / 1.001 - fps) < 5e-3:
        return f"{ntsc * 1000}/1001"
    return f"{round(fps * 1000)}/1000"
