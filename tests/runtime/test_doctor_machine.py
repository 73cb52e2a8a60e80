"""Faults of the machine, planted as the kernel's files show them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from planted import EPYC_FLAGS, STRANGER, Planted, codes, only

from runtime.doctoring import power, processor, storage, system
from runtime.doctoring.machine import Machine, User
from runtime.doctoring.survey import Survey

ROOT = Path(__file__).resolve().parents[2]
CPU = "/sys/devices/system/cpu"
A_DAY_IN_2000_S = 946_771_200.0
A_DAY_IN_2026_S = 1_790_000_000.0


# -------------------------------------------------------------------------- clock, screen, system


def test_clock_without_a_battery_is_found(planted: Planted):
    found = only(list(system.check_clock(Survey(planted.machine(now_s=A_DAY_IN_2000_S)))))
    assert found.level == "error"
    assert "2000-01-02" in found.found
    assert "timedatectl" in found.cure
    assert not codes(list(system.check_clock(Survey(planted.machine(now_s=A_DAY_IN_2026_S)))))


@pytest.mark.parametrize(
    ("display", "socket", "code"),
    [("", "", "screen-none"), (":1", "", "screen-not-there"), (":1", "X1", None),
     ("far:10.0", "", None)],
    ids=["none", "no server", "local", "over ssh"],
)  # fmt: skip
def test_screen_is_looked_for(planted: Planted, display: str, socket: str, code: str | None):
    if socket:
        planted.file(f"/tmp/.X11-unix/{socket}")
    planted.environ["DISPLAY"] = display
    assert list(codes(list(system.check_screen(Survey(planted.machine()))))) == (
        [code] if code else []
    )


def test_32_bit_processor_is_found(planted: Planted):
    found = only(list(system.check_platform(Survey(planted.machine(architecture="armv7l")))))
    assert found.code == "system-architecture"
    assert "64-bit" in found.cure


# -------------------------------------------------------------------------------------- processor


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (EPYC_FLAGS, set()),
        ("sse2 avx avx2", {"cpu-no-vnni"}),
        ("sse2", {"cpu-no-avx2", "cpu-no-vnni"}),
        ("fp asimd asimdhp asimddp i8mm bf16", set()),
        ("fp asimd", {"cpu-no-dot-product"}),
        ("", set()),
    ],
    ids=["epyc", "avx2 alone", "no avx2", "orin", "raspberry pi 4", "unlisted"],
)
def test_processor_is_judged_by_its_flags(planted: Planted, flags: str, expected: set[str]):
    planted.intel(flags)
    assert set(codes(list(processor.check_instructions(Survey(planted.machine()))))) == expected


def plant_cgroup(planted: Planted, version: str) -> None:
    planted.file("/proc/self/status", "Name:\tpython\nCpus_allowed_list:\t0-3,8-11\n")
    if version == "v2":
        planted.file("/proc/self/cgroup", "0::/system.slice/kestrel.service\n")
        planted.file("/sys/fs/cgroup/system.slice/cpu.max", "150000 100000")
        planted.file("/sys/fs/cgroup/system.slice/kestrel.service/cpu.max", "max 100000")
    else:
        planted.file("/proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/docker/abc\n0::/\n")
        planted.file("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000")
        planted.file("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_limit_of_a_cgroup_is_found(planted: Planted, version: str):
    plant_cgroup(planted, version)
    found = only(list(processor.check_share(Survey(planted.machine()))))
    assert "grants 1.5 of 8 processors" in found.found
    assert "--cpus" in found.cure


def test_processors_without_a_limit_are_counted(planted: Planted):
    planted.file("/proc/self/status", "Cpus_allowed_list:\t0-3\n")
    (found,) = processor.check_share(Survey(planted.machine()))
    assert (found.level, found.found) == ("ok", "4 processors for this process")


# ------------------------------------------------------------------------------------------ power


def plant_clock(planted: Planted, governor: str, driver: str, top_khz: int = 3_000_000) -> None:
    for index in range(2):
        folder = f"{CPU}/cpu{index}/cpufreq"
        planted.file(f"{folder}/scaling_governor", governor)
        planted.file(f"{folder}/scaling_driver", driver)
        planted.file(f"{folder}/scaling_max_freq", str(top_khz))
        planted.file(f"{folder}/cpuinfo_max_freq", "3000000")


@pytest.mark.parametrize(
    ("governor", "driver", "expected"),
    [
        ("powersave", "acpi-cpufreq", {"governor-slow"}),
        ("powersave", "intel_pstate", set()),
        ("performance", "acpi-cpufreq", set()),
    ],
)
def test_slow_governor_is_found_where_it_is_slow(
    planted: Planted, governor: str, driver: str, expected: set[str]
):
    plant_clock(planted, governor, driver)
    found = codes(list(power.check_governor(Survey(planted.machine()))))
    assert set(found) == expected
    assert all("performance" in each.cure for each in found.values())


def test_clock_that_is_held_down_is_found(planted: Planted):
    plant_clock(planted, "schedutil", "cpufreq-dt", 1_500_000)
    found = only(list(power.check_governor(Survey(planted.machine()))))
    assert "2 of 2 processors are held at 1.50 GHz; they can do 3.00 GHz" in found.found


def test_power_saving_platform_profile_is_found(planted: Planted):
    planted.file("/sys/firmware/acpi/platform_profile", "low-power\n")
    found = only(list(power.check_governor(Survey(planted.machine()))))
    assert found.cure == "powerprofilesctl set performance"


def plant_zone(planted: Planted, celsius: float, trip_c: float = 95) -> None:
    folder = "/sys/class/thermal/thermal_zone0"
    planted.file(f"{folder}/type", "cpu-thermal\n")
    planted.file(f"{folder}/temp", f"{celsius * 1000:.0f}\n")
    planted.file(f"{folder}/trip_point_0_type", "active\n")
    planted.file(f"{folder}/trip_point_0_temp", "40000\n")
    planted.file(f"{folder}/trip_point_1_type", "passive\n")
    planted.file(f"{folder}/trip_point_1_temp", f"{trip_c * 1000:.0f}\n")


def test_heat_is_found_by_the_zones_own_trip_point(planted: Planted):
    plant_zone(planted, 93)
    found = only(list(power.check_temperature(Survey(planted.machine()))))
    assert "cpu-thermal is at 93 C; from 95 C on it is slowed down" in found.found
    assert "fan" in found.cure
    plant_zone(planted, 60)
    assert not codes(list(power.check_temperature(Survey(planted.machine()))))


def test_cooling_that_slows_the_processor_down_is_found(planted: Planted):
    plant_zone(planted, 60)
    planted.file("/sys/class/thermal/cooling_device0/type", "cpufreq-cpu0\n")
    planted.file("/sys/class/thermal/cooling_device0/cur_state", "3\n")
    planted.file("/sys/class/thermal/cooling_device1/type", "pwm-fan\n")
    planted.file("/sys/class/thermal/cooling_device1/cur_state", "3\n")
    found = only(list(power.check_temperature(Survey(planted.machine()))))
    assert found.code == "throttled"
    assert "pwm-fan" not in found.found


def test_weak_supply_of_a_raspberry_pi_is_found(planted: Planted):
    planted.file("/sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
    found = only(list(power.check_supply(Survey(planted.machine()))))
    assert found.code == "under-voltage"
    assert "power supply" in found.cure


@pytest.mark.parametrize(
    ("mask", "says"),
    [("0x0000000000000040", "heat"), ("0x0000000000000004", "power limit"),
     ("0x0000000000000001", "")],
    ids=["thermal", "power cap", "idle"],
)  # fmt: skip
def test_throttled_gpu_is_found_by_nvidia_smi(planted: Planted, mask: str, says: str):
    planted.program("nvidia-smi", f'case "$1" in *clocks_event*) echo "RTX 4090, 91, {mask}";; '
                    "*) echo 'Field is not a valid field'; exit 2;; esac")  # fmt: skip
    found = codes(list(power.check_gpu_clocks(Survey(planted.machine()))))
    assert set(found) == ({"gpu-throttled"} if says else set())
    assert all(says in each.found for each in found.values())


def test_nvidia_smi_that_hangs_is_found(planted: Planted):
    planted.program("nvidia-smi", "while :; do /bin/sleep 1; done")
    found = only(list(power.check_gpu_clocks(Survey(planted.machine(limit_s=0.5)))))
    assert found.code == "nvidia-smi-hangs"


# ----------------------------------------------------------------------------------- memory, disk


def plant_memory(planted: Planted, free_mib: int, swap_mib: int = 0) -> None:
    planted.file(
        "/proc/meminfo",
        f"MemTotal:  7864320 kB\nMemFree: 1 kB\nMemAvailable:  {free_mib << 10} kB\n"
        f"SwapTotal: {swap_mib << 10} kB\n",
    )


def test_little_memory_is_found(planted: Planted):
    plant_memory(planted, 300)
    assert only(list(storage.check_memory(Survey(planted.machine())))).code == "memory-low"


def test_memory_limit_of_a_container_counts(planted: Planted):
    plant_memory(planted, 7000)
    planted.file("/sys/fs/cgroup/memory.max", str(2 << 30))
    planted.file("/sys/fs/cgroup/memory.current", str(int(1.5 * (1 << 30))))
    found = only(list(storage.check_memory(Survey(planted.machine()))))
    assert "0.5 GiB of 2.0 GiB free" in found.found
    assert "container" in found.cure


def test_jetson_without_swap_is_told_before_it_builds(planted: Planted):
    planted.jetson()
    plant_memory(planted, 6000)
    found = only(list(storage.check_memory(Survey(planted.machine()))))
    assert found.code == "memory-build"
    assert "swapon" in found.cure


def test_read_only_cache_of_engines_is_found(planted: Planted):
    planted.home.chmod(0o555)
    found = only(list(storage.check_engine_cache(Survey(planted.machine()))))
    assert found.code == "engine-cache-read-only"
    assert "XDG_CACHE_HOME" in found.cure
    planted.home.chmod(0o777)
    assert not codes(list(storage.check_engine_cache(Survey(planted.machine()))))


# ------------------------------------------------------------------------------------ who may what

ASK = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from runtime.doctoring.machine import User
os.setgroups([])
os.setgid(4242)
os.setuid(4242)
print([User.of_process().may(Path(each), os.R_OK | os.W_OK) for each in sys.argv[1:]])
"""


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can be someone else")
def test_permissions_of_a_user_are_those_that_the_kernel_grants(tmp_path: Path):
    modes = (0o666, 0o664, 0o660, 0o600, 0o000)
    paths = []
    for index, mode in enumerate(modes):
        path = Path("/tmp") / f"kestrel-doctor-{os.getpid()}-{index}"
        path.touch()
        path.chmod(mode)
        paths.append(path)
    try:
        os.chown(paths[2], -1, 4242)
        code = ASK.format(root=str(ROOT))
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, paths)],
            capture_output=True,
            text=True,
            check=True,
        )
        ours = [STRANGER.may(path, os.R_OK | os.W_OK) for path in paths]
        assert done.stdout.strip() == str(ours) == str([True, False, True, False, False])
    finally:
        for path in paths:
            path.unlink()


def test_user_of_this_process_is_asked_of_the_kernel(tmp_path: Path):
    assert User.of_process().may(tmp_path, os.R_OK | os.W_OK)
    assert not User.of_process().may(tmp_path / "none", os.R_OK)
    assert Machine().user.is_own
