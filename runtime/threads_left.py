"""Threads that a library keeps busy when a run ends, and the end of a process that has some.

A thread in C++ code that asks for Python's lock while the interpreter ends is ended in that place,
which the C++ runtime answers with `std::terminate`: SIGABRT in place of the run's exit status.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading

_left: list[threading.Thread] = []


def leave(thread: threading.Thread) -> None:
    """Note a thread that nobody waits for any longer."""
    _left.append(thread)


def end_process(status: int) -> int:
    """The exit status again; where a thread that was left still runs, the process ends here.

    What is open has to be closed: of the interpreter's own end only the standard streams are
    flushed, and the log.
    """
    if not any(each.is_alive() for each in _left):
        return status
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
            stream.flush()
    os._exit(status)
