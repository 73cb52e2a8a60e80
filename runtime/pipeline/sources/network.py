"""Streams over the network: is anybody there, and which library reads them."""

from __future__ import annotations

import importlib.util
import re
import socket
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

from runtime.contract.errors import SourceError
from runtime.pipeline.sources.connection import Connection, ConnectionLost
from runtime.pipeline.sources.live_options import LiveOptions

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
# The start of a stream is not watched for its rate: that would take over a second, and its pictures
# would be as late. What has come meanwhile is decoded at once, so nothing stays behind.
FASTEST_START = {"analyzeduration": "0", "fpsprobesize": "0"}
KNOCK_S = 2.0  # longest wait for a host to take a connection


def without_password(url: str) -> str:
    """The URL as it may be shown: "rtsp://admin:***@camera/live"."""
    return re.sub(r"(?<=://)([^/?#@:]*):[^/?#]*@", r"\1:***@", url, count=1)


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

        return PyAvConnection(url, options, settings, may_end=may_end)
    from runtime.pipeline.sources.opencv_connection import (
        OpenCvConnection,
        ffmpeg_options,
        open_timed,
    )

    with ffmpeg_options(settings):
        capture = open_timed(url, "CAP_FFMPEG", options)
    if capture is None:
        raise ConnectionLost("OpenCV cannot open it")
    stall_timeout_s = options.stall_timeout_s
    return OpenCvConnection(
        capture, fps=options.fps, may_end=may_end, stall_timeout_s=stall_timeout_s
    )
