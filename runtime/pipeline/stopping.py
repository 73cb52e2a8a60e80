"""Ctrl-C and SIGTERM as a wish to end well: the first drains, the second ends at once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SS_DISABLE = 2  # <signal.h> of Linux


class _SignalStack(ctypes.Structure):
    """stack_t of <signal.h>."""

    _fields_ = (
        ("place", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


def handle_signals_on_the_normal_stack() -> None:
    """Give up this thread's alternate signal stack; OpenVINO sets one when it compiles.

    It is of the kernel's least size. Python's handler may need more on it, where the dynamic linker
    saves AVX-512 registers to bind a symbol: Ctrl-C then ends in a segmentation fault.
    """
    if sys.platform != "linux":
        return
    disabled = _SignalStack(None, _SS_DISABLE, 0)
    ctypes.CDLL(None).sigaltstack(ctypes.byref(disabled), None)


class StopSignal:
    """`is_set` turns True at the first Ctrl-C or SIGTERM; the second kills the process.

    A context manager that puts the signals' handlers back. Off the main thread it hears no
    signals, and `is_set` may be set by hand.
    """

    def __init__(self) -> None:
        self.set_at: float | None = None  # time.monotonic(); a plain field: no lock in a handler
        self._before: dict[signal.Signals, Any] = {}

    @property
    def is_set(self) -> bool:
        """Whether the run is to end."""
        return self.set_at is not None

    @is_set.setter
    def is_set(self, value: bool) -> None:
        self.set_at = (self.set_at or time.monotonic()) if value else None

    def set(self) -> None:
        """End as at the first signal; from any thread."""
        self.is_set = True

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            handle_signals_on_the_normal_stack()
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.is_set:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.is_set = True
