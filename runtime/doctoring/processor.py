"""The processor: what it computes in, and how much of it this process gets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from runtime.doctoring.cgroups import find_folders
from runtime.doctoring.findings import Finding
from runtime.doctoring.machine import Machine
from runtime.doctoring.survey import Survey

_X86_MARK = "sse2"
_ARM_DOT, _ARM_MATRIX = "asimddp", "i8mm"


def check_instructions(survey: Survey) -> Iterator[Finding]:
    """Instruction sets that networks gain from (figures: `runtime/sessions/cpu_flags.py`)."""
    flags = survey.cpu_flags
    name = _name(survey.machine)
    if not flags:
        yield Finding("Processor", "cpu-unknown", "ok", f"{name}: its flags are not listed here")
    elif _X86_MARK in flags:
        yield from _judge_x86(name, flags)
    else:
        yield from _judge_arm(name, flags)


def check_share(survey: Survey) -> Iterator[Finding]:
    """How many processors this process may use, against how many libraries see."""
    machine = survey.machine
    allowed = _count_allowed(machine)
    quota = _cgroup_quota(machine)
    if quota is None or quota >= allowed:
        yield Finding("Processor", "cpu-share", "ok", f"{_cpus(allowed)} for this process")
        return
    yield Finding(
        "Processor",
        "cpu-quota",
        "warning",
        f"a cgroup grants {quota:.3g} of {allowed} processors; libraries start a thread for each "
        "of those, and are stopped when the share is used up",
        "raise the limit (docker run --cpus, CPUQuota= of the unit), or bind the process to so "
        "many processors: taskset -c 0-N, docker run --cpuset-cpus",
    )


def _judge_x86(name: str, flags: frozenset[str]) -> Iterator[Finding]:
    from runtime.sessions.cpu_flags import BF16, VNNI  # needs NumPy

    has = [each for each in ("avx2", "avx512f", *sorted(VNNI), *sorted(BF16)) if each in flags]
    has += [each for each in ("amx_int8",) if each in flags]
    if "avx2" not in flags:
        yield Finding(
            "Processor",
            "cpu-no-avx2",
            "warning",
            f"{name} has no AVX2: networks run several times slower",
            "in a virtual machine pass the host's processor on (CPU type host); else use a "
            "processor of 2013 or later, or a GPU",
        )
    if not VNNI & flags:
        yield Finding(
            "Processor",
            "cpu-no-vnni",
            "note",
            f"{name} has no VNNI: sums of int8 products overflow, so int8 and mixed give way to "
            "float32",
            "nothing to do: fp32 is taken by itself; do not measure int8 here",
        )
    if "avx2" in flags and VNNI & flags:
        bf16 = "; --inference-precision auto takes bf16" if BF16 & flags else ""
        yield Finding("Processor", "cpu", "ok", f"{name}: {', '.join(has)}{bf16}")


def _judge_arm(name: str, flags: frozenset[str]) -> Iterator[Finding]:
    has = [
        each for each in ("asimd", "asimdhp", _ARM_DOT, _ARM_MATRIX, "bf16", "sve") if each in flags
    ]
    if _ARM_DOT in flags:
        yield Finding("Processor", "cpu", "ok", f"{name}: {', '.join(has)}")
        return
    yield Finding(
        "Processor",
        "cpu-no-dot-product",
        "note",
        f"{name} has no dot products of int8 (asimddp): int8 is hardly faster than float32",
        "measure before you choose int8: python benchmarks/latency.py",
    )


def _name(machine: Machine) -> str:
    text = machine.read("/proc/cpuinfo")
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else f"this {machine.architecture} processor"


def _count_allowed(machine: Machine) -> int:
    """Processors that the scheduler may give this process."""
    status = machine.read("/proc/self/status")
    match = re.search(r"^Cpus_allowed_list:\s*([\d,-]+)$", status, re.MULTILINE)
    if match is None:
        return os.cpu_count() or 1
    count = 0
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", match[1]):
        count += int(last or first) - int(first) + 1
    return count


def _cgroup_quota(machine: Machine) -> float | None:
    """The smallest share that a cgroup around this process grants, in processors; None: any."""
    new, old = find_folders(machine, "cpu")
    quotas = [_read_v2(machine, folder) for folder in new]
    quotas += [_read_v1(machine, folder) for folder in old]
    return min((each for each in quotas if each is not None), default=None)


def _read_v2(machine: Machine, folder: str) -> float | None:
    quota, _, period = machine.read(f"{folder}/cpu.max").partition(" ")
    return _share(_number(quota), _number(period))


def _read_v1(machine: Machine, folder: str) -> float | None:
    quota = machine.read_number(f"{folder}/cpu.cfs_quota_us")
    return _share(quota, machine.read_number(f"{folder}/cpu.cfs_period_us"))


def _share(quota: int | None, period: int | None) -> float | None:
    """Both in microseconds; a quota below 0 or "max" is none."""
    return quota / period if quota and period and quota > 0 and period > 0 else None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _cpus(count: int) -> str:
    return f"{count} processor{'' if count == 1 else 's'}"
