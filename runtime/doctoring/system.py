"""Python, NumPy, the operating system, the clock and the screen."""

from __future__ import annotations

import datetime
import platform
import re
import sys
from collections.abc import Iterator

from runtime.doctoring.distributions import find_packages, version_key
from runtime.doctoring.findings import Finding
from runtime.doctoring.import_cures import cure_for
from runtime.doctoring.opencv import is_of_system
from runtime.doctoring.survey import Survey
from runtime.doctoring.wheels import TAKEN, check_version, requirements

_EARLIEST = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
_KNOWN_ARCHITECTURES = ("x86_64", "aarch64", "amd64", "arm64")
# Modules that come together, and the options that need them.
_EXTRAS = (
    (("scipy",), "--track, --line, --zone"),
    (("httpx2",), "--webhook"),
    (("paho",), "--mqtt"),
    (("starlette", "uvicorn"), "--web"),
)


def check_python(survey: Survey) -> Iterator[Finding]:
    """Python and NumPy."""
    kind = "a virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    place = f"Python {platform.python_version()} ({kind}, {sys.prefix})"
    if sys.maxsize < 1 << 32:
        yield Finding(
            "Python",
            "python-32-bit",
            "error",
            f"{place} has 32 bits; no backend has wheels for it",
            "install a 64-bit Python on a 64-bit system",
        )
    else:
        yield Finding("Python", "python", "ok", place)
    answer = survey.ask("import", "numpy")
    if answer.fault:
        yield Finding(
            "NumPy",
            "numpy-broken",
            "error",
            f"NumPy does not import: {answer.fault}",
            f"{cure_for(answer, _named(_bounds_of_numpy(survey, '')))}; then run the doctor again",
        )
        return
    version = answer.data["version"]
    bounds = _bounds_of_numpy(survey, version)
    findings = list(check_version("NumPy", "numpy", "numpy", version, "numpy", advised=bounds))
    yield from findings or [Finding("NumPy", "numpy", "ok", f"NumPy {version}")]


def _bounds_of_numpy(survey: Survey, version: str) -> str:
    """Those of TAKEN; of the major version that is there, where the system's OpenCV needs it."""
    bounds = TAKEN["numpy"]
    if not is_of_system(survey.machine):
        return bounds
    if not version:  # it does not import; the systems that we know of have 1.x beside OpenCV 4.x
        found = find_packages(survey.machine, "numpy")
        version = found[0].version if found else "1"
    major = (version_key(version) or (1,))[0]
    return f"{bounds.split(',')[0]},<2" if major < 2 else bounds


def _named(bounds: str) -> str:
    return f"'numpy{bounds}'"


def check_platform(survey: Survey) -> Iterator[Finding]:
    """Operating system and processor architecture."""
    machine = survey.machine
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', machine.read("/etc/os-release"), re.MULTILINE)
    name = match[1] if match else platform.system()
    inside = ", in a container" if machine.is_in_container else ""
    place = f"{name} on {machine.architecture}{inside}"
    if machine.architecture.lower() in _KNOWN_ARCHITECTURES:
        yield Finding("System", "system", "ok", place)
    else:
        yield Finding(
            "System",
            "system-architecture",
            "error",
            f"{place}: backends have wheels for x86_64 and aarch64 only",
            "use a 64-bit system; a Raspberry Pi 3 and later can run one",
        )


def check_clock(survey: Survey) -> Iterator[Finding]:
    """A clock without a battery starts in 1970: times of results and TLS are wrong then."""
    now = datetime.datetime.fromtimestamp(survey.machine.now_s, datetime.timezone.utc)
    text = now.isoformat(sep=" ", timespec="seconds")
    if now >= _EARLIEST:
        yield Finding("Clock", "clock", "ok", text)
        return
    yield Finding(
        "Clock",
        "clock-wrong",
        "error",
        f"the clock says {text}: times in results are wrong, and TLS refuses every certificate",
        "sudo timedatectl set-ntp true, or set it by hand: sudo date -s '2026-01-31 12:00'",
    )


def check_extras(survey: Survey) -> Iterator[Finding]:
    """Packages that some options need."""
    finds = survey.machine.finds_module
    lacking = {
        module: use for modules, use in _EXTRAS for module in modules if finds(module) is None
    }
    if not lacking:
        names = ", ".join(module for modules, _ in _EXTRAS for module in modules)
        yield Finding("Extras", "extras", "ok", f"there: {names}")
        return
    uses = ", ".join(f"{module} ({use})" for module, use in lacking.items())
    yield Finding(
        "Extras",
        "extras-missing",
        "note",
        f"not installed: {uses}",
        f"where you want these: pip install {requirements(*lacking)}",
    )


def check_screen(survey: Survey) -> Iterator[Finding]:
    """What --window needs."""
    environ = survey.machine.environ
    wayland, display = environ.get("WAYLAND_DISPLAY"), environ.get("DISPLAY", "")
    local = re.fullmatch(r"(?:unix)?:(\d+)(?:\.\d+)?", display)
    if wayland or (display and local is None):
        yield Finding("Screen", "screen", "ok", f"{wayland or display}")
    elif local is not None and not survey.machine.path(f"/tmp/.X11-unix/X{local[1]}").exists():
        yield Finding(
            "Screen",
            "screen-not-there",
            "warning",
            f"DISPLAY is {display}, and no X server answers there",
            "start a desktop session, unset DISPLAY, or use --mjpeg in place of --window",
        )
    elif local is not None:
        yield Finding("Screen", "screen", "ok", display)
    else:
        yield Finding(
            "Screen",
            "screen-none",
            "note",
            "no screen (DISPLAY and WAYLAND_DISPLAY are not set), so no --window",
            "use --mjpeg, or run in a desktop session",
        )
