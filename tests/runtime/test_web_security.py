"""Who is let in to the web page, and what a hostile client cannot do."""

from __future__ import annotations

import argparse
import socket
import time

import pytest
from sink_servers import PATIENCE_S, wait_for
from tiny_bundle import InputGeometry, write_tiny_bundle
from web_run import TOKEN, Camera, WebRun

from runtime.contract.errors import SinkError
from runtime.video_options import check_targets, parse
from runtime.web import connections
from runtime.web.address import Place, parse_web_address
from runtime.web.openapi import OPERATIONS
from runtime.web.options import TOKEN_VARIABLE, access_of
from runtime.web.page_files import FOLDER, read_page
from runtime.web.server import WebServer

BEARER = {"Authorization": f"Bearer {TOKEN}"}
GUARDED = [each for each in OPERATIONS if not each.is_public]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return write_tiny_bundle(folder, geometry=InputGeometry(96, 128), num_samples=0)


@pytest.fixture(scope="module")
def run(bundle):
    with WebRun(bundle, [Camera()], "--web-token", TOKEN) as run:
        yield run


@pytest.fixture(scope="module")
def open_run(bundle):
    with WebRun(bundle) as run:
        yield run


# --- the token


@pytest.mark.parametrize("operation", GUARDED, ids=lambda each: each.handler)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong-token-of-it"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Cookie": "kestrel_1=; ="},
        {"Cookie": f"token={TOKEN}"},
    ],
    ids=["none", "wrong", "longer", "basic", "bare", "bad-cookie", "other-cookie"],
)
def test_nothing_is_answered_without_the_token(run, operation, headers):
    body = {} if operation.body else None
    answer = run.ask(operation.method, operation.path, body, headers)
    assert answer.status == 401
    assert "log in by POST /api/login" in answer.json["error"]
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_token_is_taken_as_bearer(run):
    assert run.get("/api/sources", **BEARER).status == 200
    assert run.get("/api/sources", Authorization=f"bearer  {TOKEN}").status == 200


def test_login_gives_a_cookie_that_no_script_and_no_other_site_gets(run):
    answer = run.ask("POST", "/api/login", {"token": TOKEN})
    assert (answer.status, answer.body) == (204, b"")
    cookie, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(attributes)
    for path in ("/api/state", "/frame.jpg"):
        assert run.get(path, Cookie=f"other=1; {cookie}").status == 200
        foreign = 'a={"b": [1]}; caf\u00e9; c="x; d; =; kestrel_=1;'
        assert run.get(path, Cookie=f"{foreign} {cookie}; e[]=@").status == 200
    assert str(run.port) in cookie.partition("=")[0]  # cookies know no ports


@pytest.mark.parametrize(
    ("body", "status"),
    [({"token": "wrong"}, 401), ({"token": "\u00fc\ud800"}, 401), ({"token": 1}, 422), ({}, 422)],
)
def test_wrong_login_gives_no_cookie(run, body, status):
    answer = run.ask("POST", "/api/login", body)
    assert answer.status == status
    assert "Set-Cookie" not in answer.headers


def test_page_and_health_are_answered_without_the_token(run):
    for path in ("/", "/healthz", *read_page()):
        assert run.get(path).status == 200


# --- Host and Origin


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "[::1]:{port}"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:{port}"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Host": "127.0.0.1:{port}/x"}, 421),
        ({"Host": "user@127.0.0.1:{port}"}, 421),
        ({"Host": "127.0.0.1:99999"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
    ],
    ids=str,
)
def test_change_is_taken_only_from_the_page_itself(open_run, headers, status):
    sent = {name: value.format(port=open_run.port) for name, value in headers.items()}
    answer = open_run.put("/api/source", {"name": "left"}, **sent)
    assert answer.status == status
    if status != 200:
        assert "expected" in answer.json["error"]


def test_other_sites_may_link_to_the_page_but_not_show_its_pictures(open_run):
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert open_run.get("/", **visit).status == 200
    embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert open_run.get("/frame.jpg", **embedded).status == 403


def test_two_hosts_are_refused(open_run):
    head = b"GET /api/state HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nHost: evil\r\n\r\n" % open_run.port
    assert b" 400 " in open_run.send_raw(head).splitlines()[0]


