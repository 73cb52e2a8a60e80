"""A machine in a folder, to plant faults in: its /proc, /sys and /dev, its programs, its packages.

Nothing of the doctor is replaced: it reads these files, imports these packages in its child
processes, and runs these programs.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy

from runtime.doctoring.findings import Finding
from runtime.doctoring.machine import Machine, User

LIMIT_S = 60.0
STRANGER = User(uid=4242, gids=frozenset((4242,)))
EPYC_FLAGS = "fpu sse2 avx avx2 fma avx512f avx512_bf16 avx512_vnni"


class Planted:
    """The folder, empty but for NumPy.

    Args:
        folder: of the test.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.site = folder / "site"
        self.programs = folder / "bin"
        self.home = folder / "home"
        for each in (self.root, self.site, self.programs, self.home):
            each.mkdir()
        real = Path(numpy.__file__).parent
        for name in (real.name, f"{real.name}.libs"):
            if real.with_name(name).is_dir():
                (self.site / name).symlink_to(real.with_name(name))
        self.environ = {"PATH": str(self.programs), "HOME": str(self.home)}

    def machine(self, **changes: object) -> Machine:
        """What the doctor looks at; Python finds the standard library and the planted packages."""
        given = {
            "root": self.root,
            "python_path": [str(self.site), *standard_library()],
            "environ": self.environ,
            "user": STRANGER,
            "limit_s": LIMIT_S,
            **changes,
        }
        return Machine(**given)

    def file(self, path: str, text: str = "") -> Path:
        """A file of the machine, such as "/proc/cpuinfo"."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def program(self, name: str, script: str) -> None:
        """A shell script in the PATH."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def wheel(
        self, name: str, version: str, files: Mapping[str, str | bytes], site: Path | None = None
    ) -> None:
        """Install a package as pip does: its files, and a RECORD with their hashes."""
        site = site or self.site
        rows = []
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_bytes(data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{path},sha256={digest},{len(data)}")
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (folder / "RECORD").write_text("\n".join([*rows, f"{folder.name}/RECORD,,"]) + "\n")

    def intel(self, flags: str = EPYC_FLAGS) -> None:
        """A processor with these flags."""
        self.file("/proc/cpuinfo", f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n")

    def jetson(self, release: str = "R36 (release), REVISION: 4.7") -> None:
        """A Jetson by its marks."""
        self.file("/etc/nv_tegra_release", f"# {release}, GCID: 1, BOARD: generic, EABI: aarch64\n")
        self.file("/proc/device-tree/model", "NVIDIA Jetson Orin Nano\0")


def standard_library() -> list[str]:
    """The folders of `sys.path` that hold no packages of others and nothing of ours."""
    inside = Path(os.__file__).parent
    return [each for each in sys.path if Path(each).is_relative_to(inside)
            and not {"site-packages", "dist-packages"} & set(Path(each).parts)]  # fmt: skip


def give_to_video(node: Path) -> None:
    """Let a node be of a group that is not root's; without root it is of the user's own."""
    if os.name != "nt" and os.geteuid() == 0:
        os.chown(node, -1, 44)


def codes(findings: list[Finding]) -> dict[str, Finding]:
    """Findings by code, those that are no "ok"."""
    return {each.code: each for each in findings if each.level != "ok"}


def only(findings: list[Finding]) -> Finding:
    """The one finding that is no "ok"; it has a cure."""
    found = [each for each in findings if each.level != "ok"]
    assert len(found) == 1, found
    assert found[0].cure
    return found[0]


DRIVER_SOURCE = r"""
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int number(const char *name, int other) {
    const char *text = getenv(name);
    return text ? atoi(text) : other;
}
int cuInit(unsigned flags) {
    if (getenv("FAKE_CRASH")) abort();
    while (getenv("FAKE_HANG")) sleep(1);
    return number("FAKE_STATUS", 0);
}
int cuDriverGetVersion(int *version) { *version = number("FAKE_CUDA", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = number("FAKE_COUNT", 1); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, getenv("FAKE_NAME") ? getenv("FAKE_NAME") : "Orin", size);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int capability = number("FAKE_CAPABILITY", 87);
    *value = attribute == 75 ? capability / 10 : capability % 10;
    return 0;
}
"""


def compile_driver(folder: Path) -> Path:
    """A libcuda.so.1 that says what FAKE_STATUS, FAKE_CUDA, FAKE_NAME ... tell it to."""
    source = folder / "driver.c"
    source.write_text(DRIVER_SOURCE)
    library = folder / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return folder
