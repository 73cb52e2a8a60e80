"""A Jetson: its JetPack, and whether Python sees the TensorRT and OpenCV that came with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtime.doctoring.distributions import find_packages, version_key
from runtime.doctoring.findings import Finding
from runtime.doctoring.survey import Jetson, Survey

_SUBJECT = "Jetson"
_FIRST_MAJOR = 36  # L4T of JetPack 6, the first with TensorRT 10.3
_LAST_WITHOUT_TENSORRT_11 = 36
_SEE_SYSTEM = (
    "let the environment see the system's packages: python3 -m venv --system-site-packages .venv"
)


def check_jetson(survey: Survey) -> Iterator[Finding]:
    """L4T's release, and packages of pip that hide or replace JetPack's."""
    jetson = survey.jetson
    if jetson is None:
        return
    release = f"{jetson.name}, L4T {jetson.major}.{jetson.minor}"
    if jetson.major < _FIRST_MAJOR:
        yield Finding(
            _SUBJECT,
            "jetpack-old",
            "error",
            f"{release}: JetPack {jetson.jetpack or 'of before 6'} has no TensorRT 10.3 or newer",
            "install JetPack 6 or 7 (Orin and later), or run on the CPU: --backend openvino",
        )
    else:
        text = f"{release}, JetPack {jetson.jetpack or 'of a version that is not known here'}"
        yield Finding(_SUBJECT, "jetpack", "ok", text)
    yield from _find_unseen(survey)
    yield from _find_replaced(survey, jetson)
    yield from _check_camera_service(survey)


def _find_unseen(survey: Survey) -> Iterator[Finding]:
    """The system has it and this Python does not see it."""
    known = set(survey.machine.python_path)
    for module, what in (("tensorrt", "TensorRT"), ("cv2", "OpenCV")):
        if survey.machine.finds_module(module) is not None:
            continue
        places = [each for each in _system_places(survey, module) if str(each.parent) not in known]
        if places:
            yield Finding(
                what,
                f"{module}-unseen",
                "error",
                f"{what} of JetPack lies in {places[0]}, and this Python does not look there",
                _SEE_SYSTEM,
            )
        elif module == "tensorrt":
            yield Finding(
                what,
                "tensorrt-not-installed",
                "error",
                "JetPack's TensorRT is not installed",
                "sudo apt install tensorrt python3-libnvinfer",
            )


def _find_replaced(survey: Survey, jetson: Jetson) -> Iterator[Finding]:
    """Wheels of pip in the place of what JetPack brings."""
    machine = survey.machine
    for package in find_packages(machine, r"tensorrt(-cu\d+)?"):
        is_eleven = version_key(package.version)[:1] >= (11,)
        if is_eleven and jetson.major <= _LAST_WITHOUT_TENSORRT_11:
            yield Finding(
                "TensorRT",
                "tensorrt-not-for-jetpack",
                "error",
                f"{package} does not run on JetPack {jetson.jetpack}, which has TensorRT 10.3",
                f"pip uninstall -y {package.name}; {_SEE_SYSTEM}",
            )
    for package in find_packages(machine, r"opencv(-contrib)?-python(-headless)?"):
        if package.owns("cv2") and _system_places(survey, "cv2"):
            yield Finding(
                "OpenCV",
                "opencv-replaced",
                "warning",
                f"{package} hides the system's OpenCV with GStreamer: csi: and gst: do not work",
                f"pip uninstall -y {package.name}; {_SEE_SYSTEM}",
            )


def _check_camera_service(survey: Survey) -> Iterator[Finding]:
    machine = survey.machine
    if not machine.path("/usr/sbin/nvargus-daemon").exists() or machine.is_in_container:
        return
    if any(machine.read(path) == "nvargus-daemon" for path in machine.glob("/proc/[0-9]*/comm")):
        return
    yield Finding(
        "Cameras",
        "argus-stopped",
        "warning",
        "nvargus-daemon does not run: csi: cameras give nothing",
        "sudo systemctl restart nvargus-daemon",
    )


def _system_places(survey: Survey, module: str) -> list[Path]:
    machine = survey.machine
    pattern = f"/usr/lib/python3*/dist-packages/{module}"
    return machine.glob(pattern) + machine.glob(f"{pattern}.*.so")
