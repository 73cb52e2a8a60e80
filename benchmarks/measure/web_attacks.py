"""What a hostile client may send to the web page, and what is wrong with an answer to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.web.openapi import OPERATIONS, describe_api

PATIENCE_S = 60.0
FULL_WORDS = ("try later", "no picture came")  # of the only 503 that there may be, beside /healthz
TRAVERSALS = (
    "/../../../../../../etc/passwd",
    "/page/../../run_video.py",
    "/page/..%2f..%2frun_video.py",
    "/page/%2e%2e/%2e%2e/run_video.py",
    "/page/..%252f..%252frun_video.py",
    "/page/..\\..\\run_video.py",
    "/page//etc/passwd",
    "//etc/passwd",
    "/page/%00/etc/passwd",
    "/page/style.css/../../../server.py",
    "/frame.jpg/../../server.py",
    "/frame.jpg?source=../../../../etc/passwd",
    "/stream.mjpg?source=/etc/passwd",
    "file:///etc/passwd",
    "/proc/self/environ",
    "/page/%c0%ae%c0%ae/%c0%ae%c0%ae/etc/passwd",
    "/.git/config",
    "/manifest.json",
)
SECRETS = (b"root:x:", b"from __future__", b"[core]", b"PATH=")  # of files that are none of ours
WRONG_TOKENS: tuple[Mapping[str, str], ...] = (
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Bearer "},
    {"Authorization": "Basic dXNlcjpwYXNz"},
    {"Cookie": "token=wrong; kestrel_0=wrong"},
)
WRONG_PLACES: tuple[tuple[Mapping[str, str], int], ...] = (
    ({"Host": "evil.example"}, 421),
    ({"Host": "127.0.0.1.evil.example"}, 421),
    ({"Host": ""}, 421),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
)


@dataclass
class Tally:
    """What came of attacks.

    Attributes:
        statuses: kind of attack -> HTTP status -> requests.
        findings: one line for each answer that should not be.
    """

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def note(self, kind: str, status: int, problem: str = "") -> None:
        self.statuses.setdefault(kind, Counter())[status] += 1
        if problem:
            self.findings.append(f"{kind}: {problem}")

    @property
    def num_requests(self) -> int:
        return sum(sum(counter.values()) for counter in self.statuses.values())


@dataclass(frozen=True)
class Target:
    """The server that is attacked."""

    host: str
    port: int
    token: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        most_bytes: int = 1 << 16,
    ) -> tuple[int, bytes]:
        """Status and the beginning of the body; the path is sent as it is."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            sent = {"Host": f"{self.host}:{self.port}", **headers}
            if body is not None:
                sent = {"Content-Type": "application/json", "Content-Length": f"{len(body)}"} | sent
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            is_endless = response.getheader("Content-Length") is None
            return response.status, b"" if is_endless else response.read(most_bytes)
        finally:
            connection.close()


def find_problem(path: str, status: int, body: bytes) -> str:
    """What is wrong with an answer, whatever was asked; "" where nothing is."""
    if any(secret in body for secret in SECRETS):
        return f"{path} gives a file that is none of the page's"
    if b"Traceback" in body:
        return f"{path} gives a traceback"
    if status >= 500:
        is_full = status == 503 and any(words.encode() in body for words in FULL_WORDS)
        if not is_full and not (path.startswith("/healthz") and status == 503):
            return f"{path} answers {status}: {body[:200]!r}"
    return ""


def traverse(target: Target, tally: Tally) -> None:
    """Ask for files that are none of the page's."""
    for path in TRAVERSALS:
        status, body = target.ask("GET", path, target.bearer)
        problem = find_problem(path, status, body)
        if not problem and status not in (400, 404):
            problem = f"{path} answers {status}; expected 404"
        tally.note("traversal", status, problem)


def ask_without_token(target: Target, tally: Tally) -> None:
    """Every guarded operation, without the token and with wrong ones."""
    for operation in OPERATIONS:
        body = b"{}" if operation.body else None
        for headers in WRONG_TOKENS:
            if operation.is_public:
                continue
            status, answer = target.ask(operation.method, operation.path, headers, body)
            problem = find_problem(operation.path, status, answer)
            if not problem and status not in (401, 503):
                problem = f"{operation.method} {operation.path} answers {status}; expected 401"
            tally.note("token", status, problem)
    status, _ = target.ask("POST", "/api/login", {}, json.dumps({"token": "wrong"}).encode())
    tally.note("token", status, "" if status == 401 else f"a wrong login answers {status}")


