"""OpenCV: which of its wheels, whether it imports, and what it was built with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from runtime.doctoring.distributions import Package, find_owners
from runtime.doctoring.findings import Finding
from runtime.doctoring.import_cures import cure_for
from runtime.doctoring.machine import Machine
from runtime.doctoring.probing import Answer
from runtime.doctoring.survey import Survey
from runtime.doctoring.wheels import TAKEN, Family, check_family, check_version, requirements

_SUBJECT = "OpenCV"
SYSTEMS_OPENCV = (
    "use the system's OpenCV: sudo apt install python3-opencv, and an environment that sees it: "
    "python3 -m venv --system-site-packages .venv"
)


def _choose(packages: Sequence[Package]) -> str:
    """The one with the most in it of those that were there; headless where one was."""
    names = [each.name for each in packages]
    contrib = "-contrib" if any("contrib" in name for name in names) else ""
    headless = "-headless" if any("headless" in name for name in names) else ""
    return f"'opencv{contrib}-python{headless}{TAKEN['cv2']}'"


FAMILY = Family(_SUBJECT, "opencv", "cv2", (r"opencv(-.+)?-python(-.+)?",), _choose)


def check_wheels(survey: Survey) -> Iterator[Finding]:
    """Several in one environment, files that are gone, versions."""
    for finding in check_family(survey.machine, FAMILY):
        if survey.jetson is None or finding.code == "opencv-hidden":
            yield finding
        else:  # a wheel has no GStreamer, so none is advised
            names = " ".join(each.name for each in _find_wheels(survey.machine))
            yield replace(finding, cure=f"pip uninstall -y {names}; {SYSTEMS_OPENCV}")


def is_of_system(machine: Machine) -> bool:
    """Whether Python takes an OpenCV that no wheel has installed."""
    return machine.finds_module("cv2") is not None and not _find_wheels(machine)


def check_build(survey: Survey) -> Iterator[Finding]:
    """Import it and read its build information: GStreamer, FFmpeg, windows."""
    if survey.machine.finds_module("cv2") is None:
        yield Finding(
            _SUBJECT,
            "opencv-none",
            "error",
            "not installed; preparing and drawing frames needs it",
            f"pip install {requirements('cv2')}" if survey.jetson is None else SYSTEMS_OPENCV,
        )
        return
    answer = survey.ask("opencv")
    if answer.fault:
        yield Finding(
            _SUBJECT,
            "opencv-broken",
            "error",
            f"it does not import: {answer.fault}",
            _cure_import(survey, answer),
        )
        return
    data = answer.data
    parts = read_build(data["build"])
    has = [name for name, value in parts.items() if value not in ("NO", "NONE", "")]
    lacks = [name for name in parts if name not in has]
    without = f"; without {', '.join(lacks)}" if lacks else ""
    text = f"{data['version']} with {', '.join(has) or 'nothing'}{without} ({data['file']})"
    yield Finding(_SUBJECT, "opencv", "ok", text)
    has_wheel = bool(_find_wheels(survey.machine))
    if not has_wheel and list(check_version(_SUBJECT, "opencv", "cv2", data["version"], "")):
        yield Finding(
            _SUBJECT,
            "opencv-version",
            "note",
            f"{data['version']} of the system is not of those that Kestrel is tested with "
            f"({TAKEN['cv2']})",
            "keep it: a wheel of pip in its place would lack what the system's was built with",
        )
    if "FFmpeg" in lacks and survey.machine.finds_module("av") is None:
        yield Finding(
            _SUBJECT,
            "opencv-no-ffmpeg",
            "error",
            "it was built without FFmpeg, and PyAV is not there: no video can be read or written",
            f"pip install {requirements('av')}",
        )
    if "GStreamer" in lacks and survey.jetson is not None:
        yield Finding(
            _SUBJECT,
            "opencv-no-gstreamer",
            "warning",
            "it was built without GStreamer: csi: and gst: sources do not work",
            _cure_no_gstreamer(survey),
        )


def read_build(text: str) -> dict[str, str]:
    """`cv2.getBuildInformation()` -> what stands there of FFmpeg, GStreamer, V4L2 and windows.

    Older versions write "v4l/v4l2: YES", newer ones "GTK+: YES (ver 3.24)" below "GUI: GTK3".
    """
    labels = {
        "FFmpeg": r"FFMPEG",
        "GStreamer": r"GStreamer",
        "V4L2": r"v4l/v4l2|libv4l/libv4l2",
        "windows": r"GUI",
    }
    found = {}
    for name, label in labels.items():
        match = re.search(rf"^[ \t]*(?:{label}):[ \t]*(\S*)", text, re.MULTILINE)
        found[name] = match[1] if match else "NO"
    if not found["windows"]:  # OpenCV 4.5 and before: an empty head above the kinds
        kinds = re.findall(
            r"^[ \t]*(?:GTK\+?|QT\d?|Cocoa|Win32 UI):[ \t]*(\S+)", text, re.MULTILINE
        )
        found["windows"] = next((kind for kind in kinds if kind != "NO"), "NO")
    return found


def _cure_import(survey: Survey, answer: Answer) -> str:
    wheels = _find_wheels(survey.machine)
    if survey.jetson is None and wheels:
        return cure_for(answer, wheels[0].name)
    cure = cure_for(answer, "python3-opencv", is_of_system=True)
    if not wheels:
        return cure
    return f"pip uninstall -y {' '.join(each.name for each in wheels)}; {SYSTEMS_OPENCV}"


def _cure_no_gstreamer(survey: Survey) -> str:
    names = " ".join(each.name for each in _find_wheels(survey.machine))
    if not names:
        return "sudo apt install --reinstall python3-opencv, or build it with WITH_GSTREAMER=ON"
    return f"pip uninstall -y {names}; {SYSTEMS_OPENCV}"


def _find_wheels(machine: Machine) -> list[Package]:
    return find_owners(machine, FAMILY.module, *FAMILY.names)
