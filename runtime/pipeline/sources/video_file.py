"""A video file: every frame that decodes is delivered; nothing is dropped."""

from __future__ import annotations

import time
from pathlib import Path

from runtime.contract.errors import SourceError
from runtime.pipeline.sources.base import Frame, Source
from runtime.pipeline.sources.capture import Capture, nominal_fps, open_capture, retrieve

DEFAULT_FPS = 25.0  # of files that do not say
# OpenCV's grab fails once for every few broken packets and succeeds after them, so a failure is
# the end only when as many have followed as the header still promises frames, and a few more.
SPARE_ATTEMPTS = 8
MOST_ATTEMPTS = 100_000  # a header may promise nonsense; at the end an attempt takes microseconds


class VideoFileSource(Source):
    """Frames of a video file through OpenCV.

    Corrupt frames in the middle are survived; `num_corrupt` counts them by the gaps they leave in
    the time stamps, up to what the header promised, so variable frame rates count as whole.
    """

    def __init__(self, uri: str) -> None:
        path = Path(uri)
        if not path.exists():
            raise SourceError(
                f"source {uri} does not exist; expected a video file. Check the path."
            )
        if not path.is_file():
            raise SourceError(f"source {uri} is no file; expected a video, a folder or a camera.")
        capture = open_capture(str(path), backends=("CAP_FFMPEG", "CAP_ANY"))
        if capture is None or _is_text(capture):
            raise SourceError(
                f"source {uri} is no video that OpenCV can read; expected MP4, MKV, AVI or the "
                "like. Play it with ffplay, or convert it with ffmpeg."
            )
        import cv2

        fps = nominal_fps(capture.get(cv2.CAP_PROP_FPS), DEFAULT_FPS)
        super().__init__(uri, fps=fps, is_live=False)
        self._capture = capture
        self._position = cv2.CAP_PROP_POS_MSEC
        promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.num_promised = int(promised) if 0 < promised < 1e9 else None
        self._time_s = -1.0
        self._gaps = 0
        self._is_closed = False
        self._first = self._decode()
        if self._first is None:
            self.close()
            raise SourceError(
                f"source {uri} holds no frame that decodes; expected a video. "
                "The file is damaged or of an unknown codec."
            )
        height, width = self._first.image_bgr.shape[:2]
        self.size_wh = (width, height)

    def read(self) -> Frame | None:
        frame, self._first = self._first, None
        if frame is not None:
            frame.captured_at = time.perf_counter() - frame.capture_ms / 1000.0  # read when opened
            return frame
        return None if self._is_closed else self._decode()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._capture.release()

    def _decode(self) -> Frame | None:
        missing = (self.num_promised or 0) - self.num_decoded
        attempts = min(max(missing, 0) + SPARE_ATTEMPTS, MOST_ATTEMPTS)
        for _ in range(attempts):
            started = time.perf_counter()
            if not self._capture.grab():
                continue
            image = retrieve(self._capture, self.take_buffer())
            if image is None:
                continue
            capture_ms = (time.perf_counter() - started) * 1000.0
            self._count(self._capture.get(self._position) / 1000.0)
            index = self.num_decoded - 1
            return Frame(image, index, self._time_s, started, capture_ms, self.name)
        return None

    def _count(self, position_s: float) -> None:
        """Take note of a decoded frame and of its time stamp (which old builds report wrongly)."""
        interval_s = 1.0 / self.fps
        if self.num_decoded == 0:
            self._time_s = position_s if 0.0 <= position_s < interval_s else 0.0
        elif position_s > self._time_s:
            self._gaps += max(round((position_s - self._time_s) / interval_s) - 1, 0)
            self._time_s = position_s
        else:
            self._time_s += interval_s
        self.num_decoded += 1
        if self.num_promised is not None:
            self.num_corrupt = min(self._gaps, max(self.num_promised - self.num_decoded, 0))


def _is_text(capture: Capture) -> bool:
    """Whether it is a text file, which FFmpeg would show as a film of its letters."""
    import cv2

    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    return code.to_bytes(4, "little") == b"ansi"
