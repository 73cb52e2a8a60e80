"""What this processor computes in, by the flags that Linux lists, and what follows from that.

Measured in OpenVINO 2026.4, milliseconds a frame; on the EPYC processor time of one thread:

| processor | network | float32 | bf16 | int8 | int8, rest bf16 |
|---|---|---|---|---|---|
| amx_bf16, avx512_vnni (Xeon) | ResNet-50 features and heads, 550x550 | 326 | 50 | 30 | 32 |
| avx512_bf16, avx512_vnni, no AMX (EPYC) | RetinaNet small, 512x288 | 43 | 23 | 14.4 | 14.0 |
| the same | RetinaNet r50, 640x384 | 1066 | 533 | 405 | 313 |
| avx512_vnni alone (the Xeon, masked) | ResNet-50 features and heads, 320x320 | 132 | 584 | 27 | |

So bf16 is worth it with either instruction set, and without both it is emulated, four times slower
than float32. Under int8 it gains where heads end in float32, as exports leave them; where they do
not (first row) it costs little. x86 without VNNI adds 8-bit products in pairs in 16 bits, which
overflow: the outputs of an int8 network fell from 28 to 39 dB over the error to 17 to 22 there.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from runtime.contract.bundle import Bundle

log = logging.getLogger("kestrel.runtime")

_CPU_INFO = Path("/proc/cpuinfo")
BF16 = {"amx_bf16", "avx512_bf16"}
VNNI = {"avx512_vnni", "avx_vnni"}
_IS_X86 = "sse2"
_WITH_INT8 = ("int8", "mixed")
_FLOATS = ("fp32", "fp16")


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The processor's flags, such as "avx512_vnni"; empty where the system does not list them."""
    return read_flags(_CPU_INFO)


def read_flags(cpu_info: Path) -> frozenset[str]:
    """As `cpu_flags`, of a file such as /proc/cpuinfo."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    pairs = (line.partition(":") for line in lines)
    listed = (value for key, _, value in pairs if key.strip() in ("flags", "Features"))
    return frozenset(next(listed, "").split())


def is_bf16_fast() -> bool:
    """Whether bf16 is computed in hardware; False where that is not known."""
    return bool(BF16 & cpu_flags())


def is_int8_exact() -> bool:
    """Whether sums of 8-bit products cannot overflow on the way; True where that is not known."""
    return _IS_X86 not in cpu_flags() or bool(VNNI & cpu_flags())


def sound_precision(bundle: Bundle, precision: str) -> str:
    """The precision to load on this CPU: int8 gives way to float where its sums would overflow."""
    if precision not in _WITH_INT8 or is_int8_exact():
        return precision
    have = bundle.manifest.precisions
    chosen = next((each for each in _FLOATS if each in have), precision)
    cure = f"running {chosen} instead" if chosen != precision else "the bundle has nothing else"
    log.warning(
        "%s: this CPU has no VNNI, so %s sums overflow and detections are lost; %s",
        bundle.name, precision, cure,
    )  # fmt: skip
    return chosen
