"""Pictures to H.264 through PyAV: what video files and streams share."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from runtime.pipeline.sources.base import Image

CODEC = "libx264"
CLOCK = Fraction(1, 90_000)  # seconds a tick: fits every usual frame rate
KEY_INTERVAL_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuning:
    """How x264 works. Both kinds look alike; see FFmpeg's documentation of libx264.

    Attributes:
        quality: its constant rate factor, smaller is better.
        lookahead: frames that it holds to plan ahead; they are lost in a kill.
    """

    quality: int
    lookahead: int

    @property
    def options(self) -> dict[str, str]:
        # Slices instead of frames on threads, and no wait for the next frame's time: nothing but
        # the lookahead is held.
        inner = (
            f"rc-lookahead={self.lookahead}:sync-lookahead=0:sliced-threads=1:force-cfr=1"
            f":mbtree={int(self.lookahead > 0)}"
        )
        return {"preset": "veryfast", "crf": str(self.quality), "x264-params": inner}


STORED = Tuning(quality=23, lookahead=4)
LIVE = Tuning(quality=25, lookahead=0)  # as good: without lookahead it spends more at the same crf


class H264Encoder:
    """Encodes BGR pictures with the times they were taken at.

    Args:
        rate: nominal frames a second.
        tuning: how.
        clock: seconds a tick of the time stamps.
        name: of the video, for people.
    """

    def __init__(self, *, rate: Fraction, tuning: Tuning, clock: Fraction, name: str) -> None:
        self._rate = rate
        self._tuning = tuning
        self._clock = clock
        self._name = name
        self._duration = max(round(1 / rate / clock), 1)
        self._stream: Any = None
        self._fit: PictureFit | None = None
        self._start_s: float | None = None
        self._last_pts = -1

    def add_to(self, file: Any, size_wh: tuple[int, int]) -> None:
        """Add the stream to a container of PyAV; its pictures are of this size from now on."""
        from av.video.reformatter import ColorRange, Colorspace

        self._fit = PictureFit(size_wh, self._name)
        stream = file.add_stream(CODEC, rate=self._rate, options=self._tuning.options)
        stream.width, stream.height = self._fit.size_wh
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = self._clock
        context.gop_size = max(round(self._rate * Fraction(KEY_INTERVAL_S)), 1)
        context.colorspace = Colorspace.ITU601  # what OpenCV's conversion makes; players guess else
        context.color_range = ColorRange.MPEG
        context.max_b_frames = 0  # with them a fragmented MP4 would begin late
        self._stream = stream

    def encode(self, image_bgr: Image, time_s: float) -> Iterable[Any]:
        """The packets that are ready, for the container's `mux`.

        Args:
            image_bgr: (H, W, 3) of any size; fitted in.
            time_s: rising; the first one's is 0 in the video.
        """
        import av
        import cv2

        assert self._fit is not None, "add_to comes first"
        planes: Any = cv2.cvtColor(self._fit(image_bgr), cv2.COLOR_BGR2YUV_I420)  # (H * 3 / 2, W)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        if self._start_s is None:
            self._start_s = time_s
        pts = round((time_s - self._start_s) / self._clock)
        frame.pts = self._last_pts = max(pts, self._last_pts + 1)
        frame.time_base = self._clock
        frame.duration = self._duration
        packets: Iterable[Any] = self._stream.encode(frame)
        return packets

    def finish(self) -> Iterable[Any]:
        """The packets that were held."""
        packets: Iterable[Any] = self._stream.encode(None)
        return packets


class PictureFit:
    """Makes pictures of one even size: (width, height), each rounded up to an even number.

    The first picture of quite another size is worth a line in the log.

    Args:
        size_wh: in pixels.
        name: of the video, for people.
    """

    def __init__(self, size_wh: tuple[int, int], name: str = "the video") -> None:
        width, height = size_wh
        self.size_wh = (width + width % 2, height + height % 2)
        self._name = name
        self._has_told = False

    def __call__(self, image_bgr: Image) -> Image:
        """The picture itself where it fits; else the edge repeated by a pixel, or letterboxed."""
        import cv2

        height, width = image_bgr.shape[:2]
        full_width, full_height = self.size_wh
        if (width, height) == self.size_wh:
            return image_bgr
        edge = cv2.BORDER_REPLICATE
        if full_width - width not in (0, 1) or full_height - height not in (0, 1):
            self._tell(width, height)
            scale = min(full_width / width, full_height / height)
            width, height = max(round(width * scale), 1), max(round(height * scale), 1)
            image_bgr = np.asarray(cv2.resize(image_bgr, (width, height)), np.uint8)
            edge = cv2.BORDER_CONSTANT
        left, top = (full_width - width) // 2, (full_height - height) // 2
        right, bottom = full_width - width - left, full_height - height - top
        fitted = cv2.copyMakeBorder(image_bgr, top, bottom, left, right, edge)
        return np.asarray(fitted, np.uint8)

    def _tell(self, width: int, height: int) -> None:
        if not self._has_told:
            self._has_told = True
            full = f"{self.size_wh[0]}x{self.size_wh[1]}"
            _log.warning(
                "frames are %dx%d now; fitted into %s's %s", width, height, self._name, full
            )
