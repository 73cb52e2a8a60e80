"""OpenCV: which of its wheels, whether it imports, and what it was built with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from runtime.doctoring.distributions import Package
from runtime.doctoring.findings import Finding
from runtime.doctoring.import_cures import cure_for
from runtime.doctoring.survey import Survey
from runtime.doctoring.wheels import TAKEN, Family, check_family, check_version

_SUBJECT = "OpenCV"


def _choose(packages: Sequence[Package]) -> str:
    """The one with the most in it of those that were there; headless where one was."""
    names = [each.name for each in packages]
    contrib = "-contrib" if any("contrib" in name for name in names) else ""
    headless = "-headless" if any("headless" in name for name in names) else ""
    return f"'opencv{contrib}-python{headless}{TAKEN['cv2']}'"


FAMILY = Family(_SUBJECT, "opencv", "cv2", (r"opencv(-.+)?-python(-.+)?",), _choose)


def check_wheels(survey: Survey) -> Iterator[Finding]:
    """Several in one environment, files that are gone, versions."""
    yield from check_family(survey.machine, FAMILY)


def check_build(survey: Survey) -> Iterator[Finding]:
    """Import it and read its build information: GStreamer, FFmpeg, windows."""
    if survey.machine.finds_module("cv2") is None:
        yield Finding(
            _SUBJECT,
            "opencv-none",
            "error",
            "not installed; preparing and drawing frames needs it",
            f"pip install 'opencv-python-headless{TAKEN['cv2']}' "
            "(Jetson: sudo apt install python3-opencv, and an environment that sees it)",
        )
        return
    answer = survey.ask("opencv")
    if answer.fault:
        yield Finding(
            _SUBJECT,
            "opencv-broken",
            "error",
            f"it does not import: {answer.fault}",
            cure_for(answer, _package_name(survey)),
        )
        return
    data = answer.data
    parts = read_build(data["build"])
    has = [name for name, value in parts.items() if value not in ("NO", "NONE", "")]
    lacks = [name for name in parts if name not in has]
    without = f"; without {', '.join(lacks)}" if lacks else ""
    text = f"{data['version']} with {', '.join(has) or 'nothing'}{without} ({data['file']})"
    yield Finding(_SUBJECT, "opencv", "ok", text)
    if not _package_name(survey, none=""):  # no wheel, so nobody has looked at its version
        yield from check_version(
            _SUBJECT, "opencv", "cv2", data["version"], "opencv-python-headless"
        )
    if "FFmpeg" in lacks and survey.machine.finds_module("av") is None:
        yield Finding(
            _SUBJECT,
            "opencv-no-ffmpeg",
            "error",
            "it was built without FFmpeg, and PyAV is not there: no video can be read or written",
            "pip install 'kestrel-vision[video]' (PyAV), or opencv-python-headless of pip",
        )
    if "GStreamer" in lacks and survey.jetson is not None:
        yield Finding(
            _SUBJECT,
            "opencv-no-gstreamer",
            "warning",
            "it was built without GStreamer: csi: and gst: sources do not work",
            "use the system's OpenCV: pip uninstall opencv-python-headless, and an environment "
            "with --system-site-packages",
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


def _package_name(survey: Survey, none: str = "opencv-python-headless") -> str:
    from runtime.doctoring.distributions import find_owners

    owners = find_owners(survey.machine, FAMILY.module, *FAMILY.names)
    return owners[0].name if owners else none
