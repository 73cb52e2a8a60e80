"""Annotated video: H.264 through PyAV, playable even when the run is killed."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from runtime.contract.errors import SinkError, one_line
from runtime.pipeline.sinks.base import FrameResult, Sink, make_folder
from runtime.pipeline.sources.base import Image

CODEC = "libx264"
CODEC_OPTIONS = {"preset": "veryfast", "crf": "23"}
CLOCK = Fraction(1, 90_000)  # seconds a tick: fits every usual frame rate
SECONDS_A_FRAGMENT = 1  # at most this much, and what the encoder holds, is lost in a kill

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Container:
    """How a kind of file is written.

    Attributes:
        options: of FFmpeg's muxer; they make a file without its end playable.
        has_clock: False: the container counts frames, so time stamps go by the frame rate.
    """

    options: dict[str, str] = field(default_factory=dict)
    has_clock: bool = True


_FRAGMENTED = Container(
    {
        "movflags": "frag_keyframe+empty_moov+default_base_moof",
        "flush_packets": "1",
    }
)
CONTAINERS = {
    ".mp4": _FRAGMENTED,
    ".m4v": _FRAGMENTED,
    ".mov": _FRAGMENTED,
    ".mkv": Container({"cluster_time_limit": "1000", "flush_packets": "1"}),
    ".avi": Container({"flush_packets": "1"}, has_clock=False),
}
SUFFIXES = tuple(CONTAINERS)


def open_video_sink(path: Path, *, size_wh: tuple[int, int], fps: float) -> Sink:
    """An annotated video: H.264 where PyAV is there, else OpenCV's MPEG-4 with a line in the log.

    Args:
        path: ends in one of SUFFIXES; its folder is made.
        size_wh: of the video in pixels; other frames are fitted in. Odd sides get one more pixel.
        fps: the source's nominal rate.

    Raises:
        SinkError: the file cannot be opened.
    """
    make_folder(path)
    if importlib.util.find_spec("av") is None:
        _log.warning(
            "PyAV is missing: %s becomes MPEG-4, and is not playable if the run is killed. "
            "For H.264: pip install 'kestrel-vision[video]'",
            path,
        )
        return OpencvVideoSink(path, size_wh=size_wh, fps=fps)
    return VideoFileSink(path, size_wh=size_wh, fps=fps)


class VideoFileSink(Sink):
    """H.264 in MP4, MKV or AVI; time stamps are those of the source."""

    wants_picture = True

    def __init__(self, path: Path, *, size_wh: tuple[int, int], fps: float) -> None:
        import av

        self.target = str(path)
        container = CONTAINERS[path.suffix.lower()]
        rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
        self._clock = CLOCK if container.has_clock else 1 / rate
        self._fit = PictureFit(size_wh)
        self._errors = (OSError, av.error.FFmpegError)
        self._num_written = 0
        self._start_s: float | None = None
        self._last_pts = -1
        self._is_closed = False
        self._is_broken = False
        self._duration = max(round(1 / rate / self._clock), 1)
        try:
            self._file = av.open(self.target, "w", options=container.options)
            self._stream = self._add_stream(rate)
            self._file.start_encoding()
        except self._errors as error:
            raise SinkError(
                f"output {path} cannot be opened: {one_line(error)}. Choose another place."
            ) from None
        self._frame_class = av.VideoFrame

    def _add_stream(self, rate: Fraction) -> Any:
        from av.video.reformatter import ColorRange, Colorspace

        stream: Any = self._file.add_stream(CODEC, rate=rate, options=dict(CODEC_OPTIONS))
        stream.width, stream.height = self._fit.size_wh
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = self._clock
        context.gop_size = max(round(rate * SECONDS_A_FRAGMENT), 1)
        context.colorspace = Colorspace.ITU601  # what OpenCV's conversion makes; players guess else
        context.color_range = ColorRange.MPEG
        context.max_b_frames = 0  # with them a fragmented MP4 would begin late
        return stream

    def write(self, result: FrameResult) -> None:
        import cv2

        picture = self._fit(result.frame.image_bgr)
        planes: Any = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)  # (H * 3 / 2, W)
        frame = self._frame_class.from_ndarray(planes, format="yuv420p")
        if self._start_s is None:
            self._start_s = result.frame.time_s
        pts = round((result.frame.time_s - self._start_s) / self._clock)
        frame.pts = self._last_pts = max(pts, self._last_pts + 1)
        frame.time_base = self._clock
        frame.duration = self._duration
        self._put(frame)
        self._num_written += 1

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if not self._is_broken:
                self._put(None)
        finally:
            self._close_file()

    def _put(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._file.mux(packet)
        except self._errors as error:
            raise self._broken(error) from None

    def _close_file(self) -> None:
        try:
            self._file.close()
        except self._errors as error:
            if not self._is_broken:
                raise self._broken(error) from None

    def _broken(self, error: Exception) -> SinkError:
        self._is_broken = True
        return SinkError(
            f"output {self.target} cannot be written after {self._num_written} frames: "
            f"{one_line(error)}. The part before plays; make room and run again."
        )


class OpencvVideoSink(Sink):
    """MPEG-4 through OpenCV, where PyAV is missing."""

    wants_picture = True

    def __init__(self, path: Path, *, size_wh: tuple[int, int], fps: float) -> None:
        import cv2

        self.target = str(path)
        self._fit = PictureFit(size_wh)
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(self.target, code, fps, self._fit.size_wh)
        self._num_written = 0
        if not self._writer.isOpened():
            raise SinkError(
                f"output {path} cannot be opened by OpenCV; expected a writable place and one of "
                f"{', '.join(SUFFIXES)}. Choose another place."
            )

    def write(self, result: FrameResult) -> None:
        self._writer.write(self._fit(result.frame.image_bgr))
        self._num_written += 1

    def close(self) -> None:
        """Close the file and read it again: OpenCV reports no error, a full disk least of all."""
        import cv2

        if not self._writer.isOpened():
            return
        self._writer.release()
        capture = cv2.VideoCapture(self.target)
        found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if found < self._num_written:
            raise SinkError(
                f"output {self.target} holds {found} of {self._num_written} frames: the disk is "
                "full, or OpenCV's encoder failed. Free some space, or install PyAV."
            )


class PictureFit:
    """Makes pictures of one even size: (width, height), each rounded up to an even number."""

    def __init__(self, size_wh: tuple[int, int]) -> None:
        width, height = size_wh
        self.size_wh = (width + width % 2, height + height % 2)

    def __call__(self, image_bgr: Image) -> Image:
        """The picture itself where it fits; else the edge repeated by a pixel, or letterboxed."""
        import cv2

        height, width = image_bgr.shape[:2]
        full_width, full_height = self.size_wh
        if (width, height) == self.size_wh:
            return image_bgr
        edge = cv2.BORDER_REPLICATE
        if full_width - width not in (0, 1) or full_height - height not in (0, 1):
            scale = min(full_width / width, full_height / height)
            width, height = max(round(width * scale), 1), max(round(height * scale), 1)
            image_bgr = np.asarray(cv2.resize(image_bgr, (width, height)), np.uint8)
            edge = cv2.BORDER_CONSTANT
        left, top = (full_width - width) // 2, (full_height - height) // 2
        right, bottom = full_width - width - left, full_height - height - top
        fitted = cv2.copyMakeBorder(image_bgr, top, bottom, left, right, edge)
        return np.asarray(fitted, np.uint8)
