"""The web server: a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runtime.contract.errors import SinkError, one_line
from runtime.web.connections import MOST_CONNECTIONS, Connections, protocol_class
from runtime.web.guarding import Guard
from runtime.web.handlers import Handlers
from runtime.web.openapi import JSON, OPERATIONS
from runtime.web.options import Access
from runtime.web.page_files import read_page
from runtime.web.reading import RequestError
from runtime.web.run_face import RunFace

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MOST_HEAD_BYTES = 1 << 14  # of a request's line and headers
JOIN_S = 5.0
SWITCH_S = 0.001  # a thread of the pipeline waits so long for Python's lock, in place of 5 ms

_log = logging.getLogger(__name__)


class WebServer:
    """Takes its port at once, and answers from `start` on.

    Args:
        access: where, and to whom; port 0 takes a free one.

    Attributes:
        access: with the port that was taken.

    Raises:
        SinkError: the address cannot be served.
    """

    def __init__(self, access: Access) -> None:
        place = access.place
        family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((place.host, place.port))
            self._socket.listen(MOST_CONNECTIONS)  # who comes before `start` waits for it
        except OSError as error:
            self._socket.close()
            raise SinkError(
                f"--web {place.host}:{place.port} cannot be served: {one_line(error)}. "
                "Choose another address or port."
            ) from None
        taken = replace(place, port=self._socket.getsockname()[1])
        self.access = Access(taken, access.token, access.is_token_new)
        self.connections = Connections()
        self._server: Any = None
        self._face: RunFace | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """For people; with the token where they cannot know it."""
        secret = f"#token={self.access.token}" if self.access.is_token_new else ""
        return f"{self.access.place.url}{secret}"

    def start(self, face: RunFace) -> None:
        """Answer for a run from now on."""
        import uvicorn

        self._face = face
        config = uvicorn.Config(
            make_app(face, self.access, self.connections),
            http=protocol_class(self.connections),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the address of a connection is what `Connections` knows it by
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
            backlog=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._switch_before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        self._thread = threading.Thread(target=self._run, name="web server", daemon=True)
        self._thread.start()
        _log.info("web page: %s", self.url, extra={"event": "web", "url": self.url})

    def close(self) -> None:
        """Let everybody go; twice is harmless."""
        thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._end)
            thread.join(JOIN_S)
            sys.setswitchinterval(self._switch_before)
        self._socket.close()

    def _end(self) -> None:
        assert self._face is not None
        self._face.end()
        self._server.should_exit = True

    def _run(self) -> None:
        self._loop = asyncio.new_event_loop()
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        assert self._face is not None
        ticks = asyncio.ensure_future(self._face.tick())
        ticks.add_done_callback(_tell_failure)
        cut = asyncio.ensure_future(self._cut_at_the_end())
        await self._server.serve(sockets=[self._socket])
        for task in (ticks, cut):
            task.cancel()

    async def _cut_at_the_end(self) -> None:
        """Give clients a moment to take the end of their answers, then cut them."""
        while not self._server.should_exit:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.3)
        self.connections.abort_all()


def make_app(face: RunFace, access: Access, connections: Connections) -> Guard:
    """The ASGI application: the guard, and behind it the routes of the table.

    Args:
        face: the run.
        access: where the server is, and who is let in.
        connections: those of the server.
    """
    handlers = Handlers(face, access, connections)
    page = read_page()
    public = [*page, *(each.path for each in OPERATIONS if each.is_public)]
    return Guard(_routes(handlers, page), access, public, connections)


def _routes(handlers: Handlers, page: dict[str, tuple[str, bytes]]) -> Starlette:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import Response
    from starlette.routing import Route, Router

    async def give_file(request: Request) -> Response:
        kind, data = page[request.url.path]
        return Response(data, headers={"content-type": kind, "cache-control": "no-cache"})

    async def tell(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestError):
            return _error(error.status, error.why)
        if isinstance(error, HTTPException):
            return _error(error.status_code, error.detail, dict(error.headers or {}))
        return _error(500, "the server failed; its log says why")

    routes = [Route(path, give_file, methods=["GET"]) for path in page]
    by_path: dict[str, list[Any]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, []).append(operation)
    for path, operations in by_path.items():
        by_method = {each.method: getattr(handlers, each.handler) for each in operations}
        routes.append(Route(path, _by_method(by_method), methods=list(by_method)))
        if any(each.is_endless for each in operations):
            assert routes[-1].methods is not None
            routes[-1].methods.discard("HEAD")
    app = Starlette(
        routes=routes,
        exception_handlers={RequestError: tell, HTTPException: tell, Exception: tell},
    )
    assert isinstance(app.router, Router)
    app.router.redirect_slashes = False
    return app


def _by_method(handlers: dict[str, Any]) -> Any:
    async def answer(request: Request) -> Any:
        method = "GET" if request.method == "HEAD" else request.method
        return await handlers[method](request)

    return answer


def _error(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": why}, status_code=status, headers=headers, media_type=JSON)


def _tell_failure(task: asyncio.Future[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("the web page's figures stopped", exc_info=error)
