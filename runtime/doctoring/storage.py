"""Memory, disk space, and the folder where engines are kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from runtime.doctoring.cgroups import find_folders
from runtime.doctoring.findings import Finding
from runtime.doctoring.machine import Machine
from runtime.doctoring.survey import Survey

_GIB = 1 << 30
_LITTLE_MEMORY = 1 * _GIB  # a network, its frames and OpenCV take about half of it
_BUILD_MEMORY = 8 * _GIB  # TensorRT's builder on a Jetson, memory shared with the GPU
_LITTLE_DISK = 1 * _GIB  # engines of a few precisions, and a minute of video
_KEEPS_NOTHING = "each start compiles anew, which takes seconds to minutes"


def check_memory(survey: Survey) -> Iterator[Finding]:
    """Memory that is free, in the machine and in this process's cgroup."""
    machine = survey.machine
    sizes = {
        name: int(value) << 10
        for name, value in re.findall(
            r"^(\w+):\s*(\d+) kB", machine.read("/proc/meminfo"), re.MULTILINE
        )
    }
    if "MemTotal" not in sizes:
        return
    total, free = sizes["MemTotal"], sizes.get("MemAvailable", sizes.get("MemFree", 0))
    swap = sizes.get("SwapTotal", 0)
    for limit, used in _cgroup_limits(machine):
        if limit < sizes["MemTotal"]:
            total, free = min(total, limit), min(free, max(0, limit - used))
    text = f"{_gib(free)} of {_gib(total)} free, swap {_gib(swap)}"
    if free < _LITTLE_MEMORY:
        yield Finding(
            "Memory",
            "memory-low",
            "warning",
            f"{text}; the system may end the run, or swap",
            "end other programs, raise the container's limit, or add swap",
        )
    elif survey.jetson is not None and total + swap < _BUILD_MEMORY:
        yield Finding(
            "Memory",
            "memory-build",
            "note",
            f"{text}: building an engine may need more, since the GPU shares it",
            "add swap for the build: sudo fallocate -l 8G /swapfile; sudo chmod 600 /swapfile; "
            "sudo mkswap /swapfile; sudo swapon /swapfile",
        )
    else:
        yield Finding("Memory", "memory", "ok", text)


def check_disk(survey: Survey) -> Iterator[Finding]:
    """Space where engines and bundles lie."""
    from runtime.engines.cache import user_cache_folder  # needs NumPy

    seen = set()
    for place in (user_cache_folder(survey.machine.environ), *survey.bundles):
        there = _nearest(place)
        try:
            device, usage = there.stat().st_dev, shutil.disk_usage(there)
        except OSError:
            continue
        if device in seen:
            continue
        seen.add(device)
        text = f"{_gib(usage.free)} of {_gib(usage.total)} free where {place} lies"
        if usage.free < _LITTLE_DISK:
            yield Finding(
                "Disk",
                "disk-full",
                "warning",
                f"{text}; engines and videos may not fit",
                "free some space: sudo apt clean, docker system prune, old videos",
            )
        else:
            yield Finding("Disk", "disk", "ok", text)


def check_engine_cache(survey: Survey) -> Iterator[Finding]:
    """Whether engines of bundles that cannot be written can be kept for the user."""
    from runtime.engines.cache import user_cache_folder  # needs NumPy

    machine = survey.machine
    folder = user_cache_folder(machine.environ)
    there = _nearest(folder)
    if machine.user.may(there, os.W_OK | os.X_OK):
        yield Finding("Engine cache", "engine-cache", "ok", f"{folder} can be written")
        return
    yield Finding(
        "Engine cache",
        "engine-cache-read-only",
        "warning",
        f"{folder} cannot be written ({there} is read-only for this user): engines of read-only "
        f"bundles are not kept, and {_KEEPS_NOTHING}",
        "set XDG_CACHE_HOME to a folder that can be written, or give this one to the user (chown)",
    )


def _cgroup_limits(machine: Machine) -> Iterator[tuple[int, int]]:
    """Bytes that each cgroup around this process allows, and that are in use for good.

    Pages of files count as used there, and are given back when something else needs them.
    """
    new, old = find_folders(machine, "memory")
    kinds = (
        (new or ["/sys/fs/cgroup"], "memory.max", "memory.current", ""),
        (
            old or ["/sys/fs/cgroup/memory"],
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_",
        ),
    )
    for folders, limit_name, used_name, prefix in kinds:
        for folder in folders:
            limit = machine.read_number(f"{folder}/{limit_name}")
            if limit is None:
                continue
            used = machine.read_number(f"{folder}/{used_name}") or 0
            pages = dict(re.findall(r"^(\w+) (\d+)$", machine.read(f"{folder}/memory.stat"), re.M))
            for name in ("inactive_file", "active_file"):
                used -= int(pages.get(prefix + name, 0))
            yield limit, max(0, used)


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder around it that is there."""
    return next((each for each in (path, *path.parents) if each.exists()), Path(path.anchor))


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
