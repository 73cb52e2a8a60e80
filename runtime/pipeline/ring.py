"""A bounded queue between two threads that waits when full, or drops the oldest and counts it."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class RingClosedError(Exception):
    """No more items: the other side is done."""


class Ring(Generic[T]):
    """A bounded queue for one producer and one consumer.

    Args:
        capacity: most items that wait, 1 or more.
        keeps_newest: `put` on a full ring drops the oldest item (a camera) instead of waiting
            (a file).
    """

    def __init__(self, capacity: int, *, keeps_newest: bool = False) -> None:
        assert capacity >= 1
        self.capacity = capacity
        self.keeps_newest = keeps_newest
        self.num_dropped = 0
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> T | None:
        """Add an item; wait for room unless the ring keeps the newest.

        Returns:
            The item that was dropped to make room, or None.

        Raises:
            RingClosedError: the consumer is done.
        """
        with self._changed:
            dropped = None
            while len(self._items) >= self.capacity and not self._is_closed:
                if self.keeps_newest:
                    dropped = self._items.popleft()
                    self.num_dropped += 1
                else:
                    self._changed.wait()
            if self._is_closed:
                raise RingClosedError
            self._items.append(item)
            self._changed.notify_all()
            return dropped

    def get(self, timeout_s: float | None = None) -> T:
        """Take the oldest item; wait for one.

        Raises:
            RingClosedError: closed, and everything was taken.
            TimeoutError: nothing came in `timeout_s` seconds.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._items:
                if self._is_closed:
                    raise RingClosedError
                wait_s = None if deadline is None else deadline - time.monotonic()
                if wait_s is not None and wait_s <= 0:
                    raise TimeoutError
                self._changed.wait(wait_s)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """End: a waiting `put` raises at once; `get` gives what is left and then raises."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
