"""Governors, power modes, heat and throttling: why the same machine is slower today."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from runtime.doctoring.findings import Finding
from runtime.doctoring.machine import Machine
from runtime.doctoring.survey import Survey

_SUBJECT = "Power"
_NEAR_C = 5.0  # degrees below a trip point that are worth a word
_SLOWED_BY_DESIGN = ("powersave", "conservative")
_OWN_GOVERNORS = ("intel_pstate", "amd-pstate-epp")  # their powersave is dynamic
_PI_UNDER_VOLTAGE, _PI_THROTTLED = 0x1 | 0x10000, 0x4 | 0x40000
# Bits of nvmlClocksEventReasons -> what slows the GPU, and the cure.
_GPU_REASONS = (
    (0x08, "its hardware (HW slowdown)", "look at its heat, its power cables and the supply"),
    (0x40 | 0x20, "heat", "clean its fan and filters, give it air, or lower its power limit"),
    (0x80, "its power supply (power brake)", "check its power cables and the supply"),
    (0x04, "its power limit", "sudo nvidia-smi -pl WATTS raises it, up to what the card allows"),
    (0x02, "clocks that someone has set", "sudo nvidia-smi -rac; sudo nvidia-smi -rgc"),
)
_GPU_HARDWARE = 0x08  # set along with 0x40 or 0x80, which say more
_GPU_IDLE = 0x01  # nothing to do: then clocks are low for good reason
_SMI_LIMIT_S = 30.0  # without the persistence daemon it starts every GPU first
_GPU_FIELDS = (
    "clocks_throttle_reasons.active",
    "clocks_event_reasons.active",
)  # before and after 535


def check_governor(survey: Survey) -> Iterator[Finding]:
    """Clocks of the processor."""
    machine = survey.machine
    folders = [
        path.parent
        for path in machine.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    ]
    slow = [
        each
        for each in folders
        if machine.read(each / "scaling_governor") in _SLOWED_BY_DESIGN
        and machine.read(each / "scaling_driver") not in _OWN_GOVERNORS
    ]
    if slow:
        governor = machine.read(slow[0] / "scaling_governor")
        yield Finding(
            _SUBJECT,
            "governor-slow",
            "warning",
            f"{len(slow)} of {len(folders)} processors have the governor {governor!r}: they stay "
            "at low clocks, or rise late",
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        )
    capped = [each for each in folders if _is_capped(machine, each)]
    if capped:
        top = machine.read_number(capped[0] / "scaling_max_freq") or 0
        most = machine.read_number(capped[0] / "cpuinfo_max_freq") or 0
        yield Finding(
            _SUBJECT,
            "clock-capped",
            "warning",
            f"{len(capped)} of {len(folders)} processors are held at {top / 1e6:.2f} GHz; they can "
            f"do {most / 1e6:.2f} GHz",
            "raise scaling_max_freq (cpupower frequency-set -u), or the power mode",
        )
    if folders and not slow and not capped:
        yield Finding(
            _SUBJECT,
            "governor",
            "ok",
            f"governor {machine.read(folders[0] / 'scaling_governor')!r}",
        )
    if machine.read("/sys/firmware/acpi/platform_profile") in ("low-power", "quiet", "cool"):
        yield Finding(
            _SUBJECT,
            "platform-profile",
            "warning",
            f"the platform's profile is {machine.read('/sys/firmware/acpi/platform_profile')!r}",
            "powerprofilesctl set performance",
        )


def check_jetson_power(survey: Survey) -> Iterator[Finding]:
    """Nvpmodel's mode, and whether the GPU's clock may fall."""
    machine = survey.machine
    if survey.jetson is None:
        return
    modes = dict(
        re.findall(
            r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", machine.read("/etc/nvpmodel.conf")
        )
    )
    status = re.search(r"pmode:0*(\d+)", machine.read("/var/lib/nvpmodel/status"))
    mode = modes.get(status[1], f"number {status[1]}") if status else ""
    best = next((number for number, name in modes.items() if name.startswith("MAXN")), "")
    if mode and best and not mode.startswith("MAXN"):
        yield Finding(
            _SUBJECT,
            "jetson-power-mode",
            "warning",
            f"nvpmodel's mode is {mode}; {modes[best]} is the fastest",
            f"sudo nvpmodel -m {best}",
        )
    elif mode:
        yield Finding(_SUBJECT, "jetson-power-mode", "ok", f"nvpmodel's mode is {mode}")
    for folder in machine.glob("/sys/class/devfreq/*gpu*") + machine.glob(
        "/sys/class/devfreq/*ga10b"
    ):
        low, high = (machine.read_number(folder / name) for name in ("min_freq", "max_freq"))
        if low and high and low < high:
            yield Finding(
                _SUBJECT,
                "jetson-clocks",
                "note",
                f"the GPU's clock may fall to {low / 1e6:.0f} of {high / 1e6:.0f} MHz between "
                "frames: first frames after a pause take longer",
                "sudo jetson_clocks holds it at the top (until the next start)",
            )
            break


def check_temperature(survey: Survey) -> Iterator[Finding]:
    """Thermal zones against their own trip points, and cooling that slows processors down."""
    machine = survey.machine
    hottest = None
    for zone in machine.glob("/sys/class/thermal/thermal_zone*"):
        found = machine.read_number(zone / "temp")
        if found is None or not 0 < found < 200_000:  # millidegrees; sensors that are off say 0
            continue
        celsius = found / 1000
        name = machine.read(zone / "type") or zone.name
        hottest = max(hottest or (celsius, name), (celsius, name))
        trip = _lowest_trip(machine, zone)
        if trip is not None and celsius >= trip - _NEAR_C:
            yield Finding(
                _SUBJECT,
                "hot",
                "warning",
                f"{name} is at {celsius:.0f} C; from {trip:.0f} C on it is slowed down",
                "clean and run the fan, give it air, or choose a lower power mode or frame rate",
            )
    slowed = [
        machine.read(each / "type")
        for each in machine.glob("/sys/class/thermal/cooling_device*")
        if re.search(r"cpu|gpu|processor|devfreq", machine.read(each / "type"), re.IGNORECASE)
        and (machine.read_number(each / "cur_state") or 0) > 0
    ]
    if slowed:
        yield Finding(
            _SUBJECT,
            "throttled",
            "warning",
            f"slowed down at this moment, for heat or power: {', '.join(slowed)}",
            "clean and run the fan, give it air, check the power supply",
        )
    if hottest is not None:
        yield Finding(_SUBJECT, "temperature", "ok", f"warmest: {hottest[1]}, {hottest[0]:.0f} C")


def check_supply(survey: Survey) -> Iterator[Finding]:
    """A Raspberry Pi's own account of low voltage and throttling."""
    machine = survey.machine
    text = machine.read("/sys/devices/platform/soc/soc:firmware/get_throttled")
    try:
        bits = int(text, 16)
    except ValueError:
        return
    if bits & _PI_UNDER_VOLTAGE:
        now = "is" if bits & 0x1 else "was, since the start,"
        yield Finding(
            _SUBJECT,
            "under-voltage",
            "warning",
            f"the supply {now} too weak: the processor slows down, and cameras drop out",
            "use the board's own power supply and a short cable; power USB devices by a hub",
        )
    elif bits & _PI_THROTTLED:
        yield Finding(
            _SUBJECT,
            "throttled",
            "warning",
            "the processor is, or was since the start, throttled",
            "give the board a heat sink and a fan",
        )


