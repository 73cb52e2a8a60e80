"""Video files decoded by PyAV, or by OpenCV where PyAV is missing; both are FFmpeg underneath.

PyAV says which packets do not decode, bounds the size that a stream may claim, and gives frames of
their own size when it changes in mid-stream; OpenCV stretches them to the first one's.
"""

from __future__ import annotations

import importlib.util
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.contract.errors import SourceError
from runtime.pipeline.sources.av_pictures import AvPictures
from runtime.pipeline.sources.base import Image
from runtime.pipeline.sources.capture import nominal_fps, open_capture, retrieve
from runtime.pipeline.sources.image_decoding import LARGEST_FRAME_PIXELS

DEFAULT_FPS = 25.0  # of files that do not say
MOST_THREADS = 4  # each holds frames of its own
# OpenCV's grab fails once for every few broken packets and succeeds after them, so a failure is
# the end only when as many have followed as the header still promises frames, and a few more.
SPARE_ATTEMPTS = 8
MOST_ATTEMPTS = 100_000  # a header may promise nonsense; at the end an attempt takes microseconds
MOST_DEMUX_ERRORS = 8  # without a frame between them: the container is beyond reading
# Lists of addresses: FFmpeg would open what they name, and try again for minutes.
_LEADING_ELSEWHERE = frozenset(
    ("applehttp", "concat", "concatf", "dash", "hls", "imf", "lavfi", "rtp", "rtsp", "sdp", "tty")
)
_PLAYLIST = re.compile(rb"\s*(#EXTM3U|ffconcat|<\?xml|<MPD|v=0)")
_TEXT_CODECS = frozenset(("ansi", "bintext", "xbin", "idf"))  # FFmpeg films letters


class VideoDecoder(ABC):
    """Frames of one video file, in the order of their display.

    Attributes:
        fps: nominal frames a second, over 0.
        num_promised: frames that the header promises, or None.
        num_refused: packets that the decoder would not take, so far; 0 where that is not told.
    """

    fps = DEFAULT_FPS
    num_promised: int | None = None
    num_refused = 0

    @abstractmethod
    def decode(self, num_missing: int, buffer: Image | None) -> tuple[Image, float] | None:
        """The next frame that decodes.

        Args:
            num_missing: frames that the header promises beyond those decoded.
            buffer: memory to use where it fits, of any size.

        Returns:
            (H, W, 3) uint8 BGR and its time in seconds from the stream's start (negative: not
            known), or None at the end.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the file; twice is harmless."""


def open_decoder(path: Path) -> VideoDecoder:
    """Open a video with PyAV, else with OpenCV.

    Raises:
        SourceError: no video, or one of pictures that are too large.
    """
    has_pyav = importlib.util.find_spec("av") is not None
    return PyavDecoder(path) if has_pyav else OpencvDecoder(path)


class PyavDecoder(VideoDecoder):
    """By PyAV. Only the file itself is opened, whatever other addresses it names."""

    def __init__(self, path: Path) -> None:
        import av

        self._errors = (av.error.FFmpegError, ValueError, MemoryError)
        containers = av.formats_available - _LEADING_ELSEWHERE
        options = {
            "max_pixels": str(LARGEST_FRAME_PIXELS),
            "protocol_whitelist": "file",
            "format_whitelist": ",".join(sorted(containers)),
        }
        try:
            self._file = av.open(str(path), options=options)
        except self._errors:
            raise _no_video(path) from None
        try:
            found: Any = self._file.streams
            self._stream: Any = found.best("video")
            self._check(path)
            context = self._stream.codec_context
            context.options = {"max_pixels": str(LARGEST_FRAME_PIXELS)}
            context.thread_count = min(os.cpu_count() or 1, MOST_THREADS)
            self._stream.thread_type = "AUTO"
        except BaseException:
            self._file.close()
            raise
        self._pictures = AvPictures()
        self.fps = nominal_fps(float(self._stream.guessed_rate or 0), DEFAULT_FPS)
        self.num_promised = self._promise()
        self._start_s = float((self._stream.start_time or 0) * (self._stream.time_base or 0))
        self._is_closed = False
        self._frames = self._decode_all()

    def _check(self, path: Path) -> None:
        context = None if self._stream is None else self._stream.codec_context
        if context is None or context.name in _TEXT_CODECS:  # None: of an unknown codec
            raise _no_video(path)
        _check_size(path, context.width, context.height)

    def _promise(self) -> int | None:
        duration_s = (self._file.duration or 0) / 1e6
        promised = self._stream.frames or int(duration_s * self.fps + 0.5)
        return promised if 0 < promised < 1e9 else None

    def decode(self, num_missing: int, buffer: Image | None) -> tuple[Image, float] | None:
        for frame in self._frames:
            try:
                image = self._pictures.to_bgr(frame, buffer)
            except self._errors:  # a pixel format without a way to BGR
                self.num_refused += 1
                continue
            time_s = frame.time
            return image, -1.0 if time_s is None else time_s - self._start_s
        return None

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._frames = iter(())
            self._file.close()

    def _decode_all(self) -> Iterator[Any]:
        num_errors = 0
        packets = self._file.demux(self._stream)
        while num_errors < MOST_DEMUX_ERRORS:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except self._errors:
                num_errors += 1
                self.num_refused += 1
                packets = self._file.demux(self._stream)
                continue
            try:
                frames = packet.decode()
            except self._errors:
                self.num_refused += 1
                continue
            num_errors = 0 if frames else num_errors
            yield from frames


class OpencvDecoder(VideoDecoder):
    """By OpenCV."""

    def __init__(self, path: Path) -> None:
        capture = None
        if not _names_others(path):
            capture = open_capture(str(path), backends=("CAP_FFMPEG", "CAP_ANY"))
        if capture is None:
            raise _no_video(path)
        import cv2

        self._capture = capture
        self._position = cv2.CAP_PROP_POS_MSEC
        self._is_closed = False
        code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
        try:
            if code.to_bytes(4, "little") == b"ansi":
                raise _no_video(path)
            width, height = cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT
            _check_size(path, int(capture.get(width)), int(capture.get(height)))
        except SourceError:
            self.close()
            raise
        self.fps = nominal_fps(capture.get(cv2.CAP_PROP_FPS), DEFAULT_FPS)
        promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.num_promised = int(promised) if 0 < promised < 1e9 else None

    def decode(self, num_missing: int, buffer: Image | None) -> tuple[Image, float] | None:
        for _ in range(min(max(num_missing, 0) + SPARE_ATTEMPTS, MOST_ATTEMPTS)):
            if not self._is_closed and self._capture.grab():
                image = retrieve(self._capture, buffer)
                if image is not None:
                    return image, self._capture.get(self._position) / 1000.0
        return None

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._capture.release()


def _names_others(path: Path) -> bool:
    """Whether it is a playlist; OpenCV cannot be told to open nothing else."""
    try:
        with path.open("rb") as file:
            return _PLAYLIST.match(file.read(256)) is not None
    except OSError:
        return False  # its opener will say


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > LARGEST_FRAME_PIXELS:
        raise SourceError(
            f"source {path} claims frames of {width}x{height} pixels; expected at most "
            f"{LARGEST_FRAME_PIXELS // 1_000_000} million. It is damaged, or scale it down."
        )


def _no_video(path: Path) -> SourceError:
    return SourceError(
        f"source {path} is no video that can be read; expected MP4, MKV, AVI or the like. "
        "Play it with ffplay, or convert it with ffmpeg."
    )
