"""Cures that can be followed, and odd files that harm no other check."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from planted import Planted, codes, only
from test_doctor_bundles import look_at_engines, plant_engine
from test_doctor_packages import BUILD_OF_4_2, CV2, ORT
from tiny_bundle import write_tiny_bundle

from runtime.doctoring import backends, jetson, onnx_runtime, opencv, power, processor, storage
from runtime.doctoring import system as system_checks
from runtime.doctoring.distributions import find_packages
from runtime.doctoring.examination import examine
from runtime.doctoring.findings import Finding
from runtime.doctoring.installing import name_pip
from runtime.doctoring.survey import FLAVOURS, Gpu, Survey
from runtime.engines.cache import read_record, user_cache_folder
from runtime.engines.fingerprint import Device
from runtime.engines.flavour import FLAVOUR_NAMES

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
FAULT = "libopenblas.so.0: cannot open shared object file: No such file or directory"


def run_doctor(*, options: tuple[str, ...] = (), **environ: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "runtime/doctor.py"), *options],
        env={**os.environ, **environ},
        capture_output=True,
    )


# ------------------------------------------------------------------------------- NumPy and OpenCV


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize(
    ("code", "says"),
    [
        (f"raise ImportError({FAULT!r})", "libopenblas"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
        ("raise ModuleNotFoundError(\"No module named 'numpy'\")", "No module named"),
    ],
    ids=["poisoned", "crashes", "absent"],
)
def test_numpy_that_does_not_import_leaves_a_report(tmp_path: Path, code: str, says: str):
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy/__init__.py").write_text(code)
    bundle = write_tiny_bundle(tmp_path / "tiny")
    options = ("--json", "--bundle", str(bundle))
    done = run_doctor(options=options, PYTHONPATH=str(tmp_path))
    assert done.stderr == b""
    assert done.returncode == 1
    found = [Finding(**each) for each in json.loads(done.stdout)["findings"]]
    assert says in codes(found)["numpy-broken"].found
    skipped = [each.found.split()[0] for each in found if each.code == "check-without-numpy"]
    assert {"bundles.check_bundles", "engine_files.check_engines"} <= set(skipped)
    assert "check-failed" not in codes(found)


def plant_system_opencv(planted: Planted, version: str = "4.5.4") -> None:
    code = CV2.format(version=version, build=BUILD_OF_4_2.replace("FFMPEG:   ", "FFMPEG: YES"))
    (planted.site / "cv2").mkdir()
    (planted.site / "cv2/__init__.py").write_text(code)


@pytest.mark.parametrize(
    ("has_system_opencv", "bounds"), [(True, ">=1.26,<2"), (False, ">=1.26,<2.6")]
)
def test_numpy_is_kept_at_the_major_version_of_the_systems_opencv(
    planted: Planted, has_system_opencv: bool, bounds: str
):
    (planted.site / "numpy").unlink()
    planted.wheel("numpy", "1.21.5", {"numpy/__init__.py": "__version__ = '1.21.5'"})
    if has_system_opencv:
        plant_system_opencv(planted)
    found = codes(list(system_checks.check_python(Survey(planted.machine()))))["numpy-version"]
    assert found.cure == f"pip install 'numpy{bounds}'"


@pytest.mark.parametrize("is_jetson", [True, False])
def test_opencv_of_the_system_is_kept(planted: Planted, is_jetson: bool):
    if is_jetson:
        planted.jetson()
    plant_system_opencv(planted)
    found = only(list(opencv.check_build(Survey(planted.machine()))))
    assert (found.code, found.level) == ("opencv-version", "note")
    assert "pip install" not in found.cure


def test_no_wheel_of_opencv_is_advised_on_a_jetson(planted: Planted):
    planted.jetson()
    survey = Survey(planted.machine())
    assert "pip install" not in only(list(opencv.check_build(survey))).cure
    for name in ("opencv-python-headless", "opencv-contrib-python"):
        planted.wheel(name, "4.5.0.1", {"cv2/__init__.py": "raise ImportError('libGL.so.1')"})
    survey = Survey(planted.machine())
    found = codes([*opencv.check_wheels(survey), *opencv.check_build(survey)])
    assert {"opencv-two-wheels", "opencv-version", "opencv-broken"} <= set(found)
    assert not [each for each in found.values() if "pip install" in each.cure]


# ------------------------------------------------------------------------------------ what to type


def test_machine_without_any_backend_is_an_error(planted: Planted):
    found = only(list(backends.check_backends(Survey(planted.machine()))))
    assert (found.code, found.level) == ("backend-none", "error")
    assert found.cure == "pip install 'onnxruntime>=1.23,<1.32' 'openvino>=2025.3,<2027'"
    planted.wheel("onnxruntime", "1.30.0", {"onnxruntime/__init__.py": ORT})
    assert not codes(list(backends.check_backends(Survey(planted.machine()))))


def test_cures_name_the_pip_of_this_python_and_packages_that_there_are(planted: Planted):
    found = examine(Survey(planted.machine()))
    cures = [each.cure for each in found if "pip install" in each.cure]
    assert cures
    for cure in cures:
        assert "kestrel-vision" not in cure
        assert "-m pip install" in cure
        assert " pip install" not in cure.replace("-m pip install", "")


def test_pip_of_a_python_that_the_system_manages_is_that_of_an_environment():
    cure = "pip uninstall -y a && pip install 'b>=1'"
    finding = Finding("OpenCV", "opencv-two-wheels", "error", "two", cure)
    named = name_pip(finding, "/opt/a b/python", is_managed=False).cure
    assert shlex.split(named)[:3] == ["/opt/a b/python", "-m", "pip"]
    inside = name_pip(finding, "/usr/bin/python3", is_managed=True).cure
    assert "/usr/bin/python3 -m venv" in inside
    assert inside.endswith(
        ".venv/bin/python -m pip uninstall -y a && .venv/bin/python -m pip install 'b>=1'"
    )


def test_names_of_tensorrt_and_of_gpus_are_those_of_the_engines():
    assert FLAVOURS == FLAVOUR_NAMES
    assert str(Gpu("Orin", "8.7")) == str(Device("Orin", "8.7"))


def test_l4t_39_is_jetpack_7(planted: Planted):
    planted.jetson("R39 (release), REVISION: 1.0")
    (found,) = (
        each
        for each in jetson.check_jetson(Survey(planted.machine()))
        if each.code.startswith("jetpack")
    )
    assert (found.level, found.found[-9:]) == ("ok", "JetPack 7")


# ------------------------------------------------------------------------------------- odd machines


def test_pages_of_files_are_free_memory_and_outer_groups_bind(planted: Planted):
    planted.file("/proc/meminfo", f"MemTotal: {16 << 20} kB\nMemAvailable: {12 << 20} kB\n")
    planted.file("/proc/self/cgroup", "0::/outer/inner\n")
    folder = "/sys/fs/cgroup/outer"
    planted.file(f"{folder}/inner/memory.max", "max")
    planted.file(f"{folder}/memory.max", str(4 * GIB))
    planted.file(f"{folder}/memory.current", str(4 * GIB - 1000))
    assert codes(list(storage.check_memory(Survey(planted.machine()))))["memory-low"]
    pages = f"anon 5\ninactive_file {2 * GIB}\nactive_file {GIB}\n"
    planted.file(f"{folder}/memory.stat", pages)
    (found,) = storage.check_memory(Survey(planted.machine()))
    assert (found.level, found.found) == ("ok", "3.0 GiB of 4.0 GiB free, swap 0.0 GiB")


def test_quota_without_a_period_is_none(planted: Planted):
    planted.file("/proc/self/cgroup", "0::/\n")
    planted.file("/sys/fs/cgroup/cpu.max", "100000 0")
    assert not codes(list(processor.check_share(Survey(planted.machine()))))


def test_one_damaged_package_hides_no_other(planted: Planted):
    for name, text in (
        ("a", b"Metadata-Version: 2.1\nName: onnxruntime\nVersion: 1\nAuthor: J\xf6rg\n"),
        ("b", b"Metadata-Version: 2.1\nName: onnxruntime-gpu\n"),
        ("c", b""),
    ):
        folder = planted.site / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_bytes(text)
    planted.wheel("onnxruntime-qnn", "1.30.0", {"onnxruntime/__init__.py": ORT})
    survey = Survey(planted.machine())
    assert "onnxruntime-qnn" in {
        each.name for each in find_packages(survey.machine, "onnxruntime.*")
    }
    assert "onnxruntime" in codes_of(list(onnx_runtime.check_providers(survey)))
    assert not [each for each in onnx_runtime.check_wheels(survey) if each.level == "error"]


def codes_of(findings: list[Finding]) -> set[str]:
    return {each.code for each in findings}


ODD = ["[1]", "{}", "[" * 100_000, '{"schema": 1, "fingerprint": [], "verdict": {}}']


@pytest.mark.parametrize("text", ODD, ids=["list", "empty", "deep", "types"])
def test_odd_record_of_an_engine_is_unreadable_and_nothing_worse(
    planted: Planted, tmp_path: Path, text: str
):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    plant_engine(bundle).with_suffix(".json").write_text(text)
    assert only(look_at_engines(planted, bundle)).code == "engine-record-unreadable"


@pytest.mark.parametrize(
    "changes", [{"onnx_sha256": [1]}, {"flags": [1]}, {"shapes": 3}, {"device": {"a": []}}]
)
def test_identity_of_wrong_types_is_a_finding(planted: Planted, tmp_path: Path, changes: dict):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    engine = plant_engine(bundle, **changes)
    record = json.loads(engine.with_suffix(".json").read_text())
    engine.with_suffix(".json").write_text(json.dumps(record | {"verdict": "fail", "check": [1]}))
    assert look_at_engines(planted, bundle)


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes")
def test_pipe_and_flood_in_the_place_of_a_record_are_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.json")
    assert read_record(tmp_path / "pipe.json") is None
    whole = {"schema": 1, "fingerprint": "a", "verdict": "not run"}
    (tmp_path / "flood.json").write_text(json.dumps(whole) + " " * (5 << 20))
    assert read_record(tmp_path / "flood.json") is None


def test_engines_beside_a_named_file_are_judged_by_the_whole_bundle(
    planted: Planted, tmp_path: Path
):
    folder = write_tiny_bundle(tmp_path / "tiny", precisions=("fp32", "int8"))
    plant_engine(folder)
    whole = look_at_engines(planted, folder)
    assert [each.code for each in whole] == ["engine-no-toolkit"]
    named = look_at_engines(planted, folder / "model.int8.onnx")
    assert [each.code for each in named] == [each.code for each in whole]


def test_home_of_an_unknown_user_is_a_folder_like_any():
    assert user_cache_folder({"HOME": "~nobody-there"}).parts[0] == "~nobody-there"


# --------------------------------------------------------------------------------------- nvidia-smi


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("A, 50, 0x0000000000000008", ["slowed down by its hardware (HW slowdown)"]),
        ("A, 50, 0x0000000000000048", ["slowed down by heat"]),
        ("A, 50, 0x0000000000000005", []),
        ("A, [N/A], 0x0000000000000004", ["temperature unknown"]),
    ],
    ids=["hardware", "heat", "idle", "no sensor"],
)
def test_reasons_of_a_gpu(planted: Planted, row: str, expected: list[str]):
    planted.program("nvidia-smi", f"echo '{row}'")
    findings = list(power.check_gpu_clocks(Survey(planted.machine())))
    slow = [each for each in findings if each.level != "ok"]
    assert len(findings) == 1
    assert len(slow) == len(expected)
    assert all(text in each.found for text, each in zip(expected, slow, strict=True))


@pytest.mark.skipif(os.name == "nt", reason="needs mode bits")
def test_nvidia_smi_that_cannot_be_executed_is_left_alone(planted: Planted):
    path = planted.programs / "nvidia-smi"
    path.write_bytes(b"\x7fELF of another processor")
    path.chmod(0o755)
    assert list(power.check_gpu_clocks(Survey(planted.machine()))) == []


# ------------------------------------------------------------------------------------------- output


def test_long_words_of_a_loader_are_cut_in_the_middle():
    text = Finding("OpenCV", "opencv-broken", "error", "a" * 900 + "end", "x" * 900)
    assert len(text.found) <= 400
    assert text.found.endswith("end")
    assert len(text.cure) == 900


PRINT = """
import sys
sys.path.insert(0, {root!r})
from runtime import doctor
from runtime.doctoring.findings import Finding
found = Finding("Cameras", "camera", "ok", "K\\u00e4mera \\udcff \\u2603")
doctor.examine = lambda survey: [found] * 5000
sys.exit(doctor.main({options!r}))
"""


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_output_of_any_encoding_and_a_reader_that_leaves(options: list[str]):
    code = PRINT.format(root=str(ROOT), options=options)
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    if options:
        assert json.loads(done.stdout)["counts"]["ok"] == 5000
    if shutil.which("sh") is None:
        return
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 0
