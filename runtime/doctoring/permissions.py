"""What opens a device's node to a user: a group that has it, or a rule of udev."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

from runtime.doctoring.machine import Machine

_OF_DRIVER = "nvidia"  # nodes that the driver's own helper makes, and udev does not


def cure_for_node(machine: Machine, node: Path) -> str:
    """How this user gets to read and write a node.

    Args:
        machine: a container is given groups from outside.
        node: that the user may not open.
    """
    found = node.stat()
    group = group_name(found.st_gid)
    if found.st_gid == 0 or found.st_mode & 0o060 != 0o060:  # root's group is nobody's to join
        where = "on the host, " if machine.is_in_container else ""
        if node.name.startswith(_OF_DRIVER):
            return (
                f"{where}let the driver open it to all: echo 'options nvidia "
                "NVreg_DeviceFileMode=0666' | sudo tee /etc/modprobe.d/kestrel-nvidia.conf; reboot"
            )
        kernel = node.name.rstrip("0123456789")
        rule = f'KERNEL=="{kernel}*", GROUP="video", MODE="0660"'
        return (
            f"{where}give it to the group video: echo '{rule}' | sudo tee "
            "/etc/udev/rules.d/99-kestrel.rules; sudo udevadm control --reload; "
            "sudo udevadm trigger; sudo usermod -aG video $USER, and log in again"
        )
    if machine.is_in_container:
        return f"start the container with --group-add {found.st_gid}"
    return f"sudo usermod -aG {group} $USER, and log in again"


def describe_mode(node: Path) -> str:
    """Such as "root:video crw-rw----"."""
    found = node.stat()
    return f"group {group_name(found.st_gid)}, {stat.filemode(found.st_mode)}"


def group_name(gid: int) -> str:
    """A group's name; its number where it has none here."""
    if sys.platform == "win32":
        return "video"
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