@pytest.mark.parametrize(
    ("host", "header", "is_ours"),
    [
        ("0.0.0.0", "192.0.2.7:80", True),
        ("0.0.0.0", "[2001:db8::1]:8080", True),
        ("0.0.0.0", socket.gethostname(), True),
        ("0.0.0.0", "rebound.example:8080", False),
        ("192.0.2.7", "192.0.2.7:8080", True),
        ("192.0.2.7", "192.0.2.8:8080", False),
        ("192.0.2.7", "localhost:8080", False),
        ("camera.example", "Camera.Example:8080", True),
    ],
)
def test_host_must_be_the_address_that_is_served(host, header, is_ours):
    assert Place(host, 8080).is_host(header) is is_ours


def test_server_goes_by_the_names_that_it_is_given():
    place = access_of(options("--web", "80", "--web-name", "Camera.example")).place
    assert place.is_host("camera.example")
    assert place.is_host("camera.example:8443")
    assert not place.is_host("camera.example.evil")
    behind = {"host": "camera.example", "origin": "https://camera.example"}
    assert place.why_foreign(behind, is_unsafe=True) == ""


def test_token_is_made_where_a_proxy_lets_others_in(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert access_of(options("--web", "80", "--web-name", "camera.example")).is_token_new


# --- files


@pytest.mark.parametrize(
    "path",
    [
        "/page/../server.py",
        "/page/..%2fserver.py",
        "/page/%2e%2e/%2e%2e/run_video.py",
        "/page//etc/passwd",
        "//etc/passwd",
        "/../../../../etc/passwd",
        "/page/index.html",
        "/page/",
        "/page/style.css%00.js",
        "/page/..\\server.py",
        "/manifest.json",
        "http://127.0.0.1/etc/passwd",
    ],
)
def test_only_the_pages_own_files_are_served(open_run, path):
    host = f"127.0.0.1:{open_run.port}"
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    found = open_run.send_raw(head.encode())
    assert b" 404 " in found.splitlines()[0]
    assert b"root:" not in found


def test_page_is_served_as_it_lies_in_the_package(open_run):
    for path in FOLDER.iterdir():
        place = "/" if path.name == "index.html" else f"/page/{path.name}"
        assert open_run.get(place).body == path.read_bytes()


# --- what every answer carries


@pytest.mark.parametrize("path", ["/", "/api/state", "/nothing", "/frame.jpg", "/metrics"])
def test_every_answer_keeps_other_pages_out(open_run, path):
    headers = open_run.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers
    assert "Server" not in headers


def test_failure_of_ours_is_told_without_its_trace(open_run, monkeypatch):
    def fail():
        raise RuntimeError("a secret")

    monkeypatch.setattr(open_run.server._face, "state", fail)
    answer = open_run.get("/api/state")
    assert (answer.status, answer.json) == (500, {"error": "the server failed; its log says why"})


# --- limits


def test_client_without_a_whole_request_is_let_go(bundle, monkeypatch):
    monkeypatch.setattr(connections.Connections.__init__, "__defaults__", (1.0,))
    with WebRun(bundle) as run:
        for head in (b"", b"GET /api/state HTTP/1.1\r\n"):
            assert run.send_raw(head) == b""
        whole = f"GET /healthz HTTP/1.1\r\nHost: localhost:{run.port}\r\n\r\n".encode()
        assert b" 200 " in run.send_raw(whole).splitlines()[0]  # kept alive, and then let go
        assert len(run.server.connections) == 0


def test_body_that_comes_slowly_is_refused(open_run, monkeypatch):
    monkeypatch.setattr("runtime.web.reading.BODY_S", 0.2)
    head = (
        f"PUT /api/source HTTP/1.1\r\nHost: localhost:{open_run.port}\r\n"
        "Content-Type: application/json\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{"
    )
    assert b" 408 " in open_run.send_raw(head.encode()).splitlines()[0]


def test_headers_without_end_are_refused(open_run):
    head = b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000
    found = open_run.send_raw(head)
    assert not found or b" 400 " in found.splitlines()[0]


def test_garbage_is_refused(open_run):
    assert b" 400 " in open_run.send_raw(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n").splitlines()[0]


def test_too_many_connections_are_refused_and_the_run_goes_on(bundle, monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 3)
    with WebRun(bundle) as run:
        busy = [run.open_stream("/api/events") for _ in range(3)]
        answer = run.get("/healthz")
        assert (answer.status, "connections are open" in answer.json["error"]) == (503, True)
        monkeypatch.setattr(connections, "MOST_OPEN", 3)
        with pytest.raises(OSError, match="reset|closed|timed out|Remote end"):
            run.get("/healthz")
        for each in busy:
            assert each.readline() == b"event: state\n"
            each.close()
        wait_for(lambda: len(run.server.connections) == 0)
        assert run.get("/healthz").status == 200
        newest = len(run.results.rows)
        wait_for(lambda: len(run.results.rows) > newest)


def test_idle_connections_lock_nobody_out(bundle, monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 3)
    with WebRun(bundle) as run:
        busy = run.open_stream("/api/events")
        idle = [socket.create_connection(("127.0.0.1", run.port), PATIENCE_S) for _ in range(6)]
        assert run.get("/healthz").status == 200
        assert idle[0].recv(1) == b""  # it was so for longest
        assert busy.readline() == b"event: state\n"
        for each in (busy, *idle):
            each.close()


def test_connection_of_a_proxy_is_known_by_its_own_address(open_run):
    head = f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{open_run.port}\r\n"
    with socket.create_connection(("127.0.0.1", open_run.port), PATIENCE_S) as client:
        client.sendall(f"{head}X-Forwarded-For: 192.0.2.7\r\n\r\n".encode())
        assert b" 200 " in client.recv(1 << 10)
        own = open_run.server.connections._open[client.getsockname()]
        assert own.num_requests == 1
        assert own.timer is None  # it is not let go while the events go on


# --- options


def options(*words):
    return parse(["bundle", "--source", "none", *words])


def test_this_machine_alone_is_served_unless_a_host_is_given(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert parse_web_address("8080") == ("127.0.0.1", 8080)
    access = access_of(options("--web", "8080"))
    assert access.place.is_local
    assert access.token == ""


@pytest.mark.parametrize("address", ["0.0.0.0:80", "[::]:80", "192.0.2.1:80", "camera:80", "0:80"])
def test_token_is_made_where_other_machines_reach_the_page(address, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    first, second = (access_of(options("--web", address)) for _ in range(2))
    assert first.is_token_new
    assert len(first.token) >= 32
    assert first.token != second.token


def test_token_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    for address in ("0.0.0.0:80", "80"):
        access = access_of(options("--web", address))
        assert (access.token, access.is_token_new) == (TOKEN, False)
    assert access_of(options("--web", "80", "--web-token", f"{TOKEN}2")).token == f"{TOKEN}2"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--web", "80x"), "expected PORT or HOST:PORT"),
        (("--web", "70000"), "expected PORT or HOST:PORT"),
        (("--web", "80", "--web-token", "short"), "has 5 characters; expected 12 to 200"),
        (("--web", "80", "--web-token", "with a space in it"), "letters, digits and signs"),
        (("--web-token", TOKEN), "--web-token is for the web page; expected --web PORT with it"),
        (("--web-bundle", "a"), "--web-bundle is for the web page"),
        (("--web-name", "a"), "--web-name is for the web page"),
        (("--web", "80", "--web-bundle", "a", "--coco", "a.json"), "Use --json"),
        (("--web", "80", "--web-bundle", "a", "--track"), "would begin tracks and counts anew"),
        (("--web", "80", "--web-bundle", "a", "--line", "0,0,9,9"), "Leave it out, or --track"),
        (("--web", "80", "--web-bundle", "a", "--zone", "0,0,9,0,9,9"), "Leave it out"),
        (("--web", "80", "--web-name", "https://camera.example"), "is no host's name"),
        (("--web", "80", "--web-name", "camera.example:80"), "is no host's name"),
        (("--web", "80", "--web-name", ""), "is no host's name"),
    ],
)
def test_options_that_cannot_be_are_refused(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    args = options(*words)
    assert isinstance(args, argparse.Namespace)
    with pytest.raises(SinkError, match=message):
        check_targets(args)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        SinkError, match=r"--web needs starlette and uvicorn.*kestrel-vision\[web\]"
    ):
        check_targets(options("--web", "80"))


def test_names_and_numbers_are_taken_as_a_host_header_writes_them():
    for name, host in (("Camera.Example", "camera.example:80"), ("[2001:db8::1]", "[2001:db8::1]")):
        assert access_of(options("--web", "80", "--web-name", name)).place.is_host(host)
    assert parse_web_address("0:80") == ("0.0.0.0", 80)
    assert parse_web_address("127.1:80") == ("127.0.0.1", 80)
    assert parse_web_address("[::1]:80") == ("::1", 80)


def test_port_is_taken_before_the_run_begins():
    first = WebServer(access_of(options("--web", "0")))
    try:
        with pytest.raises(SinkError, match="cannot be served: Address already in use"):
            WebServer(first.access)
    finally:
        first.close()


def test_taken_port_is_told(run, bundle):
    with pytest.raises(SinkError, match=r"cannot be served: Address already in use"):  # noqa: SIM117
        with WebRun(bundle, None, "--web", str(run.port)):
            time.sleep(0)
