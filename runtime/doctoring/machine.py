"""The machine that is looked at: where its files lie, who asks, and what Python finds.

Checks see files, users and environment variables through a `Machine` alone, so that a test can
plant a fault in a folder of its own: a /proc, a /dev, a folder of packages.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path

_NOT_EXECUTABLE = 126  # as a shell says it
_LONGEST_FILE = 1 << 20  # bytes that are read of a text file


@dataclass(frozen=True, slots=True)
class User:
    """Who runs Kestrel.

    Attributes:
        uid: the effective user id. gids: of all groups.
        is_own: the user of this process, so the kernel can be asked, which knows of ACLs, too.
    """

    uid: int
    gids: frozenset[int]
    is_own: bool = False

    @classmethod
    def of_process(cls) -> User:
        """The user of this process; on Windows one whom nothing is denied."""
        if sys.platform == "win32":
            return cls(0, frozenset(), is_own=True)
        return cls(os.geteuid(), frozenset((os.getegid(), *os.getgroups())), is_own=True)

    def may(self, path: Path, mode: int) -> bool:
        """Whether the user may do os.R_OK, os.W_OK or both with a path that is there."""
        if self.is_own:
            return os.access(path, mode)
        try:
            found = path.stat()
        except OSError:
            return False
        if self.uid == 0:
            return True
        if found.st_uid == self.uid:
            granted = found.st_mode >> 6
        elif found.st_gid in self.gids:
            granted = found.st_mode >> 3
        else:
            granted = found.st_mode
        return granted & mode == mode


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a command: its exit status, None where it was ended at its limit."""

    status: int | None
    stdout: str
    stderr: str

    @property
    def last_words(self) -> str:
        """The last line that it wrote, standard error first."""
        lines = [line.strip() for line in (self.stderr or self.stdout).splitlines()]
        return next((line for line in reversed(lines) if line), "")


@dataclass
class Machine:
    """What the checks look at.

    Attributes:
        root: the folder that stands for "/" where /proc, /sys, /dev, /etc ... are looked up.
        python_path: where Python finds packages, as sys.path.
        environ: environment variables.
        user: who runs Kestrel.
        now_s: the wall clock, Unix time.
        architecture: of the processor, such as "x86_64" or "aarch64".
        limit_s: the longest that a child process may take.
    """

    root: Path = Path("/")
    python_path: Sequence[str] = field(default_factory=lambda: list(sys.path))
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    user: User = field(default_factory=User.of_process)
    now_s: float = field(default_factory=time.time)
    architecture: str = field(default_factory=platform.machine)
    limit_s: float = 60.0

    def path(self, absolute: str) -> Path:
        """Where an absolute path of the machine lies."""
        return self.root / absolute.lstrip("/")

    def read(self, path: str | Path) -> str:
        """A small text file without the spaces around it; empty where it cannot be read."""
        place = self.path(path) if isinstance(path, str) else path
        try:
            if not stat.S_ISREG(place.stat().st_mode):
                return ""
            with place.open("rb") as file:
                data = file.read(_LONGEST_FILE)
        except OSError:
            return ""
        return data.decode("utf-8", "replace").strip().strip("\0")

    def read_number(self, path: str | Path) -> int | None:
        """A whole number; None where the file is not there or holds something else."""
        try:
            return int(self.read(path))
        except ValueError:
            return None

    def glob(self, pattern: str) -> list[Path]:
        """Paths of the machine that match, in the order of their numbers."""
        try:
            return sorted(self.root.glob(pattern.lstrip("/")), key=_by_number)
        except OSError:
            return []

    def run(self, command: str, *arguments: str, limit_s: float = 10.0) -> Ran | None:
        """Run a program of the PATH; None where there is none, status 126 where it cannot start."""
        program = shutil.which(command, path=self.environ.get("PATH", os.defpath))
        if program is None:
            return None
        try:
            return run_limited([program, *arguments], self.environ, min(limit_s, self.limit_s))
        except OSError as error:
            return Ran(_NOT_EXECUTABLE, "", error.strerror or str(error))

    def finds_module(self, name: str) -> Path | None:
        """Where Python would import a top-level package or module from; None: nowhere."""
        try:
            spec = PathFinder.find_spec(name, list(self.python_path))
        except (ImportError, OSError, ValueError):
            return None
        if spec is None:
            return None
        places = spec.submodule_search_locations
        where = spec.origin or (next(iter(places), None) if places is not None else None)
        return Path(where) if where else None

    @functools.cached_property
    def is_in_container(self) -> bool:
        """Docker, Podman or Kubernetes, by the marks that they leave."""
        marks = ("/.dockerenv", "/run/.containerenv")
        return any(self.path(each).exists() for each in marks) or bool(
            self.environ.get("KUBERNETES_SERVICE_HOST")
        )


def run_limited(command: Sequence[str], environ: Mapping[str, str], limit_s: float) -> Ran:
    """Run a command with no input; at its limit it is ended, and so is what it started.

    Raises:
        OSError: it cannot be started.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environ),
        cwd=Path(sys.executable).anchor or None,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as child:
        try:
            out, err = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            _end_group(child)
            out, err = child.communicate()
            return Ran(None, out, err)
    return Ran(child.returncode, out, err)


def _end_group(child: subprocess.Popen[str]) -> None:
    if sys.platform == "win32":
        child.kill()
        return
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has just ended
        child.kill()


def _by_number(path: Path) -> tuple[str, int]:
    digits = path.name[len(path.name.rstrip("0123456789")) :]
    return str(path)[: len(str(path)) - len(digits)], int(digits or -1)
