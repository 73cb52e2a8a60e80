"""Raw frames from standard input, a named pipe or a file, as other programs write them.

    ffmpeg -i street.mp4 -f rawvideo -pix_fmt bgr24 - |
        python runtime/run_video.py runs/retinanet --source "raw:-?size=1280x720"

The stream has no header, so size and pixel format come with the URI.
"""

from __future__ import annotations

import logging
import math
import os
import select
import stat
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.contract.errors import SourceError, one_line
from runtime.pipeline.sources.base import Frame, Image, NoFrameYet, Source, SourceState
from runtime.pipeline.sources.image_decoding import LARGEST_FRAME_PIXELS
from runtime.pipeline.sources.options import check_choice, read_fps, read_size, split_options

DEFAULT_FPS = 25.0
STDIN = "-"
LONGEST_WAIT_S = 1.0  # in one `read`: then its reader looks at the stop signal
STALLED_S, STALLED_FRAMES = 2.0, 3  # a live stream is stalled after the longer of the two
FIRST_WORD_S = 5.0  # a first frame that takes longer is worth a line in the log

_OPTIONS = ("size", "format", "rate", "live")
_EXAMPLE = "raw:-?size=640x480&format=bgr24&rate=25"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PixelFormat:
    """How a frame lies in the stream; names are FFmpeg's.

    Attributes:
        rows: height of the stored array for each row of the picture.
        channels: of the stored array; 1 where it has no third axis.
        conversion: OpenCV's code to BGR, or "" where it is BGR. YUV is BT.601, limited range.
        is_subsampled: one chroma value for 2x2 pixels, so that both sides are even.
    """

    rows: float = 1.0
    channels: int = 1
    conversion: str = ""
    is_subsampled: bool = False

    def shape(self, size_wh: tuple[int, int]) -> tuple[int, ...]:
        """Of the array that holds one frame."""
        width, height = size_wh
        shape = (int(height * self.rows), width)
        return shape if self.channels == 1 else (*shape, self.channels)


PIXEL_FORMATS = {
    "bgr24": PixelFormat(channels=3),
    "rgb24": PixelFormat(channels=3, conversion="COLOR_RGB2BGR"),
    "gray8": PixelFormat(conversion="COLOR_GRAY2BGR"),
    "yuv420p": PixelFormat(rows=1.5, conversion="COLOR_YUV2BGR_I420", is_subsampled=True),
    "nv12": PixelFormat(rows=1.5, conversion="COLOR_YUV2BGR_NV12", is_subsampled=True),
}


