"""Streams over the network: is anybody there, and which library reads them."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import re
import socket
import urllib.request
from collections.abc import Mapping
from email.message import Message
from urllib.parse import unquote, urlsplit

from runtime.contract.errors import SourceError
from runtime.pipeline.sources.connection import Connection, ConnectionLost
from runtime.pipeline.sources.live_options import LiveOptions

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
# The start of a stream is not watched for its rate: that would take over a second, and its pictures
# would be as late. What has come meanwhile is decoded at once, so nothing stays behind.
FASTEST_START = {"analyzeduration": "0", "fpsprobesize": "0"}
KNOCK_S = 2.0  # longest wait for a host to take a connection
SNIFFED_BYTES = 512  # of what turns out to be no video
# A user, behind a scheme or not, a colon, and all up to the last @: a password may have any letter.
_LOGIN = re.compile(r"^((?:[a-z][a-z0-9+.-]*:)?[^?#@:]*):(?!//).*@", re.DOTALL | re.IGNORECASE)


def without_password(url: str) -> str:
    """The URL as it may be shown: "rtsp://admin:***@camera/live"."""
    return re.sub(r"(?<=://)([^/?#@:]*):[^/?#]*@", r"\1:***@", url, count=1)


def as_shown(uri: str) -> str:
    """A source as it may be quoted, however it is mistyped: what may be a password is not shown."""
    return _LOGIN.sub(r"\1:***@", uri)


def check_url(url: str) -> None:
    """Refuse what cannot be the address of a stream.

    Raises:
        SourceError: no host, a port that is none, or a password with unescaped letters.
    """
    shown = without_password(url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
        if "@" in url:  # its part before the first / is no host and port
            shown = f"{url.split('://')[0]}://***@{url.rpartition('@')[2]}"
    if not host:
        raise SourceError(
            f"source {shown} names no host; expected scheme://user:password@host:port/path. "
            "Write / ? # @ in a password as %2F %3F %23 %40."
        )


def knock(url: str, timeout_s: float) -> None:
    """See whether the host takes connections.

    FFmpeg waits for its whole timeout where a host is switched off, and would miss its return by
    as much. A connection that is closed at once costs little and tells what is wrong.

    Raises:
        ConnectionLost: it does not.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    if parts.scheme in ("http", "https") and _is_proxied(parts.scheme, parts.hostname):
        return  # FFmpeg talks to the proxy
    address = parts.hostname, parts.port or PORTS[parts.scheme]
    try:
        socket.create_connection(address, min(KNOCK_S, timeout_s)).close()
    except TimeoutError:
        raise ConnectionLost(f"{parts.hostname} does not answer") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConnectionLost(f"{address[0]} port {address[1]}: {reason}") from None


def _is_proxied(scheme: str, host: str) -> bool:
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)


def connect(
    url: str, options: LiveOptions, settings: Mapping[str, str], *, may_end: bool
) -> Connection:
    """Open a stream with PyAV where it is installed, else with OpenCV.

    Args:
        url: with user and password where there are any.
        options: timeouts and the rate.
        settings: FFmpeg's, of the demuxer and its protocol.
        may_end: what has a length is a video with an end.

    Raises:
        ConnectionLost: not there, or nothing that can be read; another attempt may succeed.
        SourceError: no attempt will.
    """
    knock(url, options.open_timeout_s)
    settings = {**FASTEST_START, **settings}
    if importlib.util.find_spec("av") is not None:
        from runtime.pipeline.sources.pyav_connection import PyAvConnection

        try:
            return PyAvConnection(url, options, settings, may_end=may_end)
        except ConnectionLost as error:
            raise _with_content(error, url, options.open_timeout_s) from None
    from runtime.pipeline.sources.opencv_connection import (
        OpenCvConnection,
        ffmpeg_options,
        open_timed,
    )

    has_end = may_end and _has_length(_ask(url, "HEAD", options.open_timeout_s)[0])
    with ffmpeg_options(settings):
        capture = open_timed(url, "CAP_FFMPEG", options)
    if capture is None:
        lost = ConnectionLost("OpenCV cannot open it")
        raise _with_content(lost, url, options.open_timeout_s)
    return OpenCvConnection(
        capture,
        fps=options.fps,
        may_end=may_end,
        has_end=has_end,
        stall_timeout_s=options.stall_timeout_s,
    )


def _ask(url: str, method: str, timeout_s: float) -> tuple[Message | None, bytes]:
    """What a web server tells of an address, and how that begins; None, b"" where it does not."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return None, b""
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
    request = urllib.request.Request(bare, method=method)
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        token = base64.b64encode(login.encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=min(KNOCK_S, timeout_s)) as answer:
            return answer.headers, answer.read1(SNIFFED_BYTES)
    except (OSError, ValueError, http.client.HTTPException):
        return None, b""


def _has_length(headers: Message | None) -> bool:
    """Whether it is a file; the length of a list of others, or of a camera's pictures, is none.

    For OpenCV, which does not tell what FFmpeg knows of it.
    """
    if headers is None or headers.get_content_maintype() == "multipart":
        return False
    if any(word in headers.get_content_type() for word in ("mpegurl", "dash")):
        return False
    return (headers["Content-Length"] or "").isdecimal() and int(headers["Content-Length"]) > 0


def _with_content(error: ConnectionLost, url: str, timeout_s: float) -> ConnectionLost:
    """The error with its cause, where what came was text: FFmpeg only says that it cannot read."""
    if str(error).startswith(("server returned", "no answer")):
        return error
    headers, begins = _ask(url, "GET", timeout_s)
    kind = "" if headers is None else headers.get("Content-Type", "").lower()
    if "html" in kind or re.match(rb"\s*<(!doctype html|html)", begins, re.IGNORECASE):
        return ConnectionLost("it is no video but a web page (HTML)")
    if kind.startswith(("text/plain", "application/json")):
        return ConnectionLost("it is no video but text")
    return error
