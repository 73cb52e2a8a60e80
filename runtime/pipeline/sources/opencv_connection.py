"""A live source through OpenCV: V4L2 cameras, GStreamer, and FFmpeg where PyAV is missing."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from time import perf_counter

from runtime.contract.errors import one_line
from runtime.pipeline.sources.capture import Capture, nominal_fps, quieten, retrieve
from runtime.pipeline.sources.connection import (
    ConnectionLost,
    Picture,
    StreamEnded,
    TakeBuffer,
)
from runtime.pipeline.sources.live_options import LiveOptions

DEFAULT_FPS = 30.0  # of cameras that do not say

LATE_CODECS = (b"h264", b"avc1", b"hevc", b"hev1", b"hvc1")

_FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_environment = threading.Lock()


class OpenCvConnection:
    """Pictures of an open capture.

    Args:
        capture: of OpenCV.
        fps: nominal, where it is known better than by the capture; else None.
        may_end: a capture that tells how many frames it has is a video with an end.
        has_end: it is known to be one, whatever the capture tells.
        stall_timeout_s: of FFmpeg; a call that took so long gives a picture as old as that.
    """

    def __init__(
        self,
        capture: Capture,
        *,
        fps: float | None = None,
        may_end: bool = False,
        has_end: bool = False,
        stall_timeout_s: float | None = None,
    ) -> None:
        import cv2

        self._capture = capture
        self._stall_timeout_s = stall_timeout_s
        code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
        codec = code.to_bytes(4, "little").lower()
        # As in PyAvConnection: FFmpeg hands these over when the next picture begins.
        self._is_late = stall_timeout_s is not None and not has_end and codec in LATE_CODECS
        self._last_grab_at = perf_counter()
        self.fps = fps or nominal_fps(capture.get(cv2.CAP_PROP_FPS), DEFAULT_FPS)
        self.has_end = has_end or (may_end and capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0)
        self.num_corrupt = 0
        self._num_read = 0

    def read(self, take_buffer: TakeBuffer) -> Picture | None:
        import cv2

        begun = perf_counter()
        try:
            is_there = self._capture.grab()
            grabbed_at = perf_counter()
            image = retrieve(self._capture, take_buffer()) if is_there else None
        except cv2.error as error:
            raise ConnectionLost(f"OpenCV gave up: {one_line(error)}") from error
        if not is_there and self.has_end:
            raise StreamEnded
        if not is_there:
            raise ConnectionLost("it gives no more pictures")
        waited_s = grabbed_at - begun
        if self._stall_timeout_s is not None and waited_s > 0.95 * self._stall_timeout_s:
            raise ConnectionLost(f"no answer for {waited_s:.1f} s")
        captured_at = self._last_grab_at if self._is_late else grabbed_at
        self._last_grab_at = grabbed_at
        if image is None:
            self.num_corrupt += 1
            return None
        self._num_read += 1
        time_s = (self._num_read - 1) / self.fps if self.has_end else None
        capture_ms = (perf_counter() - grabbed_at) * 1e3
        return Picture(image, captured_at, capture_ms, time_s, may_be_cut=self._is_late)

    def close(self) -> None:
        self._capture.release()


def open_timed(target: str, backend: str, options: LiveOptions) -> Capture | None:
    """Open a capture with our timeouts where this OpenCV has them; None where it cannot be opened.

    An OpenCV that knows no timeouts for GStreamer (4.5) does not open with them, so it is tried
    without; its calls are watched from outside in any case.

    Args:
        target: a pipeline's text or a URL.
        backend: name such as "CAP_GSTREAMER".
        options: its open and stall timeouts are used.
    """
    quieten()
    import cv2

    number = getattr(cv2, backend)
    timeouts = []
    for name, seconds in (
        ("CAP_PROP_OPEN_TIMEOUT_MSEC", options.open_timeout_s),
        ("CAP_PROP_READ_TIMEOUT_MSEC", options.stall_timeout_s),
    ):
        if hasattr(cv2, name):
            timeouts += [getattr(cv2, name), int(seconds * 1000)]
    begun = perf_counter()
    capture: Capture = cv2.VideoCapture(target, number, timeouts)
    was_refused = perf_counter() - begun < options.open_timeout_s / 2.0
    if not capture.isOpened() and backend == "CAP_GSTREAMER" and was_refused:
        capture.release()
        capture = cv2.VideoCapture(target, number)
    if capture.isOpened():
        return capture
    capture.release()
    return None


@contextlib.contextmanager
def ffmpeg_options(options: Mapping[str, str]) -> Iterator[None]:
    """OpenCV's FFmpeg opens with these options meanwhile, unless the user's environment has some.

    OpenCV takes them from the environment of the whole process, so streams are opened one after the
    other; PyAV has no such limit.
    """
    with _environment:
        is_ours = _FFMPEG_OPTIONS not in os.environ
        if is_ours:
            os.environ[_FFMPEG_OPTIONS] = "|".join(f"{key};{text}" for key, text in options.items())
        try:
            yield
        finally:
            if is_ours:
                del os.environ[_FFMPEG_OPTIONS]
