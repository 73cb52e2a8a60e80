"""When to take a live source's next frame: just before the engine is free.

Taken earlier, a frame would grow old in the engine's queue; later, the engine would wait while the
frame is prepared.
"""

from __future__ import annotations

from collections import deque

WINDOW = 32  # engine calls that are looked back upon
MOST_FAST = 2  # of these, calls that seem short since the one before was seen late
MOST_SLOW = 4  # and calls that something held up; more of them are the engine's own way
MOST_SPREAD = 0.25  # of the other calls' times, for the next to be foreseen
LEAD_HOST_TIMES = 1.5  # how much earlier than its preparation takes a frame is taken
LEAD_S = 0.001  # and this much for waking up


class EnginePace:
    """Foresees when the engine will be free, from the calls before; told all times.

    Times are seconds of a rising clock. An engine whose calls differ (key frames and others,
    batches of many sizes) is not foreseen: its answer is waited for.
    """

    def __init__(self) -> None:
        self._engine_s: deque[float] = deque(maxlen=WINDOW)
        self._host_s: deque[float] = deque(maxlen=WINDOW)
        self._free_at = 0.0

    def note_submitted(self, begun: float, done: float) -> None:
        """A call was prepared from `begun` on and given to the engine at `done`."""
        self._host_s.append(done - begun)

    def note_answered(self, submitted: float, now: float) -> None:
        """The call that the engine was given at `submitted` is through."""
        self._engine_s.append(now - max(submitted, self._free_at))
        self._free_at = now

    def take_at(self, submitted: float) -> float | None:
        """When to take the next frame while a call is in the engine; None: when that is through.

        Args:
            submitted: when that call was given to the engine.
        """
        if len(self._engine_s) < WINDOW:
            return None
        times = sorted(self._engine_s)
        low, high = times[MOST_FAST], times[-1 - MOST_SLOW]
        if high - low > MOST_SPREAD * low:
            return None
        host_s = sorted(self._host_s)[len(self._host_s) // 2]
        return max(submitted, self._free_at) + low - LEAD_HOST_TIMES * host_s - LEAD_S
