"""What a measurement was taken on: the machine, the libraries and the bundle."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure.process import MIB

ROOT = Path(__file__).resolve().parents[2]
CPU_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8",
    "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
LIBRARIES = (
    "numpy", "opencv-python-headless", "opencv-python", "onnxruntime", "onnxruntime-gpu",
    "openvino", "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "cuda-bindings", "av",
)  # fmt: skip
IDLE_LOAD = 0.2  # share of the processors that others may use before it is worth a word
LONGEST_ANSWER_S = 10.0


def describe_machine() -> dict[str, Any]:
    """Processor, memory, system, GPUs, and how busy it was; what cannot be read is None."""
    cpu = _read_cpu()
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    cores = os.cpu_count() or 1
    return {
        "device": _read_line(Path("/proc/device-tree/model")),
        "cpu": cpu["model"],
        "cpu_flags": cpu["flags"],
        "cores": cores,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        "memory_mib": _read_memory_mib(),
        "architecture": platform.machine(),
        "system": platform.platform(),
        "governor": _read_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "is_virtual": "hypervisor" in cpu["all_flags"],
        "gpus": _read_gpus(),
        "load_average": None if load is None else [round(value, 2) for value in load],
        "is_shared": load is not None and load[0] > IDLE_LOAD * cores,
    }


def describe_libraries() -> dict[str, Any]:
    """Versions of Python and of what the runtime may use, OpenCV's build, our commit."""
    import cv2

    versions: dict[str, Any] = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["opencv_build"] = _read_opencv_build()
    versions["opencv_threads"] = cv2.getNumThreads()
    versions["commit"] = _read_commit()
    return versions


def describe_bundle(predictor: Any, path: str) -> dict[str, Any]:
    """What ran: the bundle's name, hashes, scores and verdict; backend, device and precision."""
    from runtime.contract.bundle import Bundle

    manifest = predictor.manifest
    verdict = Bundle.open(path, allow_unverified=True).verdict(
        predictor.precision, predictor.backend
    )
    return {
        "path": path,
        "model": manifest.model,
        "variant": manifest.variant,
        "task": manifest.task,
        "num_classes": len(manifest.classes),
        "input_wh": [manifest.geometry.width, manifest.geometry.height],
        "backend": predictor.backend,
        "device": predictor.device,
        "precision": predictor.precision,
        "verdict": verdict,
        "scores": dict(manifest.scores),
        "sha256": {
            name: value
            for graph in manifest.graphs.values()
            for name, value in graph.sha256.items()
        },
        "version": manifest.version,
    }


def _read_cpu() -> dict[str, Any]:
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "all_flags": flags,
    }


def _read_memory_mib() -> int | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB)
    except (AttributeError, ValueError, OSError):
        return None


def _read_gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return [line.strip() for line in (_answer_of(query) or "").splitlines() if line.strip()]


def _read_opencv_build() -> dict[str, str]:
    """The lines of OpenCV's build information that bear on speed."""
    import cv2

    wanted = ("FFMPEG", "GStreamer", "Parallel framework", "Baseline", "Dispatched code generation")
    build: dict[str, str] = {}
    for line in cv2.getBuildInformation().splitlines():
        key, colon, value = line.strip().partition(":")
        if colon and key in wanted:
            build.setdefault(key, " ".join(value.split()))
    build["IPP"] = cv2.ipp.getIppVersion() if hasattr(cv2, "ipp") else ""
    return build


def _read_commit() -> str | None:
    commit = _answer_of(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    if not commit:
        return None
    changes = _answer_of(["git", "-C", str(ROOT), "status", "--porcelain", "-uno"])
    return commit.strip() + (" with changes" if changes else "")


def _answer_of(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST_ANSWER_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _read_line(path: Path) -> str | None:
    try:
        return path.read_text().strip("\0\n ") or None
    except (OSError, UnicodeDecodeError):
        return None
