"""Cameras: what is there, who may open it, and who has it open."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from runtime.doctoring.findings import Finding
from runtime.doctoring.machine import Machine
from runtime.doctoring.permissions import cure_for_node, describe_mode
from runtime.doctoring.survey import Survey

_SUBJECT = "Cameras"


def check_cameras(survey: Survey) -> Iterator[Finding]:
    """Every /dev/video*."""
    machine = survey.machine
    nodes = machine.glob("/dev/video[0-9]*")
    known = {path.name for path in machine.glob("/sys/class/video4linux/video[0-9]*")}
    for name in sorted(known - {node.name for node in nodes}):
        is_wanted = not machine.is_in_container  # one gets the cameras that it was given
        yield Finding(
            _SUBJECT,
            "camera-not-here",
            "error" if is_wanted else "note",
            f"the kernel has {_describe(machine, name)}, and there is no /dev/{name}",
            f"udev lacks it: sudo udevadm trigger; in Docker: --device /dev/{name}"
            if is_wanted
            else f"if you want it: start the container with --device /dev/{name}",
        )
    if not nodes and not known:
        yield Finding(
            _SUBJECT, "camera-none", "ok", "no /dev/video*; network and CSI are not seen here"
        )
    for node in nodes:
        yield from _check_node(survey, node)


def _check_node(survey: Survey, node: Path) -> Iterator[Finding]:
    machine = survey.machine
    name = _describe(machine, node.name)
    if not machine.user.may(node, os.R_OK | os.W_OK):
        yield Finding(
            _SUBJECT,
            "camera-permission",
            "error",
            f"this user may not open {name} ({describe_mode(node)})",
            cure_for_node(machine, node),
        )
        return
    holders = find_holders(machine, f"/dev/{node.name}")
    if holders:
        yield Finding(
            _SUBJECT,
            "camera-busy",
            "warning",
            f"{name} is open in {', '.join(holders)}; most cameras serve one program",
            "end that program, or use another camera",
        )
    if not stat.S_ISCHR(node.stat().st_mode):
        return
    answer = survey.ask("camera", str(node))
    if answer.fault:
        yield Finding(
            _SUBJECT,
            "camera-no-answer",
            "error",
            f"{name}: {answer.fault}",
            "unplug it and plug it in again; sudo dmesg | tail says more; another cable or port",
        )
    elif answer.data["gives_pictures"]:
        formats = ", ".join(answer.data["formats"]) or "no formats"
        yield Finding(_SUBJECT, "camera", "ok", f"{name}: {formats}")


def find_holders(machine: Machine, device: str) -> list[str]:
    """Programs that have a device open, as "name (process 123)"; root sees those of all users."""
    holders = []
    for entry in machine.glob("/proc/[0-9]*"):
        if entry.name == str(os.getpid()):
            continue
        try:
            links = [str(each.readlink()) for each in (entry / "fd").iterdir()]
        except OSError:  # of another user, or gone
            continue
        if device in links:
            holders.append(f"{machine.read(entry / 'comm') or 'a program'} (process {entry.name})")
    return holders


def _describe(machine: Machine, node: str) -> str:
    name = machine.read(f"/sys/class/video4linux/{node}/name")
    return f"/dev/{node} ({name})" if name else f"/dev/{node}"
