"""Annotated video to an RTSP server, which hands it on to whoever wants to see it."""

from __future__ import annotations

import importlib.util
import select
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from runtime.contract.errors import SinkError, one_line
from runtime.pipeline.sinks.base import FrameResult, Sink
from runtime.pipeline.sinks.h264 import CLOCK, LIVE, H264Encoder
from runtime.pipeline.sinks.outage import Outage, hide_login, split_url

TIMEOUT_S = 5.0  # of the server, to connect and to take a frame
END_S = 2.0  # for the publisher to say goodbye
PACKET_FORMAT = "mpegts"  # between this process and the publisher

_ROOT = Path(__file__).resolve().parents[3]
_PUBLISHER = (
    f"import sys; sys.path.insert(0, {str(_ROOT)!r}); "
    "from runtime.pipeline.sinks.rtsp_publisher import publish; publish(sys.stdin.buffer)"
)


class RtspPushSink(Sink):
    """Publishes H.264 by RTSP over TCP (ANNOUNCE and RECORD) to a server such as MediaMTX.

    A process of its own talks to the server: FFmpeg would hold up all of Python's threads while a
    server does not answer. Where the server goes away the frames are lost and counted until it is
    back; those that were sent to a server that proves not to be there, too.

    Args:
        url: rtsp://[USER:PASSWORD@]HOST[:PORT]/PATH, where the server takes streams.
        fps: the source's nominal rate.

    Raises:
        SinkError: not such an address, or PyAV is missing.
    """

    wants_picture = True
    is_waited_for = False

    def __init__(self, url: str, *, fps: float, timeout_s: float = TIMEOUT_S) -> None:
        split_url(url, ("rtsp", "rtsps"), "rtsp://HOST:8554/PATH")
        if importlib.util.find_spec("av") is None:
            raise SinkError(
                "--rtsp-out needs PyAV, which is not installed. pip install 'kestrel-vision[video]'"
            )
        self.target = hide_login(url)
        self.num_lost = 0
        self._url = url
        self._rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
        self._timeout_s = timeout_s
        self._outage = Outage(self.target)
        self._line: _Line | None = None
        self._num_unsure = 0  # sent on a line that may yet turn out to have no server
        self._is_closed = False

    def write(self, result: FrameResult) -> None:
        if self._outage.is_waiting:
            self.num_lost += 1
            return
        image = result.frame.image_bgr
        try:
            if self._line is None:
                size_wh = (image.shape[1], image.shape[0])
                self._line = _Line(self._url, self._rate, size_wh, self.target, self._timeout_s)
            is_taken = self._line.send(image, result.frame.time_s)
        except OSError as error:
            self.num_lost += 1 + self._num_unsure
            self._num_unsure = 0
            self._outage.begin(self._end_line() or one_line(error))
            return
        self._num_unsure += 1
        if is_taken:
            self._num_unsure = 0
            self._outage.end(self.num_lost)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        line = self._line
        if line is not None:
            line.finish()
            self._end_line()
            if not line.has_ended_well:
                self.num_lost += self._num_unsure

    def _end_line(self) -> str:
        """End the publisher; its last words."""
        line, self._line = self._line, None
        return "" if line is None else line.end()


class _Line:
    """One publisher, from its start until it or the server fails."""

    def __init__(
        self, url: str, rate: Fraction, size_wh: tuple[int, int], name: str, timeout_s: float
    ) -> None:
        import av

        self._timeout_s = timeout_s
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PUBLISHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for this process, which ends the publisher in order
        )
        assert self._process.stdin is not None
        self._pipe = _PatientPipe(self._process.stdin, timeout_s)
        self._errors = (OSError, av.error.FFmpegError)
        try:
            self._pipe.write(f"{timeout_s:g} {url}\n".encode())
            flushed = {"flush_packets": "1"}
            self._file: Any = av.open(self._pipe, "w", format=PACKET_FORMAT, options=flushed)
            self._encoder = H264Encoder(rate=rate, tuning=LIVE, clock=CLOCK, name=name)
            self._encoder.add_to(self._file, size_wh)
        except BaseException:
            self.end()
            raise

    def send(self, image_bgr: Any, time_s: float) -> bool:
        """Hand one frame to the publisher; whether it has had time to fail and did not.

        Raises:
            OSError: it or the server does not take it.
        """
        if self._process.poll() is not None:
            raise BrokenPipeError("the publisher ended")
        try:
            for packet in self._encoder.encode(image_bgr, time_s):
                self._file.mux(packet)
        except self._errors as error:
            raise BrokenPipeError(one_line(error)) from None
        return time.monotonic() - self._started > self._timeout_s

    def finish(self) -> None:
        """Send what is held and the end."""
        try:
            for packet in self._encoder.finish():
                self._file.mux(packet)
            self._file.close()
        except self._errors:
            return

    @property
    def has_ended_well(self) -> bool:
        """Whether the publisher passed on all that it was given, and is gone."""
        return self._process.returncode == 0

    def end(self) -> str:
        """End the process; the last line that it said."""
        process = self._process
        assert process.stdin is not None
        assert process.stderr is not None
        self._pipe.is_open = False
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        words = process.stderr.read().decode(errors="replace").strip().splitlines()
        process.stderr.close()
        return words[-1] if words else ""


class _PatientPipe:
    """A pipe's writing end as a file for PyAV that gives up after a while."""

    def __init__(self, pipe: IO[bytes], timeout_s: float) -> None:
        self._pipe = pipe
        self._timeout_s = timeout_s
        self.is_open = True

    def write(self, data: bytes) -> int:
        """Write all of it.

        Raises:
            TimeoutError: the other side did not take it in time.
        """
        if not self.is_open:
            raise BrokenPipeError("closed")
        rest = memoryview(bytes(data))
        while rest:
            if not select.select([], [self._pipe], [], self._timeout_s)[1]:
                raise TimeoutError(f"nothing was taken for {self._timeout_s:g} s")
            rest = rest[self._pipe.write(rest[: select.PIPE_BUF]) :]
        return len(data)
