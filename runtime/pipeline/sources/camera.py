"""A camera of this machine, through OpenCV (V4L2 on Linux)."""

from __future__ import annotations

import time

from runtime.contract.errors import SourceError
from runtime.pipeline.sources.base import Frame, Source
from runtime.pipeline.sources.capture import Capture, nominal_fps, open_capture, retrieve

DEFAULT_FPS = 30.0  # of cameras that do not say
UNDECODED_IN_A_ROW = 30  # this many broken pictures one after the other: the camera is gone


class CameraSource(Source):
    """Frames of a camera as they come.

    `read` waits for the next picture; the pipeline reads on a thread of its own, keeps the newest
    and counts what it drops.

    Args:
        uri: the camera's number, or its device such as /dev/video0.
        capture: stands in for the camera in tests.
    """

    def __init__(self, uri: str, capture: Capture | None = None) -> None:
        target: str | int = int(uri) if uri.isdecimal() else uri
        if capture is None:
            capture = open_capture(target, backends=("CAP_V4L2", "CAP_ANY"))
        if capture is None:
            raise SourceError(
                f"camera {uri} cannot be opened; expected the number of a connected camera. "
                "List them with 'ls /dev/video*'; another program may hold it."
            )
        import cv2

        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # drivers that obey hand over fresher pictures
        fps = nominal_fps(capture.get(cv2.CAP_PROP_FPS), DEFAULT_FPS)
        super().__init__(f"camera {uri}", fps=fps, is_live=True)
        self._capture = capture
        self._is_closed = False
        self._started_at: float | None = None
        self._time_s = -1.0
        self._first: Frame | None = None
        try:
            self._first = self._grab()
        finally:
            if self._first is None:
                self.close()
        height, width = self._first.image_bgr.shape[:2]
        self.size_wh = (width, height)

    def read(self) -> Frame | None:
        frame, self._first = self._first, None
        if frame is not None:
            return frame
        return None if self._is_closed else self._grab()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._capture.release()

    def _grab(self) -> Frame:
        for _ in range(UNDECODED_IN_A_ROW):
            if not self._capture.grab():
                break
            captured_at = time.perf_counter()
            image = retrieve(self._capture, self.take_buffer())
            if image is None:
                self.num_corrupt += 1
                continue
            capture_ms = (time.perf_counter() - captured_at) * 1000.0
            if self._started_at is None:
                self._started_at = captured_at
            self._time_s = max(captured_at - self._started_at, self._time_s + 1e-6)
            self.num_decoded += 1
            index = self.num_decoded - 1
            return Frame(image, index, self._time_s, captured_at, capture_ms, self.name)
        raise SourceError(
            f"{self.name} gave no picture after {self.num_decoded} frames; expected a stream. "
            "Check its cable and power, and that no other program holds it."
        )
