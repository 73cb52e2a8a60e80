"""All checks, each on its own: one that fails or hangs is a finding, and the others go on."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from runtime.doctoring import (
    backends,
    cameras,
    jetson,
    nvidia,
    onnx_runtime,
    opencv,
    openvino_devices,
    power,
    processor,
    storage,
    system,
    tensorrt_flavours,
    video_codecs,
)
from runtime.doctoring.findings import Finding
from runtime.doctoring.installing import is_externally_managed, name_pip
from runtime.doctoring.survey import Survey

Check: TypeAlias = Callable[[Survey], Iterable[Finding]]


def _with_numpy(module: str, name: str) -> Check:
    """A check whose code needs NumPy, imported when it runs; left out where NumPy is broken."""

    def check(survey: Survey) -> Iterator[Finding]:
        if survey.ask("import", "numpy").fault:  # a NumPy that crashes would end this process, too
            yield Finding(
                "Doctor",
                "check-without-numpy",
                "note",
                f"{module}.{name} needs NumPy, which does not import, and was left out",
                "cure NumPy first, then run the doctor again",
            )
            return
        place = importlib.import_module(f"runtime.doctoring.{module}")
        yield from getattr(place, name)(survey)

    check.__module__, check.__name__ = f"runtime.doctoring.{module}", name
    return check


# In the order in which they are shown.
CHECKS: tuple[Check, ...] = (
    system.check_platform,
    jetson.check_jetson,
    system.check_python,
    system.check_clock,
    system.check_screen,
    system.check_extras,
    _with_numpy("processor", "check_instructions"),
    processor.check_share,
    power.check_governor,
    power.check_jetson_power,
    power.check_temperature,
    power.check_supply,
    power.check_gpu_clocks,
    storage.check_memory,
    _with_numpy("storage", "check_disk"),
    _with_numpy("storage", "check_engine_cache"),
    nvidia.check_driver,
    nvidia.check_driver_files,
    nvidia.check_cuda_packages,
    _with_numpy("nvidia", "check_kernels"),
    tensorrt_flavours.check_parts,
    tensorrt_flavours.check_flavours,
    onnx_runtime.check_wheels,
    onnx_runtime.check_providers,
    openvino_devices.check_openvino,
    opencv.check_wheels,
    opencv.check_build,
    video_codecs.check_pyav,
    video_codecs.check_hardware,
    cameras.check_cameras,
    backends.check_backends,
    _with_numpy("bundles", "check_bundles"),
    _with_numpy("engine_files", "check_engines"),
)
_LONGEST_CHECK_S = 300.0  # several child processes at their limits, or large bundles to hash


def examine(
    survey: Survey, checks: Sequence[Check] = CHECKS, *, limit_s: float = _LONGEST_CHECK_S
) -> list[Finding]:
    """Run checks, one after the other.

    Args:
        survey: the machine and the bundles.
        checks: which.
        limit_s: for each; one that takes longer (a network folder that is away) is left behind.
    """
    is_managed = is_externally_managed()
    return [
        name_pip(finding, sys.executable, is_managed=is_managed)
        for check in checks
        for finding in _run_guarded(check, survey, limit_s)
    ]


def _run_guarded(check: Check, survey: Survey, limit_s: float) -> list[Finding]:
    findings: list[Finding] = []

    def run() -> None:
        try:
            for finding in check(survey):
                findings.append(finding)
        except Exception as error:
            findings.append(_own_fault(check, f"{type(error).__name__}: {error}"))

    worker = threading.Thread(target=run, name=check.__name__, daemon=True)
    worker.start()
    worker.join(limit_s)
    if not worker.is_alive():
        return findings
    return [*findings, _own_fault(check, f"no end within {limit_s:g} s", is_silent=True)]


def _own_fault(check: Check, what: str, *, is_silent: bool = False) -> Finding:
    place = f"{check.__module__.rsplit('.', 1)[-1]}.{check.__name__}"
    return Finding(
        "Doctor",
        "check-silent" if is_silent else "check-failed",
        "error",
        f"{place} did not finish: {' '.join(what.split())}",
        "is a disk or network folder away? look at df and dmesg"
        if is_silent
        else "this is a fault of the doctor: please report this line",
    )
