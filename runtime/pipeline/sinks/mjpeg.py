"""Annotated frames for any browser: MJPEG by HTTP, from a server in this process."""

from __future__ import annotations

import html
import logging
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from runtime.contract.errors import SinkError, one_line
from runtime.pipeline.sinks.base import FrameResult, Sink

LOCAL = "127.0.0.1"
MOST_VIEWERS = 16
QUALITY = 80  # of the JPEGs, 0..100
PATIENCE_S = 10.0  # a viewer that does not take a frame for so long is let go
FRAME_WAIT_S = 5.0  # of a viewer for a frame
BOUNDARY = "kestrel-frame"

_log = logging.getLogger(__name__)


class MjpegSink(Sink):
    """Serves a page with all sources, and of each its stream and its newest frame.

    GET / is the page, /stream.mjpg?source=NAME the stream and /frame.jpg?source=NAME one picture;
    without a name the first source's. Frames are encoded only while someone looks. A viewer gets
    the newest frame when it has taken the one before, so a slow one holds up nobody. There is no
    password: only this machine sees it unless a host is given.

    Args:
        address: "PORT" or "HOST:PORT"; port 0 takes a free one.

    Raises:
        SinkError: not an address, or it is taken.
    """

    wants_picture = True
    is_waited_for = False

    def __init__(self, address: str) -> None:
        host, port = parse_address(address)
        self._board = Board()
        board = self._board

        class Handler(_Handler):
            frames = board

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise SinkError(
                f"--mjpeg {address} cannot be served: {one_line(error)}. Choose another port."
            ) from None
        self.port = self._server.server_port
        shown = f"[{host}]" if ":" in host else host
        self.target = f"http://{shown}:{self.port}/"
        self._is_closed = False
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._thread.start()
        _log.info("annotated frames: %s", self.target)

    def write(self, result: FrameResult) -> None:
        name = result.frame.source
        if not self._board.is_wanted(name):
            return
        import cv2

        is_done, jpeg = cv2.imencode(
            ".jpg", result.frame.image_bgr, (cv2.IMWRITE_JPEG_QUALITY, QUALITY)
        )
        if is_done:
            self._board.show(name, jpeg.tobytes())

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._board.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def parse_address(address: str) -> tuple[str, int]:
    """("127.0.0.1", 8080) of "8080", ("0.0.0.0", 8080) of "0.0.0.0:8080".

    Raises:
        SinkError: neither.
    """
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise SinkError(
            f"--mjpeg {address} is no address; expected PORT or HOST:PORT, such as 8080 for this "
            "machine alone or 0.0.0.0:8080 for the network"
        )
    return host.strip("[]") or LOCAL, int(port)


@dataclass
class _Place:
    """The newest frame of one source.

    Attributes:
        number: rises with each frame. num_viewers: that wait for frames.
    """

    jpeg: bytes = b""
    number: int = 0
    num_viewers: int = 0


@dataclass
class Board:
    """The newest frame of each source, and who looks at it; used by many threads."""

    is_closed: bool = False
    _places: dict[str, _Place] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def is_wanted(self, name: str) -> bool:
        """Whether someone looks at the source; makes it known."""
        with self._changed:
            if name not in self._places:
                self._places[name] = _Place()
                self._changed.notify_all()
            return self._places[name].num_viewers > 0

    def show(self, name: str, jpeg: bytes) -> None:
        """Put up a frame."""
        with self._changed:
            place = self._places[name]
            place.jpeg = jpeg
            place.number += 1
            self._changed.notify_all()

    def names(self) -> list[str]:
        """The sources that are known, the first one first."""
        with self._changed:
            return list(self._places)

    def find(self, name: str | None) -> str | None:
        """The name itself, or the first source's; None where there is none after a while."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.is_closed or (name in self._places if name else self._places),
                FRAME_WAIT_S,
            )
            if name is None:
                return next(iter(self._places), None)
            return name if name in self._places else None

    def look(self, name: str, step: int) -> None:
        """Count a viewer in (1) or out (-1)."""
        with self._changed:
            self._places[name].num_viewers += step

    @property
    def num_viewers(self) -> int:
        """Of all sources."""
        with self._changed:
            return sum(place.num_viewers for place in self._places.values())

    def wait(self, name: str, after: int | None) -> tuple[int, bytes] | None:
        """The newest frame's number and JPEG.

        Args:
            after: wait for one with a higher number; None: for the next one that comes.

        Returns:
            None where nothing came in time, or it is over.
        """
        with self._changed:
            place = self._places[name]
            seen = place.number if after is None else after
            self._changed.wait_for(lambda: self.is_closed or place.number > seen, FRAME_WAIT_S)
            if self.is_closed or place.number <= seen:
                return None
            return place.number, place.jpeg

    def close(self) -> None:
        """It is over: nobody waits any longer."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        if ":" in address[0]:
            import socket

            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("viewer %s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    frames: Board
    timeout = PATIENCE_S

    def do_GET(self) -> None:  # noqa: N802 - the base class's
        parts = urlsplit(self.path)
        name = parse_qs(parts.query).get("source", [None])[0]
        try:
            if parts.path == "/":
                self._send("text/html; charset=utf-8", self._page())
            elif parts.path in ("/stream.mjpg", "/frame.jpg"):
                self._show(name, is_stream=parts.path == "/stream.mjpg")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        except OSError:  # the viewer went away
            self.close_connection = True

    def _page(self) -> bytes:
        images = "".join(
            f'<figure><img src="/stream.mjpg?source={quote(name, safe="")}">'
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
            for name in self.frames.names()
        )
        return (
            "<!doctype html><title>Kestrel</title><style>img{max-width:100%}</style>"
            f"{images or 'No frame yet; load this page again.'}"
        ).encode()

    def _show(self, asked: str | None, *, is_stream: bool) -> None:
        name = self.frames.find(asked)
        if name is None:
            self.send_error(HTTPStatus.NOT_FOUND, "no such source")
            return
        if self.frames.num_viewers >= MOST_VIEWERS:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_VIEWERS} viewers already")
            return
        self.frames.look(name, 1)
        try:
            if is_stream:
                self._stream(name)
            elif (shown := self.frames.wait(name, None)) is not None:
                self._send("image/jpeg", shown[1])
            else:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "no frame came")
        finally:
            self.frames.look(name, -1)

    def _stream(self, name: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        seen: int | None = None
        while not self.frames.is_closed:
            shown = self.frames.wait(name, seen)
            if shown is None:
                continue
            seen, jpeg = shown
            head = (
                f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            )
            self.wfile.write(head.encode() + jpeg + b"\r\n")

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's
        _log.debug(format, *args)
