"""A run with its web page in this process: painted cameras, a tiny bundle, and a client."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass

from sink_servers import PATIENCE_S
from tiny_bundle import paint

from runtime.pipeline.sinks import Sink
from runtime.pipeline.sources import Frame, Source
from runtime.pipeline.stages import Pipeline
from runtime.pipeline.stopping import StopSignal
from runtime.video_options import parse
from runtime.video_parts import open_networks
from runtime.web.opening import open_web, take_port

SIZE_WH = (256, 192)
BOXES = {0: (20, 20, 80, 80), 2: (150, 100, 230, 160)}  # scores 0.9 and 0.6
TOKEN = "a-token-of-this-test"


class Camera(Source):
    """Live pictures of a blue and a red box, until the run is stopped; `gate` may hold them up."""

    def __init__(self, name="left", *, num_frames=None, interval_s=0.01, is_live=True):
        super().__init__(name, fps=25.0, is_live=is_live)
        self.size_wh = SIZE_WH
        self.num_frames = num_frames
        self.interval_s = interval_s
        self.gate = threading.Event()
        self.gate.set()
        self.is_over = threading.Event()

    def read(self):
        while not self.gate.wait(0.05):
            if self.is_over.is_set():
                return None
        if self.is_over.is_set() or self.num_decoded == self.num_frames:
            return None
        time.sleep(self.interval_s)
        index, self.num_decoded = self.num_decoded, self.num_decoded + 1
        image = paint(SIZE_WH[1], SIZE_WH[0], BOXES)
        return Frame(image, index, index / 25, time.perf_counter(), 0.1, self.name)

    def close(self):
        self.is_over.set()


class Results(Sink):
    """Keeps (source, index, names of what was found) of every result."""

    target = "memory"

    def __init__(self):
        self.rows = []

    def write(self, result):
        first = getattr(result.results, "first", result.results)
        names = tuple(sorted(first.names[index] for index in first.classes.tolist()))
        self.rows.append((result.frame.source, result.frame.index, names))

    def close(self):
        pass


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class WebRun:
    """A context manager; the run goes on until it ends.

    Args:
        bundle: path. sources: cameras. options: more of the command line.
        sinks: beside the page.
    """

    def __init__(self, bundle, sources=None, *options, sinks=()):
        self.sources = sources or [Camera()]
        words = [str(bundle), "--source", "none", "--web", "0", "--backend", "onnxruntime"]
        self.args = parse([*words, *map(str, options)])
        self.results = Results()
        self.stop = StopSignal()
        self._sinks = sinks
        self._thread = None
        self.failure = None

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        engines = self._stack.enter_context(contextlib.ExitStack())
        networks = open_networks(self.args, len(self.sources), engines)
        server = take_port(self.args, self._stack)
        self.page = open_web(self.args, server, self.sources, networks, engines, self._stack)
        self.pipeline = Pipeline(
            self.sources,
            self.page.switch.infers,
            [self.results, self.page.sink, *self._sinks],
            batchers=(self.page.switch,),
            stop=self.stop,
            times=self.page.times,
        )
        self.page.start(self.pipeline)
        self.server = self.page._server
        self.port = self.server.access.place.port
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self):
        try:
            self.pipeline.run()
        except Exception as error:
            self.failure = error

    def end(self):
        """Let the pipeline end; the server goes on."""
        self.stop.set()
        for source in self.sources:
            source.gate.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def __exit__(self, *error):
        self.end()
        self._stack.close()

    # --- a client

    def ask(self, method, path, body=None, headers=None, timeout=PATIENCE_S):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        sent = dict(headers or {})
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.ask("GET", path, headers=headers)

    def put(self, path, body, **headers):
        return self.ask("PUT", path, body, headers)

    def send_raw(self, data, read_s=PATIENCE_S):
        """Send bytes as they are; what comes until the server hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=read_s) as client:
            client.sendall(data)
            found = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := client.recv(1 << 16):
                    found += piece
            return found

    def open_stream(self, path="/stream.mjpg"):
        """A response that goes on."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request("GET", path)
        return connection.getresponse()
