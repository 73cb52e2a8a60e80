"""What was written to a file is on the disk a second later, whatever happens to the power."""

from __future__ import annotations

import os
import threading

from runtime.contract.errors import SinkError, one_line

INTERVAL_S = 1.0
LONGEST_END_S = 5.0

_sync = getattr(os, "fdatasync", os.fsync)


class DiskSync:
    """Sends a file's new data to the disk once a second, on a thread of its own.

    A killed process loses nothing that it wrote; a power cut loses what the system still held back,
    by default half a minute's worth. A disk takes long for this at times, hence the thread.

    Args:
        descriptor: of the open file; this object makes a copy of it.
        target: its name, for people.
    """

    def __init__(self, descriptor: int, target: str, *, interval_s: float = INTERVAL_S) -> None:
        self.num_syncs = 0
        self._target = target
        self._descriptor = os.dup(descriptor)
        self._interval_s = interval_s
        self._error: OSError | None = None
        self._has_news = threading.Event()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sync {target}", daemon=True)
        self._thread.start()

    def note(self) -> None:
        """There is something new in the file.

        Raises:
            SinkError: the disk did not take what was written before.
        """
        self._has_news.set()
        self._tell()

    def close(self) -> None:
        """Sync what is new and end, without waiting for a disk that hangs.

        Raises:
            SinkError: as of `note`, where it was not raised before.
        """
        self._is_closing.set()
        self._has_news.set()
        self._thread.join(LONGEST_END_S)
        self._tell()

    def _tell(self) -> None:
        """Raise what the thread met, once."""
        error, self._error = self._error, None
        if error is not None:
            raise SinkError(
                f"output {self._target} did not get to the disk: {one_line(error)}. "
                "Is the disk in order?"
            )

    def _run(self) -> None:
        try:
            while not self._is_closing.is_set():
                self._has_news.wait()
                self._has_news.clear()
                _sync(self._descriptor)
                self.num_syncs += 1
                self._is_closing.wait(self._interval_s)
            _sync(self._descriptor)
        except OSError as error:  # told by the next `note` or `close`
            self._error = error
        finally:
            os.close(self._descriptor)
