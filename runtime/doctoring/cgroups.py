"""The control groups around this process, whose limits bind it, too."""

from __future__ import annotations

from pathlib import Path

from runtime.doctoring.machine import Machine

_MOUNT = Path("/sys/fs/cgroup")


def find_folders(machine: Machine, controller: str) -> tuple[list[str], list[str]]:
    """Folders of version 2 and of version 1 for a controller, this process's own first.

    Inside a container the outermost is the container's own.

    Args:
        machine: whose /proc/self/cgroup is read.
        controller: "cpu" or "memory".
    """
    new, old = [], []
    for line in machine.read("/proc/self/cgroup").splitlines():
        number, controllers, path = (line.split(":", 2) + ["", "", ""])[:3]
        if number == "0" and not controllers:
            new += _upwards(path, "")
        elif controller in controllers.split(","):
            for mount in dict.fromkeys((controller, controllers)):
                old += _upwards(path, mount)
    return new, old


def _upwards(path: str, mount: str) -> list[str]:
    inner = Path(path.lstrip("/"))
    return [str(_MOUNT / mount / each) for each in (inner, *inner.parents)]
