"""Annotated video: H.264 through PyAV, playable even when the run is killed."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from runtime.contract.errors import SinkError, one_line
from runtime.pipeline.sinks.base import FrameResult, Sink, make_folder
from runtime.pipeline.sinks.disk_sync import DiskSync
from runtime.pipeline.sinks.h264 import CLOCK, LIVE, STORED, H264Encoder, PictureFit

FRAGMENT_S = 0.25  # written at once: a kill loses this much, a frame and what waits for the encoder
LEAST_RATE_AHEAD = 20  # frames a second; at fewer the encoder's lookahead would be too long a time

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
        "movflags": "empty_moov+default_base_moof",
        "frag_duration": str(round(FRAGMENT_S * 1e6)),  # in microseconds
        "flush_packets": "1",
    }
)
CONTAINERS = {
    ".mp4": _FRAGMENTED,
    ".m4v": _FRAGMENTED,
    ".mov": _FRAGMENTED,
    ".mkv": Container({"cluster_time_limit": str(round(FRAGMENT_S * 1e3)), "flush_packets": "1"}),
    ".avi": Container({"flush_packets": "1"}, has_clock=False),
}
SUFFIXES = tuple(CONTAINERS)


def open_video_sink(
    path: Path, *, size_wh: tuple[int, int], fps: float, is_live: bool = False
) -> Sink:
    """An annotated video: H.264 where PyAV is there, else OpenCV's MPEG-4 with a line in the log.

    Args:
        path: ends in one of SUFFIXES; its folder is made.
        size_wh: of the video in pixels; other frames are fitted in, which is said once. Odd sides
            get one more pixel. (0, 0): that of the first frame.
        fps: the source's nominal rate.
        is_live: encode each frame when it comes: a killed run loses at most the last second
            whatever the rate is, for a file that is a third larger.

    Raises:
        SinkError: the file cannot be opened.
    """
    make_folder(path)
    if importlib.util.find_spec("av") is None:
        _log.warning(
            "PyAV is missing: %s becomes MPEG-4 at a fixed frame rate, and is not playable if the "
            "run is killed. For H.264: pip install 'kestrel-vision[video]'",
            path,
        )
        return OpencvVideoSink(path, size_wh=size_wh, fps=fps)
    return VideoFileSink(path, size_wh=size_wh, fps=fps, is_live=is_live)


class VideoFileSink(Sink):
    """H.264 in MP4, MKV or AVI; time stamps are those of the source.

    Written in fragments of a quarter of a second, so that a file without its end plays. They are on
    the disk, safe from a power cut, a second later.
    """

    wants_picture = True

    def __init__(
        self, path: Path, *, size_wh: tuple[int, int], fps: float, is_live: bool = False
    ) -> None:
        import av

        self.target = str(path)
        container = CONTAINERS[path.suffix.lower()]
        rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
        self._encoder = H264Encoder(
            rate=rate,
            tuning=STORED if rate >= LEAST_RATE_AHEAD and not is_live else LIVE,
            clock=CLOCK if container.has_clock else 1 / rate,
            name=self.target,
        )
        self._errors = (OSError, av.error.FFmpegError)
        self._num_written = 0
        self._is_closed = False
        self._is_broken = False
        self._is_begun = False
        self._sync: DiskSync | None = None
        try:
            self._file = av.open(self.target, "w", options=container.options)
            if min(size_wh) > 0:
                self._begin(size_wh)
        except self._errors as error:
            self._is_broken = True
            with contextlib.suppress(AttributeError, *self._errors):  # it may not be open
                self.close()
            raise SinkError(
                f"output {path} cannot be opened: {one_line(error)}. Choose another place."
            ) from None

    def _begin(self, size_wh: tuple[int, int]) -> None:
        self._encoder.add_to(self._file, size_wh)
        self._file.start_encoding()
        self._is_begun = True
        descriptor = os.open(self.target, os.O_RDONLY)
        try:
            self._sync = DiskSync(descriptor, self.target)
        finally:
            os.close(descriptor)

    def write(self, result: FrameResult) -> None:
        image = result.frame.image_bgr
        try:
            if not self._is_begun:
                self._begin((image.shape[1], image.shape[0]))
            for packet in self._encoder.encode(image, result.frame.time_s):
                self._file.mux(packet)
        except self._errors as error:
            raise self._broken(error) from None
        self._num_written += 1
        if self._sync is not None:
            self._sync.note()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._is_begun and not self._is_broken:
                for packet in self._encoder.finish():
                    self._file.mux(packet)
            self._file.close()
        except self._errors as error:
            if not self._is_broken:
                raise self._broken(error) from None
        finally:
            self._end_sync()

    def _end_sync(self) -> None:
        if self._sync is None:
            return
        try:
            self._sync.close()
        except SinkError:
            if not self._is_broken:  # else the file's end is told already
                raise

    def _broken(self, error: Exception) -> SinkError:
        self._is_broken = True
        return SinkError(
            f"output {self.target} cannot be written after {self._num_written} frames: "
            f"{one_line(error)}. The part before plays; make room and run again."
        )


class OpencvVideoSink(Sink):
    """MPEG-4 through OpenCV, where PyAV is missing.

    Frames follow each other at the nominal rate whatever their times are, and the file plays only
    once it is closed.
    """

    wants_picture = True

    def __init__(self, path: Path, *, size_wh: tuple[int, int], fps: float) -> None:
        self.target = str(path)
        self._fps = fps
        self._num_written = 0
        self._writer: Any = None
        self._fit: PictureFit | None = None
        if min(size_wh) > 0:
            self._fit = self._begin(size_wh)

    def _begin(self, size_wh: tuple[int, int]) -> PictureFit:
        import cv2

        fit = PictureFit(size_wh, self.target)
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(self.target, code, self._fps, fit.size_wh)
        if not self._writer.isOpened():
            raise SinkError(
                f"output {self.target} cannot be opened by OpenCV; expected a writable place and "
                f"one of {', '.join(SUFFIXES)}. Choose another place."
            )
        return fit

    def write(self, result: FrameResult) -> None:
        image = result.frame.image_bgr
        if self._fit is None:
            self._fit = self._begin((image.shape[1], image.shape[0]))
        self._writer.write(self._fit(image))
        self._num_written += 1

    def close(self) -> None:
        """Close the file and read it again: OpenCV reports no error, a full disk least of all."""
        import cv2

        if self._writer is None or not self._writer.isOpened():
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