def ask_from_elsewhere(target: Target, tally: Tally) -> None:
    """Every operation as another site would ask for it."""
    for operation in OPERATIONS:
        body = b"{}" if operation.body else None
        for headers, expected in WRONG_PLACES:
            sent = target.bearer | dict(headers)
            status, answer = target.ask(operation.method, operation.path, sent, body)
            problem = find_problem(operation.path, status, answer)
            if not problem and status not in (expected, 503):
                problem = f"{operation.path} for {headers} answers {status}; expected {expected}"
            tally.note("other site", status, problem)


class Fuzzer:
    """Requests that the OpenAPI description allows, and as many that it does not (schemathesis).

    Args:
        num_each: of either kind, of each operation whose answer ends.
    """

    def __init__(self, num_each: int) -> None:
        import schemathesis
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis.errors import Unsatisfiable
        from schemathesis import GenerationMode

        schema = schemathesis.openapi.from_dict(describe_api(has_token=True))
        self.cases: list[tuple[Any, bool]] = []  # and whether it should be let in
        for operation in OPERATIONS:
            if operation.is_endless:
                continue
            api = schema[operation.path][operation.method]
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                @given(api.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=num_each,
                    derandomize=True,
                    database=None,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                def collect(case: Any) -> None:
                    self.cases.append((case, len(self.cases) % 8 != 0))

                with contextlib.suppress(Unsatisfiable):  # there is nothing to be wrong in it
                    collect()

    def attack(self, target: Target, tally: Tally, *, requests_a_second: float) -> Iterator[None]:
        """Send one case after the other, for ever; yields after each."""
        import requests

        gap_s = 1 / requests_a_second
        with requests.Session() as session:
            while True:
                for case, is_let_in in self.cases:
                    begun = time.monotonic()
                    self._send(case, target, tally, session, is_let_in=is_let_in)
                    yield
                    time.sleep(max(begun + gap_s - time.monotonic(), 0.0))

    def _send(
        self, case: Any, target: Target, tally: Tally, session: Any, *, is_let_in: bool
    ) -> None:
        from schemathesis.core.failures import FailureGroup
        from schemathesis.specs.openapi import checks

        held = [
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ]
        headers = target.bearer if is_let_in else None
        try:
            response = case.call(
                base_url=f"http://{target.host}:{target.port}",
                session=session,
                headers=headers,
                timeout=PATIENCE_S,
            )
        except Exception as error:  # what the client's library does not send
            if type(error).__module__.startswith(("requests", "urllib3")):
                tally.note("fuzzer", 0, f"{case.method} {case.path}: {error}")
            return
        problem = find_problem(case.path, response.status_code, response.content)
        if not problem and response.status_code != 405:
            try:
                case.validate_response(response, checks=held)
            except FailureGroup as failures:
                problem = f"{case.method} {case.path}: {failures.exceptions[0]}"
        tally.note("fuzzer", response.status_code, problem)


class SlowClients:
    """Clients that ask for the stream and read a few bytes now and then; a context manager."""

    def __init__(self, target: Target, count: int, pause_s: float = 0.5) -> None:
        self._target = target
        self._count = count
        self._pause_s = pause_s
        self._clients: list[socket.socket] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.num_served = 0  # that were let in
        self.num_refused = 0

    def __enter__(self) -> SlowClients:
        head = (
            f"GET /stream.mjpg HTTP/1.1\r\nHost: {self._target.host}:{self._target.port}\r\n"
            f"Authorization: Bearer {self._target.token}\r\n\r\n"
        )
        for _ in range(self._count):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(PATIENCE_S)
            client.connect((self._target.host, self._target.port))
            client.sendall(head.encode())
            self._clients.append(client)
        for client in self._clients:
            first = client.recv(16)
            self.num_served += b" 200 " in first
            self.num_refused += b" 503 " in first
            client.setblocking(False)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()
        for client in self._clients:
            client.close()

    def _read(self) -> None:
        while not self._is_over.wait(self._pause_s):
            for client in self._clients:
                try:
                    client.recv(64)
                except (BlockingIOError, ConnectionError):
                    continue