def check_gpu_clocks(survey: Survey) -> Iterator[Finding]:
    """Why an NVIDIA GPU runs below its clocks, as nvidia-smi says."""
    for field in _GPU_FIELDS:
        query = f"--query-gpu=name,temperature.gpu,{field}"
        ran = survey.machine.run(
            "nvidia-smi", query, "--format=csv,noheader,nounits", limit_s=_SMI_LIMIT_S
        )
        if ran is None:
            return
        if ran.status is None:
            yield Finding(
                _SUBJECT,
                "nvidia-smi-hangs",
                "warning",
                f"nvidia-smi gives no answer within {_SMI_LIMIT_S:g} s: it is slow, or hangs",
                "sudo nvidia-smi -pm 1 makes it faster; if it hangs: reboot; sudo dmesg | grep -i "
                "'nvrm\\|xid' says what happened",
            )
            return
        rows = re.findall(r"^(.+), *(\d+|\[?N/A\]?), *0x([\da-fA-F]+)$", ran.stdout, re.MULTILINE)
        if ran.status == 0 and rows:
            break
    else:
        return
    for name, celsius, mask in rows:
        warmth = f"{celsius} C" if celsius.isdigit() else "temperature unknown"
        reasons = list(_gpu_reasons(int(mask, 16)))
        for reason, cure in reasons:
            text = f"{name} ({warmth}) is slowed down by {reason}"
            yield Finding(_SUBJECT, "gpu-throttled", "warning", text, cure)
        if not reasons:
            yield Finding(_SUBJECT, "gpu-clocks", "ok", f"{name}: {warmth}, not slowed down")


def _gpu_reasons(bits: int) -> Iterator[tuple[str, str]]:
    if bits & _GPU_IDLE:
        return
    for mark, reason, cure in _GPU_REASONS:
        is_told = mark == _GPU_HARDWARE and bits & (0x40 | 0x80)
        if bits & mark and not is_told:
            yield reason, cure


def _is_capped(machine: Machine, folder: Path) -> bool:
    top = machine.read_number(folder / "scaling_max_freq")
    most = machine.read_number(folder / "cpuinfo_max_freq")
    return bool(top and most and top < 0.95 * most)


def _lowest_trip(machine: Machine, zone: Path) -> float | None:
    """Degrees from which the kernel slows things down."""
    trips = []
    for path in zone.glob("trip_point_*_type"):
        if machine.read(path) in ("passive", "hot", "critical"):
            found = machine.read_number(path.with_name(path.name.replace("_type", "_temp")))
            if found is not None and found > 0:
                trips.append(found / 1000)
    return min(trips) if trips else None
