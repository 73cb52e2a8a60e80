"""Connections to the server: how many there may be, and which are let go.

A connection without a request under way is let go after a while: one that sends its request byte
by byte, one that is kept alive for nothing, one that does not read the end of an answer. Where
there are too many, the one that has been so for longest goes at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MOST_CONNECTIONS = 128  # whose requests are answered; of more: 503
MOST_OPEN = 2 * MOST_CONNECTIONS  # more are closed at once; all have a request under way
IDLE_S = 10.0  # without a request under way
SEND_BUFFER_BYTES = 1 << 17  # of the system: what waits there is old when it arrives

Address = tuple[str, int]


@dataclass(slots=True)
class _Connection:
    transport: asyncio.Transport
    num_requests: int = 0  # under way
    idle_since: float = 0.0  # without one; of the loop's clock
    is_open: bool = True
    timer: asyncio.TimerHandle | None = None

    def wait(self, seconds: float) -> None:
        self.stop_waiting()
        loop = asyncio.get_running_loop()
        self.idle_since = loop.time()
        self.timer = loop.call_later(seconds, self.transport.abort)

    def stop_waiting(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Connections:
    """Those that are open, by the client's address; for the loop's thread.

    Args:
        idle_s: how long one may have no request under way.
    """

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._open: dict[Address, _Connection] = {}

    @property
    def is_full(self) -> bool:
        """Whether there are more than are answered."""
        return len(self._open) > MOST_CONNECTIONS

    def __len__(self) -> int:
        return len(self._open)

    def add(self, address: Address, transport: asyncio.Transport) -> None:
        """Take one in; where there are too many another one goes for it, or else itself."""
        if len(self._open) >= MOST_CONNECTIONS:
            self._abort_idlest()
        if len(self._open) >= MOST_OPEN:
            transport.abort()
            return
        taken = transport.get_extra_info("socket")
        if taken is not None:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        connection = self._open[address] = _Connection(transport)
        connection.wait(self._idle_s)

    def remove(self, address: Address) -> None:
        """It is closed."""
        connection = self._open.pop(address, None)
        if connection is not None:
            connection.is_open = False
            connection.stop_waiting()

    def _abort_idlest(self) -> None:
        idle = [(each.idle_since, key) for key, each in self._open.items() if not each.num_requests]
        if idle:
            address = min(idle)[1]
            self.abort(address)
            self.remove(address)  # its place is free now, not when the loop has closed it

    @contextmanager
    def request(self, address: Address | None) -> Iterator[None]:
        """A request is under way."""
        connection = self._open.get(address) if address is not None else None
        if connection is None:
            yield
            return
        connection.num_requests += 1
        connection.stop_waiting()
        try:
            yield
        finally:
            connection.num_requests -= 1
            if connection.num_requests == 0 and connection.is_open:
                connection.wait(self._idle_s)  # what is not sent yet has to be taken, too

    def abort(self, address: Address | None) -> None:
        """Let one go at once, with what is not sent yet."""
        connection = self._open.get(address) if address is not None else None
        if connection is not None:
            connection.transport.abort()

    def abort_all(self) -> None:
        """The run is over."""
        for connection in list(self._open.values()):
            connection.transport.abort()


def protocol_class(connections: Connections) -> type[asyncio.Protocol]:
    """The HTTP/1.1 protocol of uvicorn, whose connections are noted."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class NotedProtocol(H11Protocol):
        _address: Address | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            peer = transport.get_extra_info("peername")
            if peer is not None:
                self._address = (str(peer[0]), int(peer[1]))  # as in the scope of its requests
                connections.add(self._address, transport)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._address is not None:
                connections.remove(self._address)
            super().connection_lost(exc)

    return NotedProtocol
