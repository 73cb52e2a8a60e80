"""A camera of this machine, through OpenCV (V4L2 on Linux)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from runtime.contract.errors import SourceError
from runtime.pipeline.sources.capture import Capture, open_capture
from runtime.pipeline.sources.connection import Connection, ConnectionLost
from runtime.pipeline.sources.live_options import LiveOptions, device_options
from runtime.pipeline.sources.opencv_connection import OpenCvConnection
from runtime.pipeline.sources.reconnecting import ReconnectingSource

_log = logging.getLogger(__name__)


class CameraSource(ReconnectingSource):
    """Frames of a camera as they come; opened anew when it was unplugged.

    A number may be another camera's after that; /dev/v4l/by-id/... stays with its camera.

    Args:
        uri: the camera's number, or its device such as /dev/video0; behind a ? options
            (`LiveOptions`): "0?size=1280x720&rate=30&format=MJPG".
        open_one: stands in for `open_capture` of that camera in tests.

    Raises:
        SourceError: no such camera, or a bad option.
    """

    def __init__(self, uri: str, open_one: Callable[[], Capture | None] | None = None) -> None:
        target, options = device_options(uri, ("size", "rate", "format"), f"camera {uri}")
        if not target.isdecimal() and not target.startswith("/"):
            raise SourceError(
                f"camera {uri} cannot be opened; expected its number or device, such as 0 or "
                "/dev/video0. List them with 'ls /dev/video*'."
            )
        if open_one is None:
            device: str | int = int(target) if target.isdecimal() else target

            def open_one() -> Capture | None:
                return open_capture(device, backends=("CAP_V4L2", "CAP_ANY"))

        super().__init__(
            f"camera {target}",
            lambda: _connect(f"camera {target}", open_one, options),
            options,
            advice="List cameras with 'ls /dev/video*'; another program may hold it.",
            most_hung=0,
        )


def _connect(name: str, open_one: Callable[[], Capture | None], options: LiveOptions) -> Connection:
    capture = open_one()
    if capture is None:
        raise ConnectionLost("it is not there, or taken")
    import cv2

    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # drivers that obey hand over fresher pictures
    if options.pixel_format is not None:  # before the size, which depends on it
        code = int.from_bytes(options.pixel_format.encode(), "little")
        capture.set(cv2.CAP_PROP_FOURCC, code)
    if options.size_wh is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.size_wh[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.size_wh[1])
    if options.fps is not None:
        capture.set(cv2.CAP_PROP_FPS, options.fps)
    size_wh = (
        int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
    )
    if options.size_wh is not None and size_wh != options.size_wh:
        _log.warning(
            "%s: asked for %dx%d, it gives %dx%d. List its modes with 'v4l2-ctl "
            "--list-formats-ext'; large ones may need format=MJPG",
            name, *options.size_wh, *size_wh,
        )  # fmt: skip
    return OpenCvConnection(capture)
