"""Faults of installed packages, planted as pip and broken copies leave them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from planted import Planted, codes, only

from runtime.doctoring import (
    onnx_runtime,
    opencv,
    openvino_devices,
    system,
    tensorrt_flavours,
    video_codecs,
)
from runtime.doctoring.distributions import is_within, version_key
from runtime.doctoring.survey import Survey
from runtime.doctoring.wheels import TAKEN

ROOT = Path(__file__).resolve().parents[2]

ORT = """
__version__ = "1.30.0"
def get_available_providers():
    return ["CPUExecutionProvider"]
"""
CV2 = """
__version__ = "{version}"
def getBuildInformation():
    return BUILD
BUILD = '''{build}'''
"""
BUILD_OF_4_2 = """
General configuration for OpenCV 4.2.0 =====================================
  GUI:
    GTK+:                        YES (ver 3.24.18)
      GThread :                  YES (ver 2.64.2)
    VTK support:                 NO

  Video I/O:
    DC1394:                      YES (2.2.5)
    FFMPEG:                      NO
    GStreamer:                   YES (1.16.2)
    v4l/v4l2:                    YES (linux/videodev2.h)
"""
TENSORRT = """
__version__ = "{version}"
def _owner(*names):
    return type("Owner", (), dict.fromkeys(names))
Builder = _owner("create_network", "create_builder_config", "create_optimization_profile",
                 "build_serialized_network")
OnnxParser = _owner("parse_from_file", "num_errors", "get_error")
Runtime = _owner("deserialize_cuda_engine")
ICudaEngine = _owner("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype")
IExecutionContext = _owner({context})
BuilderFlag = _owner("TF32")
class ILogger:
    class Severity:
        INTERNAL_ERROR = ERROR = WARNING = 0
"""
CONTEXT = (
    '"set_tensor_address", "set_input_shape", "set_optimization_profile_async", "execute_async_v3"'
)


# ------------------------------------------------------------------------------------ ONNX Runtime


def plant_two_wheels(planted: Planted) -> None:
    common = {"onnxruntime/__init__.py": ORT, "onnxruntime/capi/__init__.py": ""}
    planted.wheel("onnxruntime-gpu", "1.30.0", {**common, "onnxruntime/capi/build.py": "gpu = 1"})
    planted.wheel("onnxruntime", "1.31.1", {**common, "onnxruntime/capi/build.py": "gpu = 0"})


def test_two_wheels_of_onnx_runtime_are_found_with_whose_files_are_there(planted: Planted):
    plant_two_wheels(planted)
    found = only(list(onnx_runtime.check_wheels(Survey(planted.machine()))))
    assert (found.code, found.level) == ("onnxruntime-two-wheels", "error")
    assert "3 of them; those on disk are of onnxruntime)" in found.found
    assert found.cure.startswith("pip uninstall -y onnxruntime")
    assert found.cure.endswith(" && pip install 'onnxruntime-gpu>=1.23,<1.32'")


def test_files_that_an_uninstalled_wheel_took_along_are_found(planted: Planted):
    plant_two_wheels(planted)
    shutil.rmtree(planted.site / "onnxruntime_gpu-1.30.0.dist-info")
    (planted.site / "onnxruntime/__init__.py").unlink()
    findings = codes(list(onnx_runtime.check_wheels(Survey(planted.machine()))))
    found = findings["onnxruntime-files-missing"]
    assert "onnxruntime/__init__.py" in found.found
    assert found.cure == "pip install --force-reinstall --no-deps onnxruntime==1.31.1"
    broken = only(list(onnx_runtime.check_providers(Survey(planted.machine()))))
    assert broken.code == "onnxruntime-broken"
    assert "reinstall" in broken.cure


def test_one_wheel_of_onnx_runtime_is_fine(planted: Planted):
    planted.wheel("onnxruntime", "1.30.0", {"onnxruntime/__init__.py": ORT})
    survey = Survey(planted.machine())
    assert not codes([*onnx_runtime.check_wheels(survey), *onnx_runtime.check_providers(survey)])
    assert survey.backends == {"onnxruntime": "1.30.0"}


@pytest.mark.parametrize(
    ("version", "says"), [("1.17.0", "older"), ("1.40.0", "newer")], ids=["old", "new"]
)
def test_version_outside_of_what_is_taken_is_found(planted: Planted, version: str, says: str):
    planted.wheel("onnxruntime", version, {"onnxruntime/__init__.py": ORT})
    found = only(list(onnx_runtime.check_wheels(Survey(planted.machine()))))
    assert (found.code, found.level) == ("onnxruntime-version", "warning")
    assert f"onnxruntime {version} is {says} than" in found.found
    assert found.cure == "pip install 'onnxruntime>=1.23,<1.32'"


def test_wheel_that_crashes_on_import_is_a_finding_and_no_crash(planted: Planted):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    planted.wheel("onnxruntime", "1.30.0", {"onnxruntime/__init__.py": code})
    found = only(list(onnx_runtime.check_providers(Survey(planted.machine()))))
    assert found.code == "onnxruntime-broken"
    assert "SIGILL" in found.found
    assert "instructions" in found.cure


def test_import_that_hangs_is_ended_at_its_limit(planted: Planted):
    code = "print('noise', flush=True)\nimport time\nwhile True: time.sleep(1)"
    planted.wheel("onnxruntime", "1.30.0", {"onnxruntime/__init__.py": code})
    found = only(list(onnx_runtime.check_providers(Survey(planted.machine(limit_s=1.0)))))
    assert "no answer within 1 s" in found.found


# --------------------------------------------------------------------------------- OpenVINO, PyAV


def test_openvino_without_its_cpu_plugin_is_found(planted: Planted):
    code = """