class RawFrameSource(Source):
    """Frames of a headerless stream, one after the other; nothing is skipped or guessed.

    As fast as they come and none dropped, unless `live=yes`: then frames are timed by the clock and
    the pipeline keeps the newest. A last frame that is broken off is counted as corrupt.

    Args:
        uri: "-" for standard input, or the path of a named pipe or file, then "?" and, joined by
            "&": size=640x480 (needed), format= one of `PIXEL_FORMATS` (bgr24), rate=25 in frames a
            second, live=yes.

    Raises:
        SourceError: an unknown or missing option, nothing there, or less than one frame.
    """

    def __init__(self, uri: str) -> None:
        target, options = split_options(uri, _OPTIONS, example=_EXAMPLE)
        name = "standard input" if target in ("", STDIN) else target
        if "size" not in options:
            raise SourceError(
                f"source raw:{uri} has no size; raw frames carry none. Expected such as {_EXAMPLE}."
            )
        size_wh = read_size(options["size"], name)
        self._format = _choose_format(options.get("format", "bgr24"), size_wh)
        fps = read_fps(options["rate"], name) if "rate" in options else DEFAULT_FPS
        is_live = check_choice("live", options.get("live", "no"), ("yes", "no")) == "yes"
        super().__init__(name, fps=fps, is_live=is_live)
        self.size_wh = size_wh
        self._stored = np.empty(self._format.shape(size_wh), np.uint8)
        self._num_filled = 0  # bytes of the frame under way
        self._begun_at = self._last_at = time.perf_counter()
        self._started_at: float | None = None
        self._time_s = -1.0
        self._descriptor = _open(target)
        self._owns_descriptor = target not in ("", STDIN)
        self._is_closed = False
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self.num_promised = self._promise()
        self._first: Frame | None = None
        try:
            self._first = self._wait_for_first()
        except BaseException:
            self.close()
            raise
        self.set_state(SourceState.RUNNING)

    def read(self) -> Frame | None:
        frame, self._first = self._first, None
        if frame is not None:
            if not self.is_live:  # read when opened; a live one is as old as it is
                frame.captured_at = time.perf_counter() - frame.capture_ms / 1000.0
                frame.wall_time_s = time.time() - frame.capture_ms / 1000.0
            return frame
        if self._is_closed:
            return None
        try:
            frame = self._next(LONGEST_WAIT_S)
        except NoFrameYet:
            silent_s = time.perf_counter() - self._last_at
            if self.is_live and silent_s > max(STALLED_S, STALLED_FRAMES / self.fps):
                self.set_state(SourceState.STALLED, f"no frame for {silent_s:.1f} s")
            raise
        if frame is not None:
            self.set_state(SourceState.RUNNING)
        return frame

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            if self._owns_descriptor:
                os.close(self._descriptor)

    def _promise(self) -> int | None:
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        left = status.st_size - os.lseek(self._descriptor, 0, os.SEEK_CUR)
        return math.ceil(left / self._stored.nbytes)

    def _wait_for_first(self) -> Frame:
        waits_since, is_told = time.monotonic(), False
        while True:
            try:
                frame = self._next(LONGEST_WAIT_S)
                break
            except NoFrameYet:
                if not is_told and time.monotonic() - waits_since > FIRST_WORD_S:
                    is_told = True
                    _log.info("%s: waiting for the first frame", self.name)
        if frame is None:
            came = f"{self._num_filled} of the {self._stored.nbytes} bytes of its first frame"
            raise SourceError(
                f"source {self.name} ended after {came}; expected raw frames of "
                f"{self.size_wh[0]}x{self.size_wh[1]} pixels. Check the size, the format and the "
                "program that writes them."
            )
        return frame

    def _next(self, timeout_s: float) -> Frame | None:
        """The next frame; what came of it before a NoFrameYet is kept for the next call."""
        deadline = time.monotonic() + timeout_s
        into = self._stored.reshape(-1).data
        while self._num_filled < len(into):
            wait_s = max(deadline - time.monotonic(), 0.0)
            if not self._poll.poll(wait_s * 1000.0):
                raise NoFrameYet(f"{self.name} gave nothing for {timeout_s} s")
            try:
                num_read = os.readv(self._descriptor, [into[self._num_filled :]])
            except BlockingIOError:  # another reader was faster
                continue
            except OSError as error:
                raise SourceError(f"source {self.name} failed: {one_line(error)}") from None
            if num_read == 0:
                self._end()
                return None
            if self._num_filled == 0:
                self._begun_at = time.perf_counter()
            self._num_filled += num_read
        self._num_filled = 0
        return self._make_frame()

    def _end(self) -> None:
        if self._num_filled and self.num_decoded:
            self.num_corrupt += 1
            _log.warning(
                "%s: the last frame is broken off after %d of %d bytes; not counted as a frame",
                self.name, self._num_filled, self._stored.nbytes,
            )  # fmt: skip
            self._num_filled = 0

    def _make_frame(self) -> Frame:
        image = self._to_bgr(self.take_buffer())
        index = self.num_decoded
        if self._started_at is None:
            self._started_at = self._begun_at
        taken_s = self._begun_at - self._started_at if self.is_live else index / self.fps
        self._time_s = max(taken_s, self._time_s + 1e-6)
        self.num_decoded += 1
        self._last_at = time.perf_counter()
        took_s = self._last_at - self._begun_at
        wall_s = time.time() - took_s
        return Frame(image, index, self._time_s, self._begun_at, took_s * 1000.0, self.name, wall_s)

    def _to_bgr(self, buffer: Image | None) -> Image:
        import cv2

        if not self._format.conversion:
            image = np.empty_like(self._stored) if buffer is None else buffer
            np.copyto(image, self._stored)
            return image
        code: int = getattr(cv2, self._format.conversion)
        return np.asarray(cv2.cvtColor(self._stored, code, dst=buffer), np.uint8)


def reads_standard_input(uri: str) -> bool:
    """Whether a source's URI, scheme included, asks for what can be read only once."""
    scheme, _, rest = uri.partition(":")
    target = rest.removeprefix("//").partition("?")[0]
    return scheme.lower() == "stdin" or (scheme.lower() == "raw" and target in ("", STDIN))


def _choose_format(name: str, size_wh: tuple[int, int]) -> PixelFormat:
    form = PIXEL_FORMATS[check_choice("format", name, tuple(PIXEL_FORMATS))]
    width, height = size_wh
    if form.is_subsampled and (width % 2 or height % 2):
        raise SourceError(
            f"raw frames of {width}x{height} in {name}: its sides are even. Take another format, "
            "or pad the picture."
        )
    if width * height > LARGEST_FRAME_PIXELS:
        raise SourceError(
            f"raw frames of {width}x{height} pixels; expected at most "
            f"{LARGEST_FRAME_PIXELS // 1_000_000} million. Check size=."
        )
    return form


class StdinSource(RawFrameSource):
    """`RawFrameSource` of standard input: "stdin:?size=640x480&format=bgr24"."""

    def __init__(self, uri: str) -> None:
        if uri[:1] not in ("", "?"):
            raise SourceError(f"source stdin:{uri} names a file; expected stdin:?size=640x480.")
        super().__init__(STDIN + uri)


def _open(target: str) -> int:
    """The descriptor to read from; a named pipe without a writer is waited for in `read`."""
    if target in ("", STDIN):
        if not _is_open(0) or os.isatty(0):
            raise SourceError(
                "source raw:- reads standard input, which is closed or a terminal; expected a pipe "
                "or a file. Write '... | run_video.py ...', or '... < FILE'."
            )
        return 0
    if Path(target).is_dir():
        raise SourceError(f"source raw:{target} is a folder; expected a pipe or a file.")
    try:
        # Without a writer a pipe would block here, where no signal is looked at.
        return os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(
            f"source raw:{target} cannot be opened: {one_line(error)}. Check the path."
        ) from None


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
