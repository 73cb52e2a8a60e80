"""The server's answers, one method for each of `runtime.web.openapi.OPERATIONS`."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from runtime.web.connections import Connections
from runtime.web.guarding import cookie_name, is_token
from runtime.web.limits import LimitsError
from runtime.web.metrics import CONTENT_TYPE, write_metrics
from runtime.web.openapi import EVENTS_TYPE, JSON, STREAM_TYPE, describe_api
from runtime.web.options import Access
from runtime.web.push import Places, Push
from runtime.web.reading import RequestError, query_value, read_object, refuse_fields, take_text
from runtime.web.run_face import BundleRefusedError, RunFace
from runtime.web.switching import BusyError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

MOST_VIEWERS = 16  # of pictures, and as many of events
MOST_FPS = 25.0  # of a stream; a file may be inferred faster
BOUNDARY = "kestrel-frame"
FRAME_WAIT_S = 5.0  # for a picture
NEWER_WAIT_S = 1.0  # for one that is newer than the last, of a snapshot
QUIET_S = 2.0  # of a stream without a picture, between two looks whether its client is there


class Handlers:
    """Answers requests that have passed the guard.

    Args:
        face: the run.
        access: tells the token.
        connections: those of the server.
    """

    def __init__(self, face: RunFace, access: Access, connections: Connections) -> None:
        self._face = face
        self._access = access
        self._connections = connections
        self._streams = Places(MOST_VIEWERS, "the pictures")
        self._feeds = Places(MOST_VIEWERS, "the events")
        self._api = describe_api(has_token=bool(access.token))

    # --- pictures

    async def stream(self, request: Request) -> Push:
        name = query_value(request, "source")
        self._source_of(name)
        kind = f"{STREAM_TYPE}; boundary={BOUNDARY}"
        return Push(lambda: self._parts(name), kind, self._streams, self._connections)

    async def _parts(self, asked: str | None) -> AsyncIterator[bytes]:
        """The pictures of a source, or of the one that is shown, each as a part of a multipart."""
        face, board = self._face, self._face.board
        name, seen = self._source_of(asked), 0
        board.look(name, 1)
        try:
            while not face.is_over:
                begun = time.monotonic()
                if asked is None and name != face.shown:
                    board.look(name, -1)
                    name, seen = face.shown, 0
                    board.look(name, 1)
                found = await board.next(name, seen, QUIET_S)
                if found is None:
                    yield b""
                    continue
                seen, jpeg = found
                yield (
                    (
                        f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\n"
                        f"Content-Length: {len(jpeg)}\r\n\r\n"
                    ).encode()
                    + jpeg
                    + b"\r\n"
                )
                await asyncio.sleep(max(begun + 1 / MOST_FPS - time.monotonic(), 0.0))
        finally:
            board.look(name, -1)

    async def frame(self, request: Request) -> Response:
        from starlette.responses import Response

        name = self._source_of(query_value(request, "source"))
        save = query_value(request, "save")
        if save not in (None, "0", "1"):
            raise RequestError(422, f"save is {save[:60]!r}; expected 1")
        if self._streams.is_full:
            raise RequestError(503, f"{MOST_VIEWERS} clients have the pictures already; try later")
        board = self._face.board
        self._streams.num_taken += 1
        board.look(name, 1)
        try:
            found = await board.next(name, board.last(name).number, NEWER_WAIT_S)
            found = found or await board.next(name, 0, FRAME_WAIT_S)
        finally:
            board.look(name, -1)
            self._streams.num_taken -= 1
        if found is None:
            raise RequestError(503, "no picture came")
        headers = {}
        if save == "1":
            word = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.")[-60:] or "source"
            file = f"kestrel_{word}_{time.strftime('%Y%m%d-%H%M%S')}.jpg"
            headers["content-disposition"] = f'attachment; filename="{file}"'
        return Response(found[1], media_type="image/jpeg", headers=headers)

    # --- figures

    async def state(self, request: Request) -> Response:  # noqa: ARG002 - as of all handlers
        return _json(self._face.state())

    async def events(self, request: Request) -> Push:  # noqa: ARG002
        return Push(self._states, EVENTS_TYPE, self._feeds, self._connections)

    async def _states(self) -> AsyncIterator[bytes]:
        while not self._face.is_over:
            document = json.dumps(self._face.state(), allow_nan=False)
            yield f"event: state\ndata: {document}\n\n".encode()
            await self._face.next_tick()

    async def card(self, request: Request) -> Response:  # noqa: ARG002
        return _json(await self._face.card())

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        from starlette.responses import Response

        face = self._face
        text = write_metrics(face.watch, face.bundle(), face.board.num_viewers)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def healthz(self, request: Request) -> Response:  # noqa: ARG002
        why_ill = self._face.watch.why_ill()
        return _json({"ok": not why_ill, "reason": why_ill}, 503 if why_ill else 200)

    async def describe(self, request: Request) -> Response:  # noqa: ARG002
        return _json(self._api)

    # --- control

    async def thresholds(self, request: Request) -> Response:  # noqa: ARG002
        return _json(self._face.thresholds())

    async def set_thresholds(self, request: Request) -> Response:
        asked = await read_object(request)
        name = asked.pop("source", None)
        if name is not None and not isinstance(name, str):
            raise RequestError(422, "source is no text; expected a name, or null for all")
        if name is not None:
            self._source_of(name)
        try:
            self._face.set_thresholds(asked, name)
        except LimitsError as error:
            raise RequestError(422, str(error)) from None
        return _json(self._face.thresholds())

    async def bundles(self, request: Request) -> Response:  # noqa: ARG002
        return _json(await self._face.bundles_to_json())

    async def set_bundle(self, request: Request) -> Response:
        asked = await read_object(request)
        refuse_fields(asked, ("path",))
        path = take_text(asked, "path")
        if path not in self._face.bundles:
            raise RequestError(404, f"no bundle {path[:100]!r}; choose one of GET /api/bundles")
        try:
            is_running = await self._face.exchange(path)
        except BusyError as error:
            raise RequestError(409, f"not now: {error}") from None
        except BundleRefusedError as error:
            raise RequestError(409, str(error)) from None
        return _json({"bundle": self._face.bundle(), "is_running": is_running})

    async def sources(self, request: Request) -> Response:  # noqa: ARG002
        return _json(self._face.sources_to_json())

    async def set_source(self, request: Request) -> Response:
        asked = await read_object(request)
        refuse_fields(asked, ("name",))
        self._face.shown = self._source_of(take_text(asked, "name"))
        return _json(self._face.sources_to_json())

    async def login(self, request: Request) -> Response:
        from starlette.responses import Response

        asked = await read_object(request)
        refuse_fields(asked, ("token",))
        given, token = take_text(asked, "token"), self._access.token
        if token and not is_token(given, token):
            raise RequestError(401, "the token is wrong")
        answer = Response(status_code=204)
        if token:
            answer.set_cookie(
                cookie_name(self._access), token, httponly=True, samesite="strict", path="/"
            )
        return answer

    def _source_of(self, name: str | None) -> str:
        found = self._face.find(name)
        if found is None:
            raise RequestError(
                404, f"no source {str(name)[:100]!r}; choose one of GET /api/sources"
            )
        return found


def _json(document: Any, status: int = 200) -> Response:
    from starlette.responses import Response

    text = json.dumps(document, allow_nan=False)
    return Response(text, status_code=status, media_type=JSON)
