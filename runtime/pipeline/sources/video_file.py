"""A video file: every frame that decodes is delivered; nothing is dropped."""

from __future__ import annotations

import time
from pathlib import Path

from runtime.contract.errors import SourceError
from runtime.pipeline.sources.base import Frame, Source
from runtime.pipeline.sources.network import as_shown
from runtime.pipeline.sources.video_decoders import open_decoder


class VideoFileSource(Source):
    """Frames of a video file, each of its own size: it may change in mid-stream (with PyAV).

    Corrupt frames in the middle are survived. `num_corrupt` counts them by the gaps they leave in
    the time stamps and by the packets that the decoder refused, up to what the header promised, so
    variable frame rates count as whole.

    Raises:
        SourceError: missing, empty, no video, or without one frame that decodes.
    """

    def __init__(self, uri: str) -> None:
        path = Path(uri)
        if not path.exists():
            raise SourceError(
                f"source {as_shown(uri)} does not exist; expected a video file. Check the path."
            )
        if not path.is_file():
            raise SourceError(f"source {uri} is no file; expected a video, a folder or a camera.")
        if path.stat().st_size == 0:
            raise SourceError(f"source {uri} is empty (0 bytes); expected a video.")
        self._decoder = open_decoder(path)
        super().__init__(uri, fps=self._decoder.fps, is_live=False)
        self.num_promised = self._decoder.num_promised
        self._time_s = -1.0
        self._gaps = 0
        self._is_closed = False
        self._first: Frame | None = None
        try:
            self._first = self._decode()
        finally:
            if self._first is None:
                self.close()
        if self._first is None:
            raise SourceError(
                f"source {uri} holds no frame that decodes; expected a video. "
                "The file is damaged or of an unknown codec."
            )
        height, width = self._first.image_bgr.shape[:2]
        self.size_wh = (width, height)

    def read(self) -> Frame | None:
        frame, self._first = self._first, None
        if frame is not None:  # read when opened
            frame.captured_at = time.perf_counter() - frame.capture_ms / 1000.0
            frame.wall_time_s = time.time() - frame.capture_ms / 1000.0
            return frame
        return None if self._is_closed else self._decode()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._decoder.close()

    def _decode(self) -> Frame | None:
        started = time.perf_counter()
        num_missing = (self.num_promised or 0) - self.num_decoded
        found = self._decoder.decode(num_missing, self.take_buffer())
        if found is None:
            self._count_corrupt()
            return None
        image, position_s = found
        capture_ms = (time.perf_counter() - started) * 1000.0
        self._count(position_s)
        index = self.num_decoded - 1
        return Frame(image, index, self._time_s, started, capture_ms, self.name)

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
        self._count_corrupt()

    def _count_corrupt(self) -> None:
        refused = self._decoder.num_refused
        if self.num_promised is None:
            self.num_corrupt = refused
        else:
            missing = max(self.num_promised - self.num_decoded, 0)
            self.num_corrupt = min(max(self._gaps, refused), missing)
