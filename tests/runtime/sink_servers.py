"""Small servers that sinks talk to: a web server, an MQTT broker, an RTSP server that records."""

from __future__ import annotations

import json
import socket
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATIENCE_S = 60.0  # nothing waits for so long when all is well


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class _Served:
    """Accepts connections, each served on a thread; a context manager."""

    def __init__(self, port: int = 0):
        self.changed = threading.Condition()
        self.listener = socket.create_server(("127.0.0.1", port), reuse_port=False)
        self.port = self.listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve_safely, args=(connection,), daemon=True).start()

    def _serve_safely(self, connection):
        try:
            with connection, connection.makefile("rb") as stream:
                self.serve(connection, stream)
        except (OSError, ValueError):
            return

    def serve(self, connection, stream):
        raise NotImplementedError

    def wait_until(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_S)

    def tell(self, change):
        with self.changed:
            change()
            self.changed.notify_all()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Close everything, so that the port is free and clients see an end."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class MuteServer(_Served):
    """Takes connections and what is sent, and never answers."""

    def serve(self, connection, stream):
        while stream.read1(1 << 16):
            pass


class DeafServer(_Served):
    """Takes connections, and reads nothing of what is sent."""

    def serve(self, connection, stream):
        threading.Event().wait(PATIENCE_S)


class WebServer:
    """Keeps every request's JSON; answers with `statuses` in turn, then with 200."""

    def __init__(self, statuses: tuple[int, ...] = ()):
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.statuses = list(statuses)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):  # noqa: N802
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = outer.statuses.pop(0) if outer.statuses else 200
                outer.headers.append(dict(self.headers))
                if status == 200:
                    outer.bodies.append(json.loads(body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/results"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def records(self) -> list[dict]:
        return [record for body in self.bodies for record in body["results"]]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


class Broker(_Served):
    """An MQTT 3.1.1 broker that keeps what is published (OASIS standard, sections 3.1 to 3.12)."""

    def __init__(self, port: int = 0, *, refuses: bool = False):
        self.messages: list[tuple[str, dict]] = []
        self.logins: list[bytes] = []
        self.refuses = refuses
        super().__init__(port)

    def serve(self, connection, stream):
        while head := stream.read(1):
            body = stream.read(_length(stream))
            kind = head[0] >> 4
            if kind == 1:  # CONNECT
                self.logins.append(body)
                connection.sendall(bytes([0x20, 2, 0, 5 if self.refuses else 0]))
                if self.refuses:
                    return
            elif kind == 3:  # PUBLISH
                size = int.from_bytes(body[:2], "big")
                rest = body[2 + size :]
                if head[0] >> 1 & 3:  # quality of service 1: acknowledge
                    number, rest = rest[:2], rest[2:]
                    connection.sendall(b"\x40\x02" + number)
                topic = body[2 : 2 + size].decode()
                self.tell(partial(self.messages.append, (topic, json.loads(rest))))
            elif kind == 12:  # PINGREQ
                connection.sendall(b"\xd0\x00")
            elif kind == 14:  # DISCONNECT
                return


def _length(stream) -> int:
    value = shift = 0
    while True:
        byte = stream.read(1)[0]
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


class RtspRecorder(_Served):
    """Takes one stream after the other over TCP (RFC 2326) and counts its pictures (RFC 6184)."""

    def __init__(self, port: int = 0):
        self.requests: list[str] = []
        self.num_pictures = 0
        self.num_key_pictures = 0
        super().__init__(port)

    def serve(self, connection, stream):
        while first := stream.read(1):
            if first == b"$":
                channel, size = stream.read(1)[0], int.from_bytes(stream.read(2), "big")
                packet = stream.read(size)
                if channel == 0:
                    self.tell(partial(self._take, packet))
                continue
            request = (first + stream.readline()).decode()
            fields = {}
            while line := stream.readline().strip():
                name, _, value = line.decode().partition(":")
                fields[name.lower()] = value.strip()
            stream.read(int(fields.get("content-length", 0)))
            method = request.split()[0]
            self.tell(partial(self.requests.append, method))
            more = {
                "OPTIONS": "Public: OPTIONS, ANNOUNCE, SETUP, RECORD, TEARDOWN\r\n",
                "SETUP": f"Transport: {fields.get('transport')}\r\nSession: 77\r\n",
            }.get(method, "")
            connection.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {fields['cseq']}\r\n{more}\r\n".encode())
            if method == "TEARDOWN":
                return

    def _take(self, packet: bytes) -> None:
        payload = packet[12 + 4 * (packet[0] & 15) :]  # behind RTP's header
        kind = payload[0] & 31
        if kind == 28:  # a part of a unit, FU-A
            kind = payload[1] & 31 if payload[1] & 0x80 else 0
        kinds = [kind]
        if kind == 24:  # several units, STAP-A
            kinds, rest = [], payload[1:]
            while rest:
                size = int.from_bytes(rest[:2], "big")
                kinds.append(rest[2] & 31)
                rest = rest[2 + size :]
        self.num_key_pictures += 5 in kinds
        self.num_pictures += bool(packet[1] & 0x80)  # the marker: a picture's last packet
