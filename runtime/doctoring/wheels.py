"""Wheels that install the same module: pip lets one overwrite another, and says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.doctoring.distributions import (
    Package,
    find_owners,
    is_within,
    shared_files,
    version_key,
)
from runtime.doctoring.findings import Finding
from runtime.doctoring.machine import Machine

# What Kestrel takes; equal to pyproject.toml, which a runtime on a device does not have.
TAKEN = {
    "numpy": ">=1.26,<2.6",
    "cv2": ">=4.8,<6",
    "onnxruntime": ">=1.23,<1.32",
    "openvino": ">=2025.3,<2027",
    "tensorrt": ">=10.3,<11.5",
    "tensorrt_rtx": ">=1.4,<1.8",
    "cuda": ">=12.6,<14",
    "av": ">=14,<20",
    "scipy": ">=1.11.4,<2",
    "httpx2": ">=2.4,<3",
    "paho": ">=2.1,<3",
    "starlette": ">=0.46,<2",
    "uvicorn": ">=0.34,<0.60",
    "onnxruntime-gpu": ">=1.23,<1.32",
}
# Module -> the package, where its name is another.
_PACKAGES = {
    "cv2": "opencv-python-headless",
    "tensorrt_rtx": "tensorrt-rtx",
    "cuda": "cuda-python",
    "paho": "paho-mqtt",
}


def requirements(*modules: str) -> str:
    """What to write behind `pip install` for modules of TAKEN, quoted for a shell."""
    return " ".join(f"'{_PACKAGES.get(each, each)}{TAKEN[each]}'" for each in modules)


@dataclass(frozen=True)
class Family:
    """Wheels of one module.

    Attributes:
        subject: for people. code: the beginning of the findings' codes.
        module: top-level, such as "cv2".
        names: regular expressions of the wheels' canonical names.
        choose: of several that lie together, what to install in their place.
    """

    subject: str
    code: str
    module: str
    names: tuple[str, ...]
    choose: Callable[[Sequence[Package]], str]


def check_family(machine: Machine, family: Family) -> Iterator[Finding]:
    """Two wheels in one folder, files that are gone, copies that hide each other, versions."""
    packages = find_owners(machine, family.module, *family.names)
    yield from _find_overwritten(family, packages)
    yield from _find_missing(family, packages)
    yield from _find_hidden(machine, family, packages)
    for package in packages[:1]:
        yield from check_version(
            family.subject, family.code, family.module, package.version, package.name
        )


def check_version(
    subject: str, code: str, module: str, version: str, package: str, *, advised: str = ""
) -> Iterator[Finding]:
    """A finding where a version lies outside of what Kestrel is tested with.

    Args:
        subject: for people. code: the beginning of the finding's code.
        module: of TAKEN. version: that is there.
        package: what pip calls it. advised: bounds for the cure; those of TAKEN where empty.
    """
    bounds = TAKEN[module]
    if not version_key(version) or is_within(version, bounds):
        return
    how = "newer" if is_within(version, bounds.split(",")[0]) else "older"
    yield Finding(
        subject,
        f"{code}-version",
        "warning",
        f"{module} {version} is {how} than what Kestrel is tested with ({bounds})",
        f"pip install '{package}{advised or bounds}'",
    )


def _find_overwritten(family: Family, packages: Sequence[Package]) -> Iterator[Finding]:
    for folder in dict.fromkeys(each.folder for each in packages):
        together = [each for each in packages if each.folder == folder]
        shared = shared_files(together)
        if not shared:
            continue
        names = " and ".join(map(str, together))
        whole = [each.name for each in together if not each.differing(family.module)]
        owner = f"those on disk are of {whole[0]}" if len(whole) == 1 else "those on disk are mixed"
        uninstall = " ".join(each.name for each in together)
        yield Finding(
            family.subject,
            f"{family.code}-two-wheels",
            "error",
            f"{names} overwrite each other's files ({len(shared)} of them; {owner})",
            f"pip uninstall -y {uninstall} && pip install {family.choose(together)}",
        )


def _find_missing(family: Family, packages: Sequence[Package]) -> Iterator[Finding]:
    for package in packages:
        gone = [name for name in package.missing if name.startswith(f"{family.module}/")]
        if gone:
            yield Finding(
                family.subject,
                f"{family.code}-files-missing",
                "error",
                f"{package} is installed, and {len(gone)} of its files are gone, such as {gone[0]}"
                " (another wheel that was uninstalled took them along)",
                f"pip install --force-reinstall --no-deps {package.name}=={package.version}",
            )


def _find_hidden(
    machine: Machine, family: Family, packages: Sequence[Package]
) -> Iterator[Finding]:
    """A second copy in another folder: which one Python takes depends on its path alone."""
    taken = machine.finds_module(family.module)
    if taken is None:
        return
    folders = list(dict.fromkeys(each.folder.resolve() for each in packages))
    hidden = [each for each in folders if not _is_under(taken, each)]
    if len(folders) > 1 and hidden:
        yield Finding(
            family.subject,
            f"{family.code}-hidden",
            "warning",
            f"{family.module} of {taken.parent.parent} hides another in {hidden[0]}",
            "keep one: pip uninstall the other, or use an environment without system packages",
        )


def _is_under(path: Path, folder: Path) -> bool:
    return folder in path.resolve().parents
