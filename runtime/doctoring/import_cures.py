"""Why a package does not import: what the loader says, and what to do about it."""

from __future__ import annotations

import re

from runtime.doctoring.probing import Answer
from runtime.doctoring.wheels import TAKEN

# What is said -> the cure; {package} is what pip or apt calls it, {reinstall} and {upgrade} are
# commands. The first that fits is taken.
_CURES = (
    (
        r"libGL\.so\.1",
        "sudo apt install libgl1{or_headless}",
    ),
    (
        r"libgthread-2\.0|libglib-2\.0",
        "sudo apt install libglib2.0-0 (newer systems: libglib2.0-0t64)",
    ),
    (r"lib(SM|Xext|Xrender|X11|xcb)\b", "sudo apt install libsm6 libxext6 libxrender1"),
    (
        r"_ARRAY_API not found|multiarray failed to import|compiled using NumPy 1"
        r"|numpy\.dtype size changed|numpy\.ndarray size changed|ABI version",
        "it was built for another NumPy: {upgrade}",
    ),
    (
        r"version [`'\"]?(GLIBC|GLIBCXX|CXXABI)_[\d.]+[`'\"]? not found",
        "the wheel needs a newer system: install an older {package}, or upgrade the system",
    ),
    (
        r"static TLS block",
        "set LD_PRELOAD to the library that is named there, before Python starts",
    ),
    (
        r"invalid ELF header|wrong ELF class|file too short|Exec format error|read file data",
        "the file is damaged or of another processor: {reinstall}",
    ),
    (
        r"libcu(dnn|blas|dart|fft|rand)\w*\.so|libnv(infer|rtc|onnxparser)\w*\.so",
        "a CUDA library is missing: {reinstall} brings those it needs; "
        "a system's own comes with CUDA and cuDNN from apt",
    ),
    (
        r"undefined symbol",
        "parts of different versions lie together: {reinstall}",
    ),
    (
        r"cannot open shared object file",
        "a library is missing: {reinstall}, or install what is named there with apt",
    ),
    (
        r"SIGILL",
        "this wheel uses instructions that the processor lacks: install an older or the system's "
        "own {package} (Jetson: export OPENBLAS_CORETYPE=ARMV8)",
    ),
    (
        r"No module named|has no attribute|cannot import name",
        "parts of it are missing: {reinstall}",
    ),
)
_GENERAL = "{reinstall}; then look again"


def cure_for(answer: Answer, package: str, *, is_of_system: bool = False) -> str:
    """What to do where a package did not import.

    Args:
        answer: of the probe that imported it.
        package: what pip calls it; apt, where it is the system's.
        is_of_system: no wheel of pip may take its place.
    """
    words = {
        "package": package,
        "reinstall": f"pip install --force-reinstall {package}",
        "upgrade": f"pip install --upgrade {package}",
        "or_headless": ", or opencv-python-headless in place of opencv-python",
    }
    if is_of_system:
        words |= {
            "reinstall": f"sudo apt install --reinstall {package}",
            "upgrade": "it is the system's, so take a NumPy as it expects: pip install "
            f"'numpy{TAKEN['numpy'].split(',')[0]},<2'",
            "or_headless": "",
        }
    for pattern, cure in _CURES:
        if re.search(pattern, answer.fault):
            return cure.format(**words)
    return _GENERAL.format(**words)
