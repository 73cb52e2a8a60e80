"""Several sources opened at once: none waits for another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from runtime.pipeline.sources.base import Source
from runtime.pipeline.sources.reconnecting import joining_later


def open_together(openers: Sequence[Callable[[], Source]]) -> list[Source]:
    """Open sources, each on a thread of its own.

    A live one that is to be waited for (`LiveOptions.wait_s`) and is not there holds up nobody: it
    begins as reconnecting, and joins when it comes.

    Args:
        openers: one for each source.

    Returns:
        The sources, in the order of their openers.

    Raises:
        Exception: what the first of them to fail raised, at once; what the others have opened, or
            are about to, is closed.
    """
    opening = _Opening(len(openers))
    for place, opener in enumerate(openers):
        thread = threading.Thread(
            target=opening.work, args=(place, opener), name=f"open source {place}", daemon=True
        )
        thread.start()
    return opening.wait()


class _Opening:
    """What the threads have opened so far."""

    def __init__(self, num_sources: int) -> None:
        self._num_sources = num_sources
        self._done: queue.Queue[tuple[int, Source | BaseException]] = queue.Queue()
        self._lock = threading.Lock()
        self._is_given_up = False

    def work(self, place: int, opener: Callable[[], Source]) -> None:
        """Open one; on a thread of its own."""
        try:
            with joining_later():
                source = opener()
        except BaseException as error:  # carried to the thread that waits
            self._done.put((place, error))
            return
        with self._lock:
            if not self._is_given_up:
                self._done.put((place, source))
                return
        source.close()

    def wait(self) -> list[Source]:
        """All sources, or the first error."""
        found: dict[int, Source] = {}
        try:
            while len(found) < self._num_sources:
                place, news = self._done.get()
                if isinstance(news, BaseException):
                    raise news
                found[place] = news
        except BaseException:  # a signal too
            self._give_up(list(found.values()))
            raise
        return [found[place] for place in range(self._num_sources)]

    def _give_up(self, opened: list[Source]) -> None:
        with self._lock:
            self._is_given_up = True
        while not self._done.empty():
            _, news = self._done.get_nowait()
            if isinstance(news, Source):
                opened.append(news)
        for source in opened:
            source.close()