def get_version():
    return "2026.4.1-1234"
class Core:
    available_devices = []
"""
    planted.wheel("openvino", "2026.4.1", {"openvino/__init__.py": code})
    found = only(list(openvino_devices.check_openvino(Survey(planted.machine()))))
    assert (found.code, found.level) == ("openvino-no-cpu", "error")
    assert "reinstall openvino" in found.cure


def test_broken_library_of_a_package_is_found_by_the_loaders_words(planted: Planted):
    code = "import ctypes, pathlib\nctypes.CDLL(str(pathlib.Path(__file__).with_name('core.so')))"
    planted.wheel(
        "openvino", "2026.4.1", {"openvino/__init__.py": code, "openvino/core.so": b"\x7fELF" * 99}
    )
    found = only(list(openvino_devices.check_openvino(Survey(planted.machine()))))
    assert found.code == "openvino-broken"
    assert found.cure.startswith("the file is damaged or of another processor")


def test_pyav_without_h264_is_found(planted: Planted):
    codec = """
codecs_available = {"h264", "mjpeg"}
class Codec:
    def __init__(self, name, mode):
        if name != "h264_v4l2m2m":
            raise ValueError(name)
"""
    planted.wheel(
        "av", "14.2.0", {"av/__init__.py": "__version__ = '14.2.0'", "av/codec.py": codec}
    )
    found = only(list(video_codecs.check_pyav(Survey(planted.machine()))))
    assert found.code == "pyav-no-h264"
    assert "--only-binary av" in found.cure


# ------------------------------------------------------------------------------------------ OpenCV


def plant_opencv(planted: Planted, code: str, version: str = "4.10.0.84") -> None:
    planted.wheel("opencv-python", version, {"cv2/__init__.py": code})


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("libGL.so.1: cannot open shared object file: No such file or directory", "libgl1"),
        ("libgthread-2.0.so.0: cannot open shared object file", "libglib2.0"),
        ("numpy.core.multiarray failed to import", "another NumPy"),
        (
            "/lib/libc.so.6: version `GLIBC_2.38' not found (required by cv2.abi3.so)",
            "newer system",
        ),
        ("/x/libgomp.so.1: cannot allocate memory in static TLS block", "LD_PRELOAD"),
    ],
    ids=["libGL", "glib", "numpy", "glibc", "tls"],
)
def test_opencv_that_does_not_import_is_cured_by_what_the_loader_says(
    planted: Planted, said: str, cure: str
):
    plant_opencv(planted, f"raise ImportError({said!r})")
    found = only(list(opencv.check_build(Survey(planted.machine()))))
    assert (found.code, found.level) == ("opencv-broken", "error")
    assert said in found.found
    assert cure in found.cure


def test_two_wheels_of_opencv_are_found_and_the_fuller_headless_one_proposed(planted: Planted):
    for name in ("opencv-python-headless", "opencv-contrib-python"):
        planted.wheel(name, "4.10.0.84", {"cv2/__init__.py": f"name = {name!r}"})
    found = only(list(opencv.check_wheels(Survey(planted.machine()))))
    assert found.code == "opencv-two-wheels"
    assert found.cure.endswith("pip install 'opencv-contrib-python-headless>=4.8,<6'")


def test_opencv_in_two_folders_is_found(planted: Planted, tmp_path: Path):
    code = CV2.format(version="4.10.0", build=BUILD_OF_4_2)
    plant_opencv(planted, code)
    other = tmp_path / "dist-packages"
    planted.wheel("opencv-python-headless", "4.11.0.86", {"cv2/__init__.py": code}, site=other)
    machine = planted.machine()
    machine.python_path = [*machine.python_path, str(other)]
    found = only(list(opencv.check_wheels(Survey(machine))))
    assert found.code == "opencv-hidden"
    assert str(other) in found.found


def test_old_opencv_without_ffmpeg_is_found_in_its_build_information(planted: Planted):
    plant_opencv(planted, CV2.format(version="4.2.0", build=BUILD_OF_4_2), "4.2.0.34")
    survey = Survey(planted.machine())
    findings = [*opencv.check_wheels(survey), *opencv.check_build(survey)]
    assert set(codes(findings)) == {"opencv-version", "opencv-no-ffmpeg"}
    assert codes(findings)["opencv-no-ffmpeg"].cure == "pip install 'av>=14,<20'"
    text = next(each.found for each in findings if each.level == "ok")
    assert "4.2.0 with GStreamer, V4L2, windows; without FFmpeg" in text


def test_build_information_of_the_opencv_here_is_read_as_opencv_tells_itself():
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    parts = opencv.read_build(cv2.getBuildInformation())
    has_ffmpeg = "FFMPEG" in [
        cv2.videoio_registry.getBackendName(each) for each in cv2.videoio_registry.getBackends()
    ]
    assert (parts["FFmpeg"] == "YES") == has_ffmpeg


def test_no_opencv_is_an_error(planted: Planted):
    assert only(list(opencv.check_build(Survey(planted.machine())))).code == "opencv-none"


# ---------------------------------------------------------------------------------------- TensorRT


def plant_tensorrt(planted: Planted, version: str = "10.7.0", context: str = CONTEXT) -> None:
    code = TENSORRT.format(version=version, context=context)
    planted.wheel("tensorrt", version, {"tensorrt/__init__.py": code})


def test_tensorrt_8_is_refused_as_a_session_would(planted: Planted):
    plant_tensorrt(planted, "8.5.2", '"set_binding_shape"')
    found = only(list(tensorrt_flavours.check_flavours(Survey(planted.machine()))))
    assert (found.code, found.level) == ("tensorrt-broken", "error")
    assert "8.5.2 has no IExecutionContext.set_tensor_address" in found.found
    assert "tensorrt>=10.3,<11.5" in found.cure


def test_tensorrt_newer_than_tested_is_a_warning(planted: Planted):
    plant_tensorrt(planted, "12.0.1")
    found = only(list(tensorrt_flavours.check_flavours(Survey(planted.machine()))))
    assert (found.code, found.level) == ("tensorrt-version", "warning")


def test_missing_library_of_tensorrt_is_found(planted: Planted):
    code = "import ctypes\nctypes.CDLL('libnvinfer.so.10')"
    planted.wheel("tensorrt", "10.7.0", {"tensorrt/__init__.py": code})
    found = only(list(tensorrt_flavours.check_flavours(Survey(planted.machine()))))
    assert "libnvinfer.so.10" in found.found
    assert "CUDA library is missing" in found.cure


def test_parts_of_tensorrt_of_different_versions_are_found(planted: Planted):
    planted.wheel("tensorrt", "10.7.0", {"tensorrt/__init__.py": ""})
    planted.wheel("tensorrt-cu12", "10.7.0", {"tensorrt_cu12/__init__.py": ""})
    planted.wheel("tensorrt-cu12-libs", "10.3.0", {"tensorrt_libs/__init__.py": ""})
    found = only(list(tensorrt_flavours.check_parts(Survey(planted.machine()))))
    assert found.code == "tensorrt-mixed-versions"
    assert "tensorrt-cu12-libs 10.3.0" in found.found
    assert found.cure.endswith("pip install tensorrt==10.7.0")


def test_tensorrt_for_two_cudas_at_once_is_found(planted: Planted):
    for cuda in ("cu12", "cu13"):
        planted.wheel(f"tensorrt-rtx-{cuda}", "1.7.1", {f"tensorrt_rtx_{cuda}/__init__.py": ""})
    found = only(list(tensorrt_flavours.check_parts(Survey(planted.machine()))))
    assert found.code == "tensorrt-two-cudas"
    assert "pip uninstall -y" in found.cure


# ------------------------------------------------------------------------------------------ others


def test_numpy_that_does_not_import_is_found(planted: Planted):
    (planted.site / "numpy").unlink()
    planted.wheel("numpy", "2.4.0", {"numpy/__init__.py": "import numpy._core._nothing"})
    found = codes(list(system.check_python(Survey(planted.machine()))))["numpy-broken"]
    assert "reinstall 'numpy>=1.26,<2.6'" in found.cure


def test_versions_that_are_taken_are_those_of_the_project():
    text = (ROOT / "pyproject.toml").read_text()
    modules = {
        "cv2": "opencv-python-headless",
        "cuda": "cuda-python",
        "tensorrt_rtx": "tensorrt-rtx",
        "paho": "paho-mqtt",
    }
    for module, bounds in TAKEN.items():
        name = modules.get(module, module)
        assert re.findall(rf'"{name}([<>=][^";]*)', text), name
        assert set(re.findall(rf'"{name}([<>=][^";]*)', text)) == {bounds}, name


@pytest.mark.parametrize(
    ("version", "is_inside"),
    [("1.23", True), ("1.23.0", True), ("1.22.9", False), ("1.31.1", True), ("1.32.0", False),
     ("1.32.0rc1", False), ("2.0+cu12", False)],
)  # fmt: skip
def test_bounds_are_judged_as_pip_does(version: str, is_inside: bool):
    assert is_within(version, ">=1.23,<1.32") == is_inside
    packaging = pytest.importorskip("packaging.specifiers", reason="needs packaging to compare")
    specifiers = packaging.SpecifierSet(">=1.23,<1.32")
    if "rc" not in version:  # pip leaves out releases to come, which we need not
        assert specifiers.contains(version) == is_inside


def test_version_key_reads_numbers_alone():
    assert version_key("v4.8.0-dev") == (4, 8, 0)
    assert version_key("unknown") == ()
