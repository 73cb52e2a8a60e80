"""What this process has used: memory, CPU time, context switches."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

MIB = float(1 << 20)
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Usage:
    """The process at one moment.

    Attributes:
        rss_mib: memory that it holds now. peak_mib: the most that it ever held.
        cpu_s: processor time of all its threads. wall_s: of a rising clock.
        num_preempted: times the system took a processor away from it.
    """

    rss_mib: float
    peak_mib: float
    cpu_s: float
    wall_s: float
    num_preempted: int


def read_usage() -> Usage:
    """Measure now."""
    rss_mib, peak_mib = _read_memory()
    return Usage(rss_mib, peak_mib, time.process_time(), time.perf_counter(), _read_preempted())


def _read_memory() -> tuple[float, float]:
    if _STATUS.exists():
        fields = dict(
            line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line
        )
        rss, peak = (int(fields[key].split()[0]) * 1024 / MIB for key in ("VmRSS", "VmHWM"))
        return rss, peak
    import psutil

    memory = psutil.Process(os.getpid()).memory_info()
    return memory.rss / MIB, getattr(memory, "peak_wset", memory.rss) / MIB


def _read_preempted() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
