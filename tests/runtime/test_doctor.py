"""The doctor as a whole: its words, its statuses, and that no check harms another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from calling import call
from planted import Planted
from tiny_bundle import write_tiny_bundle

from runtime import doctor
from runtime.doctoring.examination import CHECKS, examine
from runtime.doctoring.findings import LEVELS, Finding, to_json, to_table
from runtime.doctoring.survey import Survey

ROOT = Path(__file__).resolve().parents[2]
FINE = Finding("OpenCV", "opencv", "ok", "4.10.0")
WORTH_A_NOTE = Finding("Screen", "screen-none", "note", "no screen", "use --mjpeg")
BAD = Finding("Power", "hot", "warning", "hot", "give it air")
NOISE = "max\0 \u2603 0:x,: 99999999999999999999\nflags : \nCpus_allowed_list:\t1-,-\n0::\x1b[2J"
WORSE = Finding("Clock", "clock-wrong", "error", "1970", "sudo timedatectl set-ntp true")


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


RUN_BY_PATH = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    names = ("torch", "cv2", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "av", "cuda")
    print("imported:", [name for name in names if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess:
    """One run on this machine, in a folder and a home that were empty."""
    place = tmp_path_factory.mktemp("doctor")
    bundle = write_tiny_bundle(place / "tiny")
    (place / "home").mkdir()
    before = tree(place)
    script = [str(ROOT / "runtime/doctor.py"), "--json", "--bundle", str(bundle)]
    done = subprocess.run(
        [sys.executable, "-B", "-c", RUN_BY_PATH, *script],
        cwd=place,
        env={**os.environ, "HOME": str(place / "home"), "XDG_CACHE_HOME": ""},
        capture_output=True,
        text=True,
    )
    assert tree(place) == before, "something was written"
    return done


def test_doctor_looks_at_this_machine_and_writes_nothing_but_one_object(whole):
    report = json.loads(whole.stdout)
    assert whole.returncode == (report["worst"] == "error")
    subjects = {each["subject"] for each in report["findings"]}
    assert subjects >= {
        "System", "Python", "NumPy", "Clock", "Processor", "Memory", "Disk", "NVIDIA driver",
        "TensorRT", "ONNX Runtime", "OpenVINO", "OpenCV", "Bundle tiny",
    }  # fmt: skip
    assert "Doctor" not in subjects


def test_json_has_the_fields_that_it_promises(whole):
    report = json.loads(whole.stdout)
    assert set(report) == {"schema", "worst", "counts", "findings"}
    assert report["schema"] == 1
    assert list(report["counts"]) == ["error", "warning", "note", "ok"]
    assert sum(report["counts"].values()) == len(report["findings"])
    for each in report["findings"]:
        assert set(each) == {"subject", "code", "level", "found", "cure"}
        assert each["level"] in LEVELS
        assert (each["cure"] == "") == (each["level"] == "ok"), each


def test_doctor_never_imports_a_library_into_its_own_process(whole):
    assert whole.stderr == "imported: []\n"


@pytest.mark.parametrize(
    ("findings", "options", "status"),
    [
        ([FINE, WORTH_A_NOTE], [], 0),
        ([FINE, BAD], [], 0),
        ([FINE, BAD], ["--strict"], 1),
        ([FINE, WORTH_A_NOTE], ["--strict"], 0),
        ([WORSE, FINE], [], 1),
    ],
    ids=["note", "warning", "strict warning", "strict note", "error"],
)
def test_exit_status_tells_the_worst(monkeypatch, findings, options, status: int):
    monkeypatch.setattr(doctor, "examine", lambda survey: findings)
    monkeypatch.setattr(sys, "argv", ["doctor.py", *options])
    assert doctor.main() == status


def test_path_that_is_not_there_is_bad_input(tmp_path: Path):
    done = call("runtime.doctor", "--bundle", tmp_path / "none")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "none does not exist" in done.stderr
    assert done.stderr.count("\n") == 1


def test_table_shows_each_finding_with_its_cure_and_counts_them():
    long = Finding("OpenCV", "opencv-broken", "error", "word " * 60, "pip install " + "x" * 120)
    text = to_table([FINE, WORTH_A_NOTE, BAD, long], width=80)
    lines = text.splitlines()
    assert lines[0] == "ok       OpenCV  4.10.0"
    assert lines[1].startswith("note     Screen  no screen")
    assert lines[2].strip() == "-> use --mjpeg"
    assert lines[-1] == "1 error, 1 warning, 1 note, 1 ok"
    assert all(len(line) <= 80 for line in lines if "->" not in line)
    assert lines[-3].endswith(f"-> {long.cure}"), "a command is copied from one line"


def test_table_and_json_of_nothing():
    assert to_table([]).strip() == "0 errors, 0 warnings, 0 notes, 0 ok"
    assert to_json([])["worst"] == "ok"


def test_finding_without_a_cure_cannot_be_made():
    with pytest.raises(AssertionError):
        Finding("Clock", "clock-wrong", "error", "1970")


def test_names_of_devices_cannot_command_a_terminal():
    found = Finding("Cameras", "camera", "ok", "/dev/video0 (\x1b[2J\x07HD\nWebcam\u202e)").found
    assert found == "/dev/video0 ( [2J HD Webcam )"


def fail(survey: Survey) -> Iterator[Finding]:
    yield BAD
    raise RuntimeError("two\nlines")


def hang(survey: Survey) -> Iterator[Finding]:
    threading.Event().wait()
    yield BAD


def succeed(survey: Survey) -> Iterator[Finding]:
    yield FINE


def test_check_that_fails_is_a_finding_and_the_others_go_on(tmp_path: Path):
    survey = Survey(Planted(tmp_path).machine())
    found = examine(survey, [fail, succeed])
    assert (found[0], found[2]) == (BAD, FINE)
    assert found[1].code == "check-failed"
    assert "fail did not finish: RuntimeError: two lines" in found[1].found


def test_check_that_hangs_is_left_behind(tmp_path: Path):
    survey = Survey(Planted(tmp_path).machine())
    found = examine(survey, [hang, succeed], limit_s=0.1)
    assert [each.code for each in found] == ["check-silent", "opencv"]


def test_bare_machine_is_looked_at_without_a_fault_of_the_doctors_own(tmp_path: Path):
    """No /proc, no /sys, no packages: there is nothing to read."""
    findings = examine(Survey(Planted(tmp_path).machine(), [tmp_path / "root"]))
    assert not [each for each in findings if each.subject == "Doctor"]
    assert {"opencv-none", "onnxruntime-none", "openvino-none"} <= {each.code for each in findings}


def test_files_full_of_noise_are_looked_at_without_a_fault_of_the_doctors_own(tmp_path: Path):
    planted = Planted(tmp_path)
    for path in (
        "/proc/cpuinfo", "/proc/meminfo", "/proc/self/status", "/proc/self/cgroup",
        "/proc/driver/nvidia/version", "/etc/os-release", "/etc/nv_tegra_release",
        "/etc/nvpmodel.conf", "/var/lib/nvpmodel/status", "/sys/fs/cgroup/cpu.max",
        "/sys/fs/cgroup/memory.max", "/sys/class/thermal/thermal_zone0/temp",
        "/sys/class/thermal/cooling_device0/type", "/sys/class/thermal/cooling_device0/cur_state",
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        "/sys/devices/platform/soc/soc:firmware/get_throttled",
        "/sys/class/video4linux/video0/name", "/sys/bus/pci/devices/0/vendor",
    ):  # fmt: skip
        planted.file(
            path, "max\0 \u2603 0:x,: 99999999999999999999\nflags : \nCpus_allowed_list:\tx-\n0::"
        )
    planted.program("nvidia-smi", "echo '0x, 0xzz, 0x'")
    findings = examine(Survey(planted.machine()))
    assert not [each for each in findings if each.subject == "Doctor"]


def test_every_check_stands_in_the_table_of_checks():
    import runtime.doctoring as package

    folder = Path(package.__file__).parent
    written = {
        f"{path.stem}.{line.split('(')[0].removeprefix('def ')}"
        for path in folder.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def check_") and "survey: Survey) ->" in line
    }
    assert written == {f"{each.__module__.split('.')[-1]}.{each.__name__}" for each in CHECKS}
