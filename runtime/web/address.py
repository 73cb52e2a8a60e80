"""Where the page is served, and which requests are meant for that place."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from runtime.contract.errors import SinkError

LOCAL = "127.0.0.1"
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_WILDCARDS = frozenset({"0.0.0.0", "::"})
_SAME_SITE = frozenset({"", "same-origin", "none"})  # of Sec-Fetch-Site; "" where there is none


def parse_web_address(address: str) -> tuple[str, int]:
    """("127.0.0.1", 8080) of "8080", ("0.0.0.0", 8080) of "0.0.0.0:8080".

    Raises:
        SinkError: neither.
    """
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise SinkError(
            f"--web {address} is no address; expected PORT or HOST:PORT, such as 8080 for this "
            "machine alone or 0.0.0.0:8080 for the network"
        )
    return _in_full(host.strip("[]") or LOCAL), int(port)


def parse_web_name(name: str) -> str:
    """A host's name or number as `Place.is_host` compares it: in small letters, without brackets.

    Raises:
        SinkError: it is neither, such as an address with a port.
    """
    host = name.strip("[]").lower()
    if not _is_number(host) and not re.fullmatch(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", host):
        raise SinkError(
            f"--web-name {name} is no host's name; expected one without scheme and port, such as "
            "camera.example"
        )
    return host


@dataclass(frozen=True, slots=True)
class Place:
    """A host and a port that are served.

    A page of another site may reach this machine's addresses from its visitor's browser, and by a
    name of its own that it lets point here (DNS rebinding). So a request is taken only where its
    Host is an address or name that this server goes by, and where no other site has made it.

    Attributes:
        names: others that it goes by, at any port, such as a proxy's.
    """

    host: str
    port: int
    names: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        """For people, on this machine or one that knows it by name."""
        host = socket.gethostname() if self.host in _WILDCARDS else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def is_host(self, header: str) -> bool:
        """Whether a Host header names this place.

        Where all addresses are served any number will do, and any port (a container's may be
        another outside), since a number cannot be made to point elsewhere; of names only this
        machine's own.
        """
        try:
            parts = urlsplit(f"//{header}")
            host, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if parts.path or parts.query or parts.fragment or parts.username is not None:
            return False
        if host in self.names:
            return True
        if self.host in _WILDCARDS:
            return _is_number(host) or host in _names_of_this_machine()
        known = _LOCAL_NAMES | {self.host} if self.is_local else {self.host.lower()}
        return port == self.port and host in known

    def why_foreign(self, headers: Mapping[str, str], *, is_unsafe: bool) -> str:
        """Why a request is not one of this page's own or of a program; "" where it is.

        Args:
            headers: of the request, by small letters.
            is_unsafe: it changes something.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.is_host(host):
            return f"the Host is {host[:100]!r}; expected this server's address, {self.url}"
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return f"the Origin is {origin[:100]!r}; expected this server's page"
        is_visit = headers.get("sec-fetch-mode") == "navigate" and not is_unsafe
        if headers.get("sec-fetch-site", "") not in _SAME_SITE and not is_visit:
            return "another site asked for this; expected this server's page"
        return ""


def _in_full(host: str) -> str:
    """Numbers that are cut short as the system reads them: 0 is 0.0.0.0. Others as they are."""
    if re.fullmatch(r"[0-9.]+", host):
        with contextlib.suppress(OSError):
            return socket.inet_ntoa(socket.inet_aton(host))
    return host


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _names_of_this_machine() -> set[str]:
    name = socket.gethostname().lower()
    return {"localhost", name, f"{name.partition('.')[0]}.local"}
