"""Whether an NVIDIA GPU is there, asked of the driver before anything heavy is imported."""

from __future__ import annotations

import ctypes
import functools
import sys


@functools.cache
def why_no_gpu() -> str:
    """Empty where the driver shows an NVIDIA GPU, else why not, for people."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver ({library}) on this machine"
    status = driver.cuInit(0)
    if status != 0:
        return f"the NVIDIA driver does not start (cuInit gave {status})"
    count = ctypes.c_int(0)
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value < 1:
        return "the NVIDIA driver shows no GPU"
    return ""
