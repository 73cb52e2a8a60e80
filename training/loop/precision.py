"""Which mixed precision a machine trains fastest in."""

from __future__ import annotations

from pathlib import Path

import torch


def choose_precision(asked: str) -> str:
    """The name that accelerate has for a precision: "bf16", "fp16" or "no".

    "auto" is bf16 on GPUs and CPUs that compute in it, fp16 on other GPUs, else float32.
    """
    if asked != "auto":
        return "no" if asked == "fp32" else asked
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    cpu_info = Path("/proc/cpuinfo")
    flags = cpu_info.read_text(encoding="utf-8") if cpu_info.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "no"
