"""Answers without an end: pictures and events, at the pace of whoever reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from runtime.web.connections import Address, Connections
from runtime.web.guarding import refuse

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

PATIENCE_S = 10.0  # a client that does not take one piece for so long is let go


class Places:
    """How many clients may have an answer of one kind at the same time."""

    def __init__(self, most: int, kind: str) -> None:
        self.most, self.kind, self.num_taken = most, kind, 0

    @property
    def is_full(self) -> bool:
        return self.num_taken >= self.most


class Push:
    """An ASGI answer that sends pieces as they come.

    The next piece is asked for when the one before is with the system, so a slow client gets fewer
    and newer ones, and costs the others nothing.

    Args:
        pieces: b"" is sent as nothing; it lets a client that went away be noticed.
        content_type: of the answer.
        places: one is taken; 503 where there is none.
        connections: one whose client takes nothing is cut.
    """

    def __init__(
        self,
        pieces: Callable[[], AsyncIterator[bytes]],
        content_type: str,
        places: Places,
        connections: Connections,
    ) -> None:
        self._pieces = pieces
        self._content_type = content_type
        self._places = places
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the pieces end or the client is gone."""
        places = self._places
        if places.is_full:
            await refuse(send, 503, f"{places.most} clients have {places.kind} already; try later")
            return
        client = scope.get("client")
        address: Address | None = None if client is None else (client[0], client[1])
        gone = asyncio.ensure_future(_until_gone(receive))
        pieces = self._pieces()
        places.num_taken += 1
        try:
            headers = [(b"content-type", self._content_type.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for piece in pieces:
                if gone.done():
                    return
                await asyncio.wait_for(_send_whole(send, piece), PATIENCE_S)
            await send({"type": "http.response.body", "body": b""})
        except asyncio.TimeoutError:
            self._connections.abort(address)
        finally:
            places.num_taken -= 1
            gone.cancel()
            await _close(pieces)


async def _close(pieces: AsyncIterator[bytes]) -> None:
    close = getattr(pieces, "aclose", None)  # of a generator: its own `finally`
    if close is not None:
        await close()


async def _send_whole(send: Send, piece: bytes) -> None:
    """Send a piece, and wait until the system has taken it."""
    if piece:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    # uvicorn waits for room before it writes, not after; this writes nothing.
    await send({"type": "http.response.body", "body": b"", "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
