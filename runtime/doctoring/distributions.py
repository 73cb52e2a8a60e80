"""Installed packages as their metadata tells: whose files lie where, and whose are gone."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

from runtime.doctoring.machine import Machine

_LARGEST_HASHED = 4 << 20  # bytes; native libraries of hundreds of megabytes are not read
_PART = re.compile(r"(>=|<=|==|!=|~=|<|>)\s*([\w.*+!-]+)")


@dataclass(frozen=True)
class Package:
    """One installed distribution.

    Attributes:
        name: canonical, such as "opencv-python-headless". version: as it says.
        folder: the folder of packages that it lies in.
        files: relative path -> (sha256 in URL-safe base64, bytes), "" and -1 where not recorded.
    """

    name: str
    version: str
    folder: Path
    files: dict[str, tuple[str, int]]

    @cached_property
    def missing(self) -> list[str]:
        """Recorded files that are not there; compiled bytecode does not count."""
        return [
            name
            for name in self.files
            if not name.endswith(".pyc") and not (self.folder / name).exists()
        ]

    def owns(self, module: str) -> bool:
        """Whether it installs files of this top-level module."""
        return any(name.startswith(f"{module}/") for name in self.files)

    def differing(self, module: str) -> list[str]:
        """Files of a module, small ones, that are not those that it installed."""
        wrong = []
        for name, (digest, size) in self.files.items():
            path = self.folder / name
            if not name.startswith(f"{module}/") or name.endswith(".pyc") or size < 0:
                continue
            try:
                found = path.stat().st_size
                if found != size or (size <= _LARGEST_HASHED and digest not in ("", _hash(path))):
                    wrong.append(name)
            except OSError:
                continue  # missing, which is told otherwise
        return wrong

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def find_packages(machine: Machine, *names: str) -> list[Package]:
    """The packages of these canonical names, wherever Python looks, in the order of its path.

    Args:
        machine: whose Python path is searched.
        *names: regular expressions that match a canonical name whole.
    """
    pattern = re.compile("|".join(f"(?:{name})" for name in names))
    found, seen = [], set()
    for each in metadata.distributions(path=list(machine.python_path)):
        try:
            package = _read_package(each, pattern)
        except Exception:  # one that is damaged, or of a strange hand, hides the others not
            continue
        if package is not None and (package.name, package.folder) not in seen:
            seen.add((package.name, package.folder))
            found.append(package)
    return found


def _read_package(each: metadata.Distribution, pattern: re.Pattern[str]) -> Package | None:
    """None where it is another one."""
    fields = each.metadata
    name = canonical_name(fields["Name"] or "")
    if not pattern.fullmatch(name):
        return None
    files = {
        str(file): (file.hash.value if file.hash else "", -1 if file.size is None else file.size)
        for file in each.files or ()
    }
    version = str(fields["Version"] or "of no version")
    return Package(name, version, Path(str(each.locate_file(""))), files)


def find_owners(machine: Machine, module: str, *names: str) -> list[Package]:
    """Of the packages of these names those that install files of a module."""
    return [each for each in find_packages(machine, *names) if each.owns(module)]


def shared_files(packages: Sequence[Package]) -> list[str]:
    """Files that more than one package of a folder says are its own."""
    seen: set[tuple[Path, str]] = set()
    shared = set()
    for package in packages:
        for name in package.files:
            place = (package.folder, name)
            if place in seen and not name.endswith(".pyc"):
                shared.add(name)
            seen.add(place)
    return sorted(shared)


def canonical_name(name: str) -> str:
    """As package indexes write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def version_key(version: str) -> tuple[int, ...]:
    """The release's numbers, for comparing: "11.4.0.106" -> (11, 4, 0, 106)."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def is_within(version: str, bounds: str) -> bool:
    """Whether a version lies in bounds such as ">=1.23,<1.32"; other operators are not judged."""
    found = version_key(version)
    for operator, limit in _PART.findall(bounds):
        wanted = version_key(limit)
        size = max(len(found), len(wanted))
        left, right = (each + (0,) * (size - len(each)) for each in (found, wanted))
        if (operator == ">=" and left < right) or (operator == "<" and left >= right):
            return False
    return True


def taken_bounds(machine: Machine) -> dict[str, str]:
    """Canonical name -> bounds of the versions that Kestrel takes, where it is installed itself."""
    bounds: dict[str, str] = {}
    for each in metadata.distributions(name="kestrel-vision", path=list(machine.python_path)):
        for line in each.requires or ():
            match = re.match(r"([A-Za-z0-9._-]+)\s*([^;\[]*)", line)
            if match and match[2].strip():
                bounds.setdefault(canonical_name(match[1]), match[2].strip())
        break
    return bounds


def _hash(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
