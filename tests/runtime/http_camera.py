"""A camera that sends JPEGs over HTTP, in this process; it can be killed and started again."""

from __future__ import annotations

import base64
import contextlib
import http.server
import socket
import threading
import time

import cv2
import numpy as np

from benchmarks.measure.numbered_pictures import draw_number

BOUNDARY = b"--frame\r\nContent-Type: image/jpeg\r\n"


def jpeg(number: int, size_wh: tuple[int, int] = (64, 48)) -> bytes:
    grey = np.frombuffer(draw_number(number, size_wh), np.uint8).reshape(size_wh[::-1])
    return cv2.imencode(".jpg", grey)[1].tobytes()


class HttpCamera:
    """One for each test; `number` is of the next picture, and goes on rising over restarts.

    Attributes:
        script: bytes to send in place of pictures, one after the other.
        is_quiet: it sends nothing. is_mute: nor does it answer at all.
        password: asked for, where it is not "".
        size_wh: of its pictures.
        num_clients: since the start.
    """

    def __init__(self) -> None:
        self.number = 0
        self.script: list[bytes] = []
        self.is_quiet = self.is_mute = False
        self.password = ""
        self.size_wh = (64, 48)
        self.num_clients = 0
        self._sockets: set[socket.socket] = set()
        self._is_running = True
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/live"

    def start(self) -> None:
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):  # noqa: N802 - the library's name
                camera.serve(self)

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):
                pass  # clients hang up

        self._is_running = True
        self._server = Server(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def kill(self) -> None:
        """All connections end at once."""
        self._is_running = False
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):  # its client has hung up
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._sockets.clear()

    def serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self.num_clients += 1
        while self.is_mute and self._is_running:
            time.sleep(0.01)
        if request.path != "/live":
            request.send_error(404)
            return
        asked = base64.b64encode(f"admin:{self.password}".encode()).decode()
        if self.password and request.headers["Authorization"] != f"Basic {asked}":
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="camera"')
            request.end_headers()
            return
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        self._sockets.add(request.connection)
        while self._is_running:
            if not self.is_quiet:
                request.wfile.write(self._next())
            time.sleep(0.02)

    def _next(self) -> bytes:
        if self.script:
            return self.script.pop(0)
        self.number += 1
        return part(jpeg(self.number, self.size_wh))


def part(data: bytes) -> bytes:
    """A picture as it stands in the stream."""
    return BOUNDARY + b"Content-Length: %d\r\n\r\n" % len(data) + data + b"\r\n"
