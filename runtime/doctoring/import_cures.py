"""Why a package does not import: what the loader says, and what to do about it."""

from __future__ import annotations

import re

from runtime.doctoring.probing import Answer

# What is said -> the cure; {package} is what pip calls it, {library} the library that is missing.
# The first that fits is taken.
_CURES = (
    (
        r"libGL\.so\.1",
        "sudo apt install libgl1, or opencv-python-headless in place of opencv-python",
    ),
    (
        r"libgthread-2\.0|libglib-2\.0",
        "sudo apt install libglib2.0-0 (newer systems: libglib2.0-0t64)",
    ),
    (r"lib(SM|Xext|Xrender|X11|xcb)\b", "sudo apt install libsm6 libxext6 libxrender1"),
    (
        r"_ARRAY_API not found|multiarray failed to import|compiled using NumPy 1"
        r"|numpy\.dtype size changed|numpy\.ndarray size changed|ABI version",
        "it was built for another NumPy: pip install --upgrade {package}; of the system's own: "
        "pip install 'numpy<2'",
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
        "the file is damaged or of another processor: "
        "pip install --force-reinstall --no-cache-dir {package}",
    ),
    (
        r"libcu(dnn|blas|dart|fft|rand)\w*\.so|libnv(infer|rtc|onnxparser)\w*\.so",
        "a CUDA library is missing: pip install --force-reinstall {package} brings those it needs; "
        "a system's own comes with CUDA and cuDNN from apt",
    ),
    (
        r"undefined symbol",
        "parts of different versions lie together: pip install --force-reinstall {package}",
    ),
    (
        r"cannot open shared object file",
        "a library is missing: pip install --force-reinstall {package}, or install what is named "
        "there with apt",
    ),
    (
        r"SIGILL",
        "this wheel uses instructions that the processor lacks: install an older or the system's "
        "own {package} (Jetson: export OPENBLAS_CORETYPE=ARMV8)",
    ),
    (
        r"No module named|has no attribute|cannot import name",
        "parts of it are missing: pip install --force-reinstall {package}",
    ),
)
_GENERAL = "pip install --force-reinstall {package}; then look again"


def cure_for(answer: Answer, package: str) -> str:
    """What to do where a package did not import.

    Args:
        answer: of the probe that imported it.
        package: what pip calls it.
    """
    for pattern, cure in _CURES:
        if re.search(pattern, answer.fault):
            return cure.format(package=package)
    return _GENERAL.format(package=package)
