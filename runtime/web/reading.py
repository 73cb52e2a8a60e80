"""What a request's body and query say, read with limits."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_BYTES = 1 << 16  # of a body
BODY_S = 10.0  # that a body may take


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP, 400 or more.
        why: one line.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        RequestError: 415 of another type, 413 too long, 408 too slow, 400 no JSON object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(415, f"the body is {kind[:60]!r}; expected application/json")
    try:
        body = await asyncio.wait_for(_read(request), BODY_S)
    except asyncio.TimeoutError:
        raise RequestError(408, f"the body took longer than {BODY_S:g} s") from None
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON in UTF-8") from None
    if not isinstance(found, dict):
        raise RequestError(400, "the body is no JSON object")
    return found


async def _read(request: Request) -> bytes:
    from starlette.requests import ClientDisconnect

    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                raise RequestError(413, f"the body is longer than {MOST_BYTES} bytes")
    except ClientDisconnect:
        raise RequestError(400, "the client went away") from None
    return bytes(body)


def refuse_fields(given: dict[str, Any], known: tuple[str, ...]) -> None:
    """RequestError 422 where a body has others than the known fields."""
    for name in given:
        if name not in known:
            raise RequestError(
                422, f"the body has the unknown field {name[:60]!r}; expected {', '.join(known)}"
            )


def take_text(given: dict[str, Any], name: str) -> str:
    """A field that must be a text; RequestError 422 where it is none."""
    value = given.get(name)
    if not isinstance(value, str):
        raise RequestError(422, f"{name} is missing or no text")
    return value


def query_value(request: Request, name: str) -> str | None:
    """A value of the query, or None; RequestError 422 where it is given twice."""
    values = request.query_params.getlist(name)
    if len(values) > 1:
        raise RequestError(422, f"{name} is given {len(values)} times; expected once")
    return values[0] if values else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
