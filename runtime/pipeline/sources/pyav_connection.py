"""A network stream through PyAV (FFmpeg's libraries).

Why not OpenCV, which is FFmpeg too: both were killed, stopped and left without an answer, over TCP
and UDP, and both came back, with the same delay. But PyAV says why (refused, 404, no answer) where
OpenCV says no, marks damaged pictures that OpenCV passes on with their holes filled in, and takes
options for each stream, where OpenCV reads them from the environment of the whole process. So PyAV
is used where it is installed, and OpenCV elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any, cast

from runtime.contract.errors import SourceError, one_line
from runtime.pipeline.sources.av_pictures import AvPictures
from runtime.pipeline.sources.capture import nominal_fps
from runtime.pipeline.sources.connection import (
    ConnectionLost,
    Picture,
    StreamEnded,
    TakeBuffer,
)
from runtime.pipeline.sources.image_decoding import LARGEST_FRAME_PIXELS
from runtime.pipeline.sources.live_options import LiveOptions

DEFAULT_FPS = 25.0  # of streams that do not say
MOST_PENDING = 64  # packets whose pictures have not come out of the decoder
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"  # markers: what follows is the picture; it is over
# In these, FFmpeg knows that a picture of H.264 or H.265 has come when the next one begins, and
# hands it over then: one frame interval late. So it came when the picture before was handed over.
# When the stream ends it hands over what it has of the last one and fills the rest with an older.
CUT_BY_THE_NEXT = ("rtsp", "mpegts")
# What lies at the address is a list, or has no end whatever length the server makes up for it.
LENGTH_SAYS_NOTHING = ("hls", "dash", "mpjpeg")


class PyAvConnection:
    """Pictures of the first video stream behind a URL.

    Args:
        url: with user and password where there are any.
        options: timeouts and the rate.
        settings: FFmpeg's, of the demuxer and its protocol.
        may_end: what has a length, in seconds or in bytes, is a video with an end.

    Raises:
        ConnectionLost: not there, no answer, or nothing that FFmpeg can read.
        SourceError: no video in it.
    """

    def __init__(
        self,
        url: str,
        options: LiveOptions,
        settings: Mapping[str, str],
        *,
        may_end: bool = False,
    ) -> None:
        import av

        self._errors = (av.error.FFmpegError, ValueError, MemoryError)
        timeouts = options.open_timeout_s, options.stall_timeout_s
        self._stall_timeout_s = options.stall_timeout_s
        largest = {"max_pixels": str(LARGEST_FRAME_PIXELS)}
        begun = perf_counter()
        try:
            self._container = av.open(url, options={**largest, **settings}, timeout=timeouts)
        except self._errors as error:
            raise ConnectionLost(_reason(error, begun, options.open_timeout_s)) from None
        try:
            self._stream = cast(Any, self._container.streams.best("video"))
            if self._stream is None:
                raise SourceError("the stream has no video; expected one. Check its address.")
            self._stream.codec_context.options = largest
            # Frame threads would hold back as many pictures as there are threads.
            self._stream.thread_type = "SLICE"
        except BaseException:
            self._container.close()
            raise
        self._pictures = AvPictures()
        self.fps = self._rate(options.fps)
        self.has_end = may_end and self._has_length()
        self.num_corrupt = 0
        self._num_read = 0
        self._first_stamp_s: float | None = None
        self._is_late = (
            not self.has_end
            and self._container.format.name in CUT_BY_THE_NEXT
            and self._stream.codec_context.name in ("h264", "hevc")
        )
        self._is_jpeg = self._stream.codec_context.name == "mjpeg"
        self._marks_ends = False
        self._last_read_at = perf_counter()
        self._came_at: dict[int, float] = {}
        self._decoded: list[Any] = []
        self._packets = self._container.demux(self._stream)

    def _has_length(self) -> bool:
        """Whether it ends: MPEG-TS, bare H.264 and single pictures tell no duration, but a size."""
        if self._container.duration is not None:
            return True
        return self._container.format.name not in LENGTH_SAYS_NOTHING and self._container.size > 0

    def _rate(self, asked: float | None) -> float:
        told = self._stream.average_rate or self._stream.base_rate
        if self._container.format.name == "mpjpeg":
            told = None  # FFmpeg supposes 25, whatever comes
        return asked or nominal_fps(float(told or 0), DEFAULT_FPS)

    def read(self, take_buffer: TakeBuffer) -> Picture | None:
        if not self._decoded:
            self._decode_next()
        if not self._decoded:
            return None
        frame = self._decoded.pop(0)
        came_at = self._came_at.pop(frame.pts, self._packet_at)
        begun = perf_counter()
        if frame.is_corrupt:
            self.num_corrupt += 1
            return None
        try:
            image = self._pictures.to_bgr(frame, take_buffer())
        except self._errors:  # a pixel format without a way to BGR
            self.num_corrupt += 1
            return None
        capture_ms = (perf_counter() - begun) * 1e3 + self._decode_ms
        time_s = self._time_of(frame) if self.has_end else None
        self._num_read += 1
        return Picture(image, came_at, capture_ms, time_s, may_be_cut=self._is_late)

    def _time_of(self, frame: Any) -> float:
        """Seconds since the first picture, by the rate where there are no time stamps."""
        if frame.time is None:
            return self._num_read / self.fps
        if self._first_stamp_s is None:
            self._first_stamp_s = frame.time
        return float(frame.time - self._first_stamp_s)

    def close(self) -> None:
        self._container.close()

    def _decode_next(self) -> None:
        begun = perf_counter()
        try:
            packet = next(self._packets)
        except StopIteration:
            if self.has_end:
                raise StreamEnded from None
            raise ConnectionLost("the other side ended the stream") from None
        except self._errors as error:
            raise ConnectionLost(_reason(error, begun, self._stall_timeout_s)) from None
        read_at = perf_counter()
        if read_at - begun > 0.95 * self._stall_timeout_s and not self.has_end:
            # FFmpeg lets go of the picture that it held back, as old as it is, and reads on.
            raise ConnectionLost(f"no answer for {read_at - begun:.1f} s")
        self._packet_at = self._last_read_at if self._is_late else read_at
        self._last_read_at = read_at
        if packet.pts is not None:
            self._came_at[packet.pts] = self._packet_at
            while len(self._came_at) > MOST_PENDING:
                del self._came_at[next(iter(self._came_at))]
        try:
            if self._is_jpeg and self._is_cut_off(bytes(packet)):
                self.num_corrupt += 1  # FFmpeg would make up the rest
            else:
                self._decoded = packet.decode()
        except self._errors:
            self.num_corrupt += 1
        self._decode_ms = (perf_counter() - read_at) * 1e3

    def _is_cut_off(self, jpeg: bytes) -> bool:
        """Whether a JPEG has no end, of a camera that marks it; some do not."""
        has_end = jpeg.rfind(JPEG_END) > jpeg.rfind(JPEG_SCAN)
        self._marks_ends |= has_end
        return bool(jpeg) and self._marks_ends and not has_end


def _reason(error: BaseException, begun: float, timeout_s: float) -> str:
    """Why, for people. FFmpeg calls a timeout "exit requested", or the data invalid."""
    waited_s = perf_counter() - begun
    if waited_s >= timeout_s * 0.95:
        return f"no answer for {waited_s:.1f} s"
    text = getattr(error, "strerror", None) or one_line(error)
    return str(text)[:1].lower() + str(text)[1:]
