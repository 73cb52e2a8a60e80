"""OpenCV's VideoCapture: opened quietly, read into recycled memory."""

from __future__ import annotations

import os
from typing import Any, Protocol

from runtime.pipeline.sources.base import Image


class Capture(Protocol):
    """What we use of cv2.VideoCapture, so that tests can stand in for a camera."""

    def isOpened(self) -> bool: ...  # noqa: N802 - OpenCV's name
    def grab(self) -> bool: ...
    def retrieve(self, image: Image | None = None) -> tuple[bool, Any]: ...
    def get(self, prop: int) -> float: ...
    def set(self, prop: int, value: float) -> bool: ...
    def release(self) -> None: ...


def quieten() -> None:
    """Keep OpenCV and FFmpeg from writing warnings about damaged files to stderr.

    Our own errors say it in one line. OPENCV_LOG_LEVEL and OPENCV_FFMPEG_LOGLEVEL bring them back.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    import cv2

    logging = getattr(getattr(cv2, "utils", None), "logging", None)
    if logging is not None and os.environ["OPENCV_LOG_LEVEL"] == "SILENT":
        logging.setLogLevel(logging.LOG_LEVEL_SILENT)


def open_capture(target: str | int, *, backends: tuple[str, ...]) -> Capture | None:
    """Open a capture with the first of OpenCV's backends that can; None where none can.

    Args:
        target: a file's path, a device's path or a camera's number.
        backends: names such as "CAP_FFMPEG", in the order of trial.
    """
    quieten()
    import cv2

    for backend in backends:
        capture: Capture = cv2.VideoCapture(target, getattr(cv2, backend))
        if capture.isOpened():
            return capture
        capture.release()
    return None


def retrieve(capture: Capture, buffer: Image | None) -> Image | None:
    """Decode the grabbed picture into `buffer` if it fits, else into new memory.

    Returns:
        (H, W, 3) uint8 BGR, or None if it cannot be decoded.
    """
    is_decoded, image = capture.retrieve(buffer)
    if not is_decoded or image is None or image.size == 0:
        return None
    if image.ndim == 2:  # a monochrome camera
        import cv2

        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    picture: Image = image
    return picture


def nominal_fps(reported: float, default: float) -> float:
    """The header's frame rate where it is believable (over 0, up to 1000), else `default`."""
    return float(reported) if 0.0 < reported <= 1000.0 else default
