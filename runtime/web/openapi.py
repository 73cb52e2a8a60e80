"""What the server answers: one table, from which routes and description are made.

https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.web.metrics import CONTENT_TYPE as METRICS_TYPE
from runtime.web.schemas import SCHEMAS, Schema, ref

JSON = "application/json"
STREAM_TYPE = "multipart/x-mixed-replace"
EVENTS_TYPE = "text/event-stream"
_WORDS = {
    200: "Done",
    204: "Done, and nothing to say",
    400: "The request cannot be read",
    401: "The token is missing or wrong",
    403: "Asked for by another site",
    404: "No such source or bundle",
    405: "Another method is expected",
    408: "The body came too slowly",
    409: "Not possible as things stand; the run goes on as before",
    413: "The body is too long",
    415: "The body is not JSON",
    421: "The Host is not this server",
    422: "A value that cannot be",
    503: "Full, or no picture yet",
}
_ALWAYS = (400, 401, 403, 421, 503)
_OF_BODIES = (408, 413, 415, 422)
_TEXT: Schema = {"type": "string"}
_BYTES: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}
_SOURCE: Schema = {
    "name": "source",
    "in": "query",
    "required": False,
    "description": "A source's name; without it the one that is shown.",
    "schema": _TEXT,
}
_SAVE: Schema = {
    "name": "save",
    "in": "query",
    "required": False,
    "description": "1: give the picture a file's name, to be saved.",
    "schema": {"type": "string", "enum": ["0", "1"]},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        handler: name of the method of `runtime.web.handlers.Handlers`.
        gives: status -> (media type, schema) of answers that are no errors.
        errors: statuses beside those that any request may get.
        body: name of the schema of the request's body, or "".
        is_public: answered without the token.
        is_endless: the answer goes on.
    """

    method: str
    path: str
    handler: str
    summary: str
    gives: Mapping[int, tuple[str, Schema] | None]
    errors: tuple[int, ...] = ()
    body: str = ""
    parameters: tuple[Schema, ...] = field(default=())
    is_public: bool = False
    is_endless: bool = False

    def describe(self) -> dict[str, Any]:
        """The OpenAPI Operation Object."""
        statuses = (*_ALWAYS, *self.errors, *(_OF_BODIES if self.body else ()))
        responses: dict[str, Any] = {}
        for status, given in self.gives.items():
            responses[str(status)] = {"description": _WORDS[status]}
            if given is not None:
                kind, schema = given
                responses[str(status)]["content"] = {kind: {"schema": schema}}
        for status in sorted(set(statuses) - {int(each) for each in responses}):
            responses[str(status)] = {
                "description": _WORDS[status],
                "content": {JSON: {"schema": ref("Error")}},
            }
        found: dict[str, Any] = {
            "operationId": self.handler,
            "summary": self.summary,
            "responses": responses,
        }
        if self.parameters:
            found["parameters"] = list(self.parameters)
        if self.body:
            content = {JSON: {"schema": ref(self.body)}}
            found["requestBody"] = {"required": True, "content": content}
        if self.is_public:
            found["security"] = []
        return found


def _json(name: str) -> tuple[str, Schema]:
    return JSON, ref(name)


OPERATIONS = (
    Operation(
        "GET",
        "/stream.mjpg",
        "stream",
        "Annotated frames as MJPEG; whoever is slow gets fewer",
        {200: (STREAM_TYPE, _BYTES)},
        (404, 422),
        parameters=(_SOURCE,),
        is_endless=True,
    ),
    Operation(
        "GET",
        "/frame.jpg",
        "frame",
        "The newest annotated frame",
        {200: ("image/jpeg", _BYTES)},
        (404, 422),
        parameters=(_SOURCE, _SAVE),
    ),
    Operation("GET", "/api/state", "state", "All that changes", {200: _json("State")}),
    Operation(
        "GET",
        "/api/events",
        "events",
        "The state once a second, as server-sent events named state",
        {200: (EVENTS_TYPE, _TEXT)},
        is_endless=True,
    ),
    Operation("GET", "/api/card", "card", "The bundle and its proof", {200: _json("Card")}),
    Operation(
        "GET",
        "/api/thresholds",
        "thresholds",
        "Thresholds in use, of each source",
        {200: _json("Thresholds")},
    ),
    Operation(
        "PUT",
        "/api/thresholds",
        "set_thresholds",
        "Change thresholds from the next frame on; what is left out stays",
        {200: _json("Thresholds")},
        (404,),
        body="ThresholdsAsked",
    ),
    Operation(
        "GET",
        "/api/bundles",
        "bundles",
        "Bundles of the command line",
        {200: _json("Bundles")},
    ),
    Operation(
        "PUT",
        "/api/bundle",
        "set_bundle",
        "Load a bundle beside the running one and exchange them between two frames",
        {200: _json("BundleTaken")},
        (404, 409),
        body="BundleAsked",
    ),
    Operation("GET", "/api/sources", "sources", "Sources", {200: _json("Sources")}),
    Operation(
        "PUT",
        "/api/source",
        "set_source",
        "Choose the source that the page shows",
        {200: _json("Sources")},
        (404,),
        body="SourceAsked",
    ),
    Operation(
        "POST",
        "/api/login",
        "login",
        "Give the token, get it as a cookie",
        {204: None},
        body="Login",
        is_public=True,
    ),
    Operation(
        "GET",
        "/metrics",
        "metrics",
        "Figures in Prometheus' text format",
        {200: (METRICS_TYPE.partition(";")[0], _TEXT)},
    ),
    Operation(
        "GET",
        "/healthz",
        "healthz",
        "Whether frames are delivered",
        {200: _json("Health"), 503: (JSON, {"anyOf": [ref("Health"), ref("Error")]})},
        is_public=True,
    ),
    Operation(
        "GET",
        "/openapi.json",
        "describe",
        "This description",
        {200: (JSON, {"type": "object"})},
    ),
)


def describe_api(*, has_token: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    Args:
        has_token: the server asks for one.
    """
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = operation.describe()
    schemes = {
        "token": {"type": "http", "scheme": "bearer"},
        "cookie": {"type": "apiKey", "in": "cookie", "name": "kestrel_PORT"},
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Kestrel",
            "summary": "A run: its pictures, figures, thresholds and bundles.",
            "version": _version(),
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }
    if has_token:
        document["components"]["securitySchemes"] = schemes
        document["security"] = [{"token": []}, {"cookie": []}]
    return document


def _version() -> str:
    try:
        return importlib.metadata.version("kestrel-vision")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "0"
