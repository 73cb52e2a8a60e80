"""A server that is away: when it is tried again, and what is said about it."""

from __future__ import annotations

import logging
import random
import time
from urllib.parse import SplitResult, urlsplit

from runtime.contract.errors import SinkError

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0

_log = logging.getLogger(__name__)


class Outage:
    """Spaces out tries, and says in one line each that a server is away and that it is back.

    Args:
        target: the server, for people.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._wait_s = 0.0
        self._not_before = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether it is too early for another try."""
        return time.monotonic() < self._not_before

    def begin(self, reason: str) -> None:
        """A try failed: the next one comes after twice the wait, with jitter."""
        if not self._wait_s:
            _log.warning(
                "output %s does not take results: %s. Trying again; what it misses is counted.",
                self._target,
                reason,
            )
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S) or FIRST_WAIT_S
        self._not_before = time.monotonic() + self._wait_s * random.uniform(0.8, 1.2)

    def end(self, num_lost: int) -> None:
        """A try went well; `num_lost` results were lost so far in all."""
        if self._wait_s:
            _log.info("output %s takes results again; %d were lost", self._target, num_lost)
        self._wait_s = self._not_before = 0.0


def split_url(url: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    """The parts of a server's address.

    Raises:
        SinkError: another scheme, no host, or a port that is none.
    """
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise SinkError(f"output {hide_login(url)} is no such address; expected {example}")
    return parts


def hide_login(url: str) -> str:
    """The address without user and password, for people and logs."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://{tail}" if at and "://" in head else url
