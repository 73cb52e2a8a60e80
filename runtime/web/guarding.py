"""What every request passes before it is answered, and what every answer carries.

Order: room, Host and Origin (`Place.why_foreign`), token. Whatever fails is told in one line.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from runtime.web.connections import Connections
from runtime.web.options import Access

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE_METHODS = ("GET", "HEAD")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """An ASGI application in front of another.

    Args:
        app: gets the requests that pass.
        access: where the server is, and the token that is asked for.
        public: paths that are answered without the token.
        connections: those of the server.
    """

    def __init__(
        self, app: ASGIApp, access: Access, public: Iterable[str], connections: Connections
    ) -> None:
        self._app = app
        self._access = access
        self._public = frozenset(public)
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        client = scope.get("client")
        with self._connections.request(None if client is None else (client[0], client[1])):
            await self._answer(scope, receive, _with_headers(send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._connections.is_full:
            await refuse(send, 503, f"{len(self._connections)} connections are open; try later")
            return
        headers: dict[str, str] = {}
        for key, value in scope["headers"]:
            name = key.decode("latin-1")
            if name in ("host", "origin", "authorization") and name in headers:
                await refuse(send, 400, f"the request has several headers {name}; expected one")
                return
            headers[name] = value.decode("latin-1")
        is_unsafe = scope["method"] not in SAFE_METHODS
        why = self._access.place.why_foreign(headers, is_unsafe=is_unsafe)
        if why:
            await refuse(send, 421 if "the Host" in why[:8] else 403, why)
            return
        if scope["path"] not in self._public and not self._is_let_in(headers):
            words = "the token is missing or wrong; log in by POST /api/login, or send it as Bearer"
            await refuse(send, 401, words, ((b"www-authenticate", b"Bearer"),))
            return
        await self._app(scope, receive, send)

    def _is_let_in(self, headers: dict[str, str]) -> bool:
        token = self._access.token
        if not token:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and is_token(given.strip(), token):
            return True
        own = cookie_name(self._access)
        pairs = (each.partition("=") for each in headers.get("cookie", "").split(";"))
        return any(
            name.strip() == own and is_token(value.strip().strip('"'), token)
            for name, _, value in pairs
        )


def is_token(given: str, token: str) -> bool:
    """Compare in a time that tells nothing of where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def cookie_name(access: Access) -> str:
    """Cookies are of a host, whatever its port: servers on one machine need names of their own."""
    return f"kestrel_{access.place.port}"


async def refuse(
    send: Send, status: int, why: str, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Answer {"error": why}, and end the connection: what else it may send is not read."""
    body = json.dumps({"error": why}, ensure_ascii=False).encode()
    own = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    """Let every answer carry HEADERS, but those that it sets itself."""

    async def send_guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            message["headers"] = given + [pair for pair in HEADERS if pair[0] not in names]
        await send(message)

    return send_guarded
