"""What is asked of libraries, each function in a child process of its own (`probing.py`).

A function takes and gives what JSON holds, and lets exceptions through: their text is the finding.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from runtime.doctoring.probing import MARK

_COMPUTE_CAPABILITY = (75, 76)  # CUdevice_attribute: major, minor
_LONGEST_FAULT = 600


def answer(probe: str, arguments: Sequence[Any]) -> None:
    """Run the function of this module named `probe` and write what it gives."""
    _leave_no_core()
    document: dict[str, Any] = {"data": {}, "fault": "", "kind": ""}
    try:
        document["data"] = globals()[f"probe_{probe}"](*arguments)
    except Exception as error:
        document["fault"] = " ".join(str(error).split())[:_LONGEST_FAULT] or "no reason given"
        document["kind"] = type(error).__name__
    sys.stdout.flush()
    os.write(1, f"\n{MARK}{json.dumps(document)}\n".encode())
    os._exit(0)  # some libraries crash on their way out, which says nothing of their use


def probe_cuda_driver() -> dict[str, Any]:
    """The driver's library: status of cuInit, the CUDA version that it speaks, and its GPUs."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    driver = ctypes.CDLL(name)  # OSError where there is none
    found: dict[str, Any] = {"status": driver.cuInit(0), "version": 0, "devices": []}
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuDriverGetVersion(ctypes.byref(version)) == 0:
        found["version"] = version.value
    if found["status"] == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
        found["devices"] = [_describe_gpu(driver, index) for index in range(count.value)]
    return found


def probe_tensorrt(flavour: str) -> dict[str, Any]:
    """A TensorRT as our sessions load it: its version, or why it is refused."""
    from runtime.engines.flavour import load_flavour

    return {"version": load_flavour(flavour).version}


def probe_import(name: str) -> dict[str, Any]:
    """A module's version, by importing it."""
    import importlib

    return {"version": str(getattr(importlib.import_module(name), "__version__", ""))}


def probe_onnxruntime() -> dict[str, Any]:
    """Version, the providers of this build, and why CUDA's does not load, where it does not."""
    import onnxruntime

    providers = list(onnxruntime.get_available_providers())
    fault = ""
    if "CUDAExecutionProvider" in providers:
        fault = _why_provider_does_not_load(onnxruntime)
    return {"version": onnxruntime.__version__, "providers": providers, "cuda_fault": fault}


def probe_openvino() -> dict[str, Any]:
    """Version and devices with their full names."""
    import openvino

    core = openvino.Core()
    devices = {
        name: str(core.get_property(name, "FULL_DEVICE_NAME")) for name in core.available_devices
    }
    return {"version": openvino.get_version(), "devices": devices}


def probe_opencv() -> dict[str, Any]:
    """Version, where it lies, and how it was built."""
    import cv2

    return {
        "version": cv2.__version__,
        "file": str(cv2.__file__),
        "build": cv2.getBuildInformation(),
    }


def probe_pyav() -> dict[str, Any]:
    """Version, FFmpeg's libraries, and which of the codecs we know of are there."""
    import av
    from av.codec import Codec, codecs_available

    encoders = []
    for name in ("libx264", "h264_nvenc", "h264_v4l2m2m", "h264_vaapi", "libopenh264"):
        try:
            Codec(name, "w")
        except Exception:  # av.error.* and ValueError, by its version
            continue
        encoders.append(name)
    decoders = [name for name in ("h264", "hevc", "mjpeg", "av1") if name in codecs_available]
    return {"version": av.__version__, "encoders": encoders, "decoders": decoders}


def probe_camera(path: str) -> dict[str, Any]:
    """A V4L2 device by ioctl: card, whether it gives pictures, and its formats."""
    from runtime.doctoring.v4l2 import describe_device

    return describe_device(path)


def _describe_gpu(driver: ctypes.CDLL, index: int) -> dict[str, str]:
    device, number = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in _COMPUTE_CAPABILITY:
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(str(number.value))
    return {
        "name": name.value.decode("utf-8", "replace"),
        "compute_capability": ".".join(capability),
    }


def _why_provider_does_not_load(onnxruntime: Any) -> str:
    """ONNX Runtime itself says this in a log line, and computes on the CPU."""
    from pathlib import Path

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for name in ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"):
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return " ".join(str(error).split())[:_LONGEST_FAULT]
    return ""


def _leave_no_core() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
