"""Faults of NVIDIA's driver, CUDA's packages and Jetsons."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from planted import Planted, codes, give_to_video, only
from test_doctor_packages import ORT, plant_tensorrt

from runtime.doctoring import jetson, nvidia, onnx_runtime, power, tensorrt_flavours
from runtime.doctoring.survey import Survey

MODULE_580 = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\n"

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or os.name == "nt", reason="needs a C compiler for a fake libcuda"
)


# ----------------------------------------------------------------------------- there is no libcuda


def plant_card(planted: Planted) -> None:
    planted.file("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    planted.file("/sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="needs a machine without NVIDIA's driver")
class TestWithoutLibrary:
    def test_machine_without_a_card_is_fine(self, planted: Planted):
        assert not codes(list(nvidia.check_driver(Survey(planted.machine()))))

    def test_card_without_a_driver_is_found(self, planted: Planted):
        plant_card(planted)
        (planted.root / "sys/module/nouveau").mkdir(parents=True)
        found = only(list(nvidia.check_driver(Survey(planted.machine()))))
        assert found.code == "driver-missing"
        assert "PCI 0000:01:00.0" in found.found
        assert "nouveau" in found.found
        assert "reboot" in found.cure

    def test_container_that_does_not_get_the_gpu_is_found(self, planted: Planted):
        planted.file("/proc/driver/nvidia/version", MODULE_580)
        planted.file("/.dockerenv")
        found = only(list(nvidia.check_driver(Survey(planted.machine()))))
        assert found.code == "driver-not-in-container"
        assert "--gpus all" in found.cure

    def test_library_that_is_missing_beside_the_module_is_found(self, planted: Planted):
        planted.file("/proc/driver/nvidia/version", MODULE_580)
        found = only(list(nvidia.check_driver(Survey(planted.machine()))))
        assert found.code == "driver-library-missing"

    def test_library_that_is_damaged_is_found(self, planted: Planted, tmp_path: Path):
        (tmp_path / "libcuda.so.1").write_bytes(b"\x7fELF")
        planted.environ["LD_LIBRARY_PATH"] = str(tmp_path)
        found = only(list(nvidia.check_driver(Survey(planted.machine()))))
        assert found.code == "driver-library-broken"
        assert "install the driver again" in found.cure


# ------------------------------------------------------------------------------------ it is there


@needs_compiler
def test_driver_that_works_names_its_gpu(driven: Planted):
    driven.file("/proc/driver/nvidia/version", MODULE_580)
    survey = Survey(driven.machine())
    (found,) = nvidia.check_driver(survey)
    assert found.level == "ok"
    assert found.found == "580.82.07, CUDA 13.0: Orin (sm_87)"


@needs_compiler
@pytest.mark.parametrize(
    ("status", "cure"),
    [("803", "reboot"), ("999", "nvidia_uvm"), ("100", "CUDA_VISIBLE_DEVICES"),
     ("804", "cuda-compat"), ("802", "fabricmanager"), ("46", "dmesg")],
)  # fmt: skip
def test_driver_that_does_not_start_is_cured_by_its_status(driven: Planted, status: str, cure: str):
    driven.environ["FAKE_STATUS"] = status
    survey = Survey(driven.machine())
    found = only(list(nvidia.check_driver(survey)))
    assert f"cuInit gave {status}" in found.found
    assert cure in found.cure
    assert survey.gpus == []


@needs_compiler
@pytest.mark.parametrize(
    ("how", "says"), [("FAKE_CRASH", "SIGABRT"), ("FAKE_HANG", "no answer within 2 s")]
)
def test_driver_that_crashes_or_hangs_is_a_finding(driven: Planted, how: str, says: str):
    driven.environ[how] = "1"
    found = only(list(nvidia.check_driver(Survey(driven.machine(limit_s=2.0)))))
    assert found.code == "driver-broken"
    assert says in found.found
    assert "reboot" in found.cure


def test_module_and_library_of_different_versions_are_found(planted: Planted):
    planted.file("/proc/driver/nvidia/version", MODULE_580)
    planted.file("/usr/lib/x86_64-linux-gnu/libcuda.so.1")
    planted.file("/usr/lib/x86_64-linux-gnu/libcuda.so.570.10.02")
    found = only(list(nvidia.check_driver_files(Survey(planted.machine()))))
    assert found.code == "driver-mismatch"
    assert "580.82.07" in found.found
    assert "570.10.02" in found.found
    assert found.cure.startswith("reboot")


def test_gpu_that_the_user_may_not_open_is_found(planted: Planted):
    node = planted.file("/dev/nvidia0")
    give_to_video(node)
    node.chmod(0o660)
    planted.file("/dev/nvidiactl").chmod(0o666)
    found = only(list(nvidia.check_driver_files(Survey(planted.machine()))))
    assert found.found == "this user may not open /dev/nvidia0"
    assert found.cure == f"sudo usermod -aG {node.group()} $USER, and log in again"
    node.chmod(0o600)  # the group has no right, so joining it opens nothing
    found = only(list(nvidia.check_driver_files(Survey(planted.machine()))))
    assert "usermod" not in found.cure
    assert "NVreg_DeviceFileMode" in found.cure


@needs_compiler
def test_cuda_that_is_newer_than_the_driver_is_found(driven: Planted):
    driven.environ["FAKE_CUDA"] = "12040"
    driven.wheel("cuda-bindings", "13.5.0", {"cuda/bindings/runtime.py": ""})
    driven.wheel("tensorrt-cu13", "11.4.0", {"tensorrt_cu13/__init__.py": ""})
    driven.wheel("tensorrt-rtx-cu12", "1.7.1", {"tensorrt_rtx_cu12/__init__.py": ""})
    findings = list(nvidia.check_cuda_packages(Survey(driven.machine())))
    found = {each.found.split()[0]: each for each in findings if each.level != "ok"}
    assert set(found) == {"cuda-bindings", "tensorrt-cu13"}
    assert "runs up to CUDA 12.4" in found["cuda-bindings"].found
    assert found["cuda-bindings"].cure == (
        "update the driver to 580 or later, or pip install 'cuda-bindings>=12.6,<13'"
    )
    assert found["tensorrt-cu13"].cure.endswith("pip install tensorrt-cu12")


@needs_compiler
def test_gpu_without_what_can_use_it_is_found(driven: Planted):
    driven.wheel("onnxruntime", "1.30.0", {"onnxruntime/__init__.py": ORT})
    survey = Survey(driven.machine())
    findings = [
        *nvidia.check_cuda_packages(survey),
        *tensorrt_flavours.check_flavours(survey),
        *onnx_runtime.check_providers(survey),
    ]
    assert set(codes(findings)) == {"cuda-python-missing", "tensorrt-none", "onnxruntime-no-cuda"}
    assert "cuda-python>=12.6,<14" in codes(findings)["cuda-python-missing"].cure


@needs_compiler
def test_gpu_older_than_tensorrt_builds_for_is_found(driven: Planted):
    driven.environ["FAKE_CAPABILITY"] = "61"
    plant_tensorrt(driven)
    found = only(list(tensorrt_flavours.check_flavours(Survey(driven.machine()))))
    assert found.code == "gpu-too-old"
    assert "onnxruntime-gpu" in found.cure


@needs_compiler
@pytest.mark.parametrize(
    ("capability", "cuda", "code"),
    [("87", "12060", None), ("121", "13020", None), ("61", "12060", "kernels-none")],
)
def test_gpu_that_our_kernels_are_not_made_for_is_found(
    driven: Planted, capability: str, cuda: str, code: str | None
):
    driven.environ |= {"FAKE_CAPABILITY": capability, "FAKE_CUDA": cuda}
    found = codes(list(nvidia.check_kernels(Survey(driven.machine()))))
    assert list(found) == ([code] if code else [])
    assert all("compute capability 7.5 or newer" in each.cure for each in found.values())


@needs_compiler
def test_cuda_provider_that_does_not_load_is_found(driven: Planted):
    code = ORT.replace('["CPU', '["CUDAExecutionProvider", "CPU')
    driven.wheel(
        "onnxruntime-gpu",
        "1.30.0",
        {
            "onnxruntime/__init__.py": code,
            "onnxruntime/capi/libonnxruntime_providers_shared.so": b"\x7fELF",
        },
    )
    found = codes(list(onnx_runtime.check_providers(Survey(driven.machine()))))
    assert "computes on the CPU" in found["onnxruntime-cuda-broken"].found
    assert "[cuda,cudnn]" in found["onnxruntime-cuda-broken"].cure


# ----------------------------------------------------------------------------------------- Jetsons


def test_old_jetpack_is_found(planted: Planted):
    planted.jetson("R35 (release), REVISION: 4.1")
    found = codes(list(jetson.check_jetson(Survey(planted.machine()))))["jetpack-old"]
    assert "NVIDIA Jetson Orin Nano, L4T 35.4.1: JetPack 5" in found.found
    assert "JetPack 6" in found.cure


def test_tensorrt_of_jetpack_that_the_environment_does_not_see_is_found(planted: Planted):
    planted.jetson()
    place = planted.file("/usr/lib/python3.10/dist-packages/tensorrt/__init__.py").parents[1]
    planted.file("/usr/lib/python3.10/dist-packages/cv2.cpython-310-aarch64-linux-gnu.so")
    found = codes(list(jetson.check_jetson(Survey(planted.machine()))))
    assert set(found) == {"tensorrt-unseen", "cv2-unseen"}
    assert all("--system-site-packages" in each.cure for each in found.values())
    machine = planted.machine()
    machine.python_path = [*machine.python_path, str(place)]
    assert "tensorrt-unseen" not in codes(list(jetson.check_jetson(Survey(machine))))


def test_wheels_in_the_place_of_jetpacks_own_are_found(planted: Planted):
    planted.jetson()
    system = planted.file("/usr/lib/python3.10/dist-packages/cv2/__init__.py").parents[1]
    planted.wheel("opencv-python-headless", "4.10.0.84", {"cv2/__init__.py": ""})
    plant_tensorrt(planted, "11.4.0")
    machine = planted.machine()
    machine.python_path = [*machine.python_path, str(system)]
    found = codes(list(jetson.check_jetson(Survey(machine))))
    assert set(found) == {"opencv-replaced", "tensorrt-not-for-jetpack"}
    assert "GStreamer" in found["opencv-replaced"].found


def test_slow_power_mode_of_a_jetson_is_found(planted: Planted):
    planted.jetson()
    planted.file(
        "/etc/nvpmodel.conf",
        "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    )
    planted.file("/var/lib/nvpmodel/status", "pmode:0000 fmode:quiet\n")
    planted.file("/sys/class/devfreq/17000000.gpu/min_freq", "306000000\n")
    planted.file("/sys/class/devfreq/17000000.gpu/max_freq", "1020000000\n")
    found = codes(list(power.check_jetson_power(Survey(planted.machine()))))
    assert found["jetson-power-mode"].cure == "sudo nvpmodel -m 2"
    assert "jetson_clocks" in found["jetson-clocks"].cure


def test_camera_service_that_has_stopped_is_found(planted: Planted):
    planted.jetson()
    planted.file("/usr/sbin/nvargus-daemon")
    survey = Survey(planted.machine())
    assert "argus-stopped" in codes(list(jetson.check_jetson(survey)))
    planted.file("/proc/77/comm", "nvargus-daemon\n")
    assert "argus-stopped" not in codes(list(jetson.check_jetson(survey)))
