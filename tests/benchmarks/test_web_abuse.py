"""A short form of the attack on the web page; the long one is `benchmarks/web_abuse.py`."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.measure.web_attacks import (
    TRAVERSALS,
    Tally,
    Target,
    ask_from_elsewhere,
    ask_without_token,
    find_problem,
    traverse,
)
from benchmarks.web_abuse import attack
from runtime.web.handlers import MOST_VIEWERS


def test_short_attack_finds_nothing():
    found = attack(
        fps=0,
        num_rounds=1,
        round_s=0.5,
        num_slow=24,
        requests_a_second=200,
        num_each=3,
        least_cases=50,
    )
    json.dumps(found)
    assert found["findings"] == []
    assert found["slow_clients"]["served"] == MOST_VIEWERS
    assert found["slow_clients"]["refused"] == 24 - MOST_VIEWERS
    assert found["statuses"]["traversal"] == {"404": len(TRAVERSALS)}
    assert set(found["statuses"]["token"]) == {"401"}
    assert set(found["statuses"]["other site"]) == {"403", "421"}
    assert {"200", "401", "422"} <= set(found["statuses"]["fuzzer"])
    assert set(found["fps_ratio"]) == {"over quiet", "over other attacked"}  # the record says
    del found["passes"]["rate at least 0.95 of that while another run is attacked"]
    assert all(found["passes"].values()), found["passes"]


class Careless(BaseHTTPRequestHandler):
    """A server that does everything wrong."""

    def log_message(self, *_):
        pass

    def do_GET(self):  # noqa: N802 - the library's name
        body = b"root:x:0:0" if "passwd" in self.path else b"Traceback"
        self.send_response(500 if self.path == "/api/card" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = do_GET  # noqa: N815


@pytest.fixture
def careless():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Careless)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield Target("127.0.0.1", server.server_port, "none")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("work", [traverse, ask_without_token, ask_from_elsewhere])
def test_careless_server_is_found_out(careless, work):
    tally = Tally()
    work(careless, tally)
    assert len(tally.findings) >= tally.num_requests - 1


@pytest.mark.parametrize(
    ("path", "status", "body", "words"),
    [
        ("/api/state", 500, b"{}", "answers 500"),
        ("/api/state", 503, b'{"error": "later"}', "answers 503"),
        ("/stream.mjpg", 503, b'{"error": "16 clients are here; try later"}', ""),
        ("/healthz", 503, b'{"ok": false}', ""),
        ("/page/x", 200, b"from __future__ import annotations", "none of the page's"),
        ("/api/state", 200, b"Traceback (most recent", "traceback"),
        ("/api/state", 404, b"{}", ""),
    ],
)
def test_answer_that_should_not_be_is_told(path, status, body, words):
    found = find_problem(path, status, body)
    assert (words in found) if words else not found
