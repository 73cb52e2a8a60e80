"""What stands in deploy/: linters, and the Jetson's script on a machine that is made up for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
INSTALL = DEPLOY / "jetson" / "install.sh"
UNIT = DEPLOY / "systemd" / "kestrel@.service"
DOCKERFILES = [DEPLOY / "docker/Dockerfile.cpu", DEPLOY / "docker/Dockerfile.gpu",
               DEPLOY / "jetson/Dockerfile"]  # fmt: skip
BAD_INPUT = 2
MOST_EXPOSED = 25  # tenths of systemd's measure, which ends at 100; without hardening it is 96
JETPACK_6 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
JETPACK_7 = "# R39 (release), REVISION: 2.1, GCID: 46758480, BOARD: generic, EABI: aarch64\n"
CUDA_12 = '{\n  "cuda" : {\n    "name" : "CUDA SDK",\n    "version" : "12.6.11"\n  }\n}\n'

# Python as a Jetson has it: answers what the script asks, and writes down what it is told to do.
STUB_PYTHON = """#!/bin/bash
case "$*" in
    *version_info*) echo "${STUB_PYTHON_VERSION:-3.10}" ;;
    *ensurepip*) exit "${STUB_NO_VENV:-0}" ;;
    *tensorrt.__version__*) [ -n "$STUB_TENSORRT" ] && echo "$STUB_TENSORRT" ;;
    *pyproject.toml*) exec "$REAL_PYTHON" "$@" ;;
    "-m venv"*)
        echo "python3 $*" >>"$STUB_LOG"
        mkdir -p "${*: -1}/bin"
        cp "$0" "${*: -1}/bin/python"
        echo "include-system-site-packages = true" >"${*: -1}/pyvenv.cfg" ;;
    "-m pip"*) echo "pip $*" >>"$STUB_LOG" ;;
    "- "*) echo "check $*" >>"$STUB_LOG" ;;
    -) [ -n "$STUB_OPENCV" ] && echo "$STUB_OPENCV" ;;
    *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""


@pytest.fixture
def jetson(tmp_path: Path) -> dict[str, str]:
    """The environment of a Jetson with JetPack 6."""
    (tmp_path / "system" / "etc").mkdir(parents=True)
    (tmp_path / "system" / "usr/local/cuda").mkdir(parents=True)
    (tmp_path / "system" / "usr/local/cuda/version.json").write_text(CUDA_12)
    (tmp_path / "system" / "etc" / "nv_tegra_release").write_text(JETPACK_6)
    (tmp_path / "bin").mkdir()
    write_program(tmp_path / "bin" / "uname", "#!/bin/bash\necho aarch64\n")
    write_program(tmp_path / "bin" / "python3", STUB_PYTHON)
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "KESTREL_SYSTEM_ROOT": str(tmp_path / "system"),
        "REAL_PYTHON": sys.executable,
        "STUB_LOG": str(tmp_path / "log"),
        "STUB_TENSORRT": "10.3.0",
        "STUB_OPENCV": "4.8.0 1.21.5 YES system",
    }


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def install(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(INSTALL), *map(str, arguments)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip


def refusal(environment: dict[str, str], *arguments: object) -> str:
    done = install(environment, *arguments)
    assert done.returncode == BAD_INPUT, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


# ------------------------------------------------------------------------------- a Jetson's script


def test_install_on_jetpack_6_takes_the_systems_packages_and_adds_what_they_lack(jetson, tmp_path):
    done = install(jetson, "--prefix", tmp_path / "kestrel")
    assert done.returncode == 0, done.stderr
    for said in ("JetPack     6", "12.6.11", "TensorRT    10.3.0", "GStreamer: YES"):
        assert said in done.stdout
    made, pip, check = Path(jetson["STUB_LOG"]).read_text().splitlines()
    assert "--system-site-packages" in made
    assert re.search(r"numpy>=1\.26,<2 cuda-bindings>=12\.6,<13 av>=\S+ scipy>=\S+$", pip)
    assert check.startswith("check")
    assert (tmp_path / "kestrel/app/runtime/run_video.py").is_file()
    assert not (tmp_path / "kestrel/app/training").exists()


def test_nothing_that_hides_jetpacks_packages_may_be_installed(jetson, tmp_path):
    assert install(jetson, "--prefix", tmp_path / "kestrel").returncode == 0
    pins = (tmp_path / "kestrel" / "constraints.txt").read_text().split()
    for name in ("opencv-python", "opencv-python-headless", "tensorrt", "torch", "onnx"):
        assert f"{name}<0" in pins
    assert (
        f"--constraint {tmp_path}/kestrel/constraints.txt" in Path(jetson["STUB_LOG"]).read_text()
    )


def test_install_on_jetpack_7_takes_bindings_of_cuda_13_and_the_systems_numpy_2(jetson, tmp_path):
    system = Path(jetson["KESTREL_SYSTEM_ROOT"])
    (system / "etc/nv_tegra_release").write_text(JETPACK_7)
    (system / "usr/local/cuda/version.json").unlink()
    jetson |= {"STUB_TENSORRT": "10.16.1.7", "STUB_OPENCV": "4.13.0 2.1.0 YES system",
               "STUB_PYTHON_VERSION": "3.12"}  # fmt: skip
    done = install(jetson, "--prefix", tmp_path / "kestrel", "--extras", "")
    assert done.returncode == 0, done.stderr
    assert "13, as of JetPack 7" in done.stdout
    pip = Path(jetson["STUB_LOG"]).read_text().splitlines()[1]
    assert pip.endswith("numpy>=2,<2.6 cuda-bindings>=13,<14")


def test_install_twice_leaves_the_same_and_makes_one_environment(jetson, tmp_path):
    first = install(jetson, "--prefix", tmp_path / "kestrel")
    files = tree(tmp_path / "kestrel")
    (tmp_path / "kestrel/app/runtime/of_an_older_version.py").write_text("")
    second = install(jetson, "--prefix", tmp_path / "kestrel")
    assert first.returncode == second.returncode == 0
    assert tree(tmp_path / "kestrel") == files
    assert Path(jetson["STUB_LOG"]).read_text().count("-m venv") == 1


def tree(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_dry_run_says_what_it_would_do_and_changes_nothing(jetson, tmp_path):
    done = install(jetson, "--dry-run", "--prefix", tmp_path / "kestrel")
    assert done.returncode == 0, done.stderr
    assert f"would run: {tmp_path}/bin/python3 -m venv" in done.stdout
    assert "cuda-bindings" in done.stdout
    assert not (tmp_path / "kestrel").exists()
    assert not Path(jetson["STUB_LOG"]).exists()


def test_desktop_is_refused_with_what_to_do_there():
    line = refusal({**os.environ, "KESTREL_SYSTEM_ROOT": "/nowhere"})
    assert "no Jetson" in line
    assert "On a desktop" in line


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"STUB_TENSORRT": "8.5.2"}, "TensorRT 8.5.2 is here; expected 10.3 to 11.4"),
        ({"STUB_TENSORRT": "10.1.0"}, "expected 10.3 to 11.4"),
        ({"STUB_TENSORRT": "11.5.0"}, "expected 10.3 to 11.4"),
        ({"STUB_TENSORRT": ""}, "apt-get install nvidia-jetpack"),
        ({"STUB_OPENCV": ""}, "apt-get install python3-opencv"),
        ({"STUB_PYTHON_VERSION": "3.8"}, "python3 is 3.8; expected 3.10"),
        ({"STUB_NO_VENV": "1"}, "apt-get install python3-venv"),
    ],
    ids=["JetPack 5", "TensorRT 10.1", "too new", "no TensorRT", "no OpenCV", "old", "no venv"],
)
def test_what_is_missing_or_of_a_wrong_version_is_refused_with_its_cure(changes, says, jetson):
    assert says in refusal(jetson | changes, "--prefix", "/tmp/none")


@pytest.mark.parametrize(
    ("release", "says"),
    [
        ("# R35 (release), REVISION: 4.1, BOARD: t186ref\n", "Jetson Linux 35.4.1 is here"),
        ("something else\n", "begins with 'something else'"),
    ],
)
def test_another_jetson_linux_is_refused(release, says, jetson):
    (Path(jetson["KESTREL_SYSTEM_ROOT"]) / "etc/nv_tegra_release").write_text(release)
    assert says in refusal(jetson)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--extras", "video,gpu"), "'gpu'; expected some of video track"),
        (("--extras", "video track"), "'video track'; expected some of video track"),
        (("--extras", "video,*"), "'*'; expected some of video track"),
        (("--extras", "--dry-run"), "'--dry-run'; expected some of video track"),
        (("--extra",), "--extra is no option"),
        (("--prefix",), "--prefix needs a folder"),
        (("--prefix", ""), "--prefix is ''; expected a folder"),
        (("--prefix", "--dry-run"), "--prefix is '--dry-run'; expected a folder"),
    ],
)
def test_wrong_option_is_refused(arguments, says, jetson):
    assert says in refusal(jetson, *arguments)


def test_extras_are_taken_with_blanks_and_commas_too_many(jetson, tmp_path):
    done = install(jetson, "--prefix", tmp_path / "kestrel", "--extras", " video, ,track,")
    assert done.returncode == 0, done.stderr
    pip = Path(jetson["STUB_LOG"]).read_text().splitlines()[1]
    assert re.search(r"cuda-bindings>=12\.6,<13 av>=\S+ scipy>=\S+$", pip)


def test_sources_without_an_extra_are_refused_with_status_2(jetson, tmp_path):
    older = tmp_path / "older" / "deploy" / "jetson" / "install.sh"
    older.parent.mkdir(parents=True)
    shutil.copy(INSTALL, older)
    (tmp_path / "older" / "pyproject.toml").write_text("[project]\n")
    command = ["bash", older, "--dry-run", "--prefix", tmp_path / "kestrel"]
    done = subprocess.run(command, env=jetson, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (BAD_INPUT, 1)
    assert "has no extra video" in done.stderr


def test_what_is_installed_can_be_read_by_the_units_user(jetson, tmp_path):
    command = f"umask 077; exec bash {INSTALL} --prefix {tmp_path / 'kestrel'}"
    subprocess.run(["bash", "-c", command], env=jetson, check=True, capture_output=True)
    for path in (tmp_path / "kestrel").rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044, path


def test_activated_environment_is_stepped_past(jetson, tmp_path):
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    write_program(other / "bin" / "python3", "#!/bin/bash\nexit 9\n")
    twice = f"{other / 'bin'}:{other / 'bin'}:{jetson['PATH']}"
    done = install(
        jetson | {"VIRTUAL_ENV": str(other), "PATH": twice}, "--dry-run", "--prefix", other
    )
    assert done.returncode == 0, done.stderr
    assert f"({tmp_path}/bin/python3)" in done.stdout


def test_environment_that_does_not_see_the_system_is_refused(jetson, tmp_path):
    venv = tmp_path / "kestrel" / "venv"
    venv.mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    assert "does not see the system" in refusal(jetson, "--prefix", tmp_path / "kestrel")


@pytest.mark.parametrize(
    ("opencv", "says"),
    [
        ("4.12.0 2.2.6 NO wheel", "pip uninstall opencv-python"),
        ("4.8.0 1.26.4 NO system", "csi:// and gst: will not open"),
    ],
)
def test_opencv_that_cannot_open_a_csi_camera_is_told(opencv, says, jetson):
    done = install(jetson | {"STUB_OPENCV": opencv}, "--dry-run", "--prefix", "/tmp/none")
    assert done.returncode == 0
    assert says in done.stdout


SYSTEM_CV2 = """
import numpy
__version__ = "4.8.0"
getBuildInformation = lambda: "  Video I/O:\\n    GStreamer:                   YES (1.20.3)\\n"
resize = lambda image, size: image[: size[1], : size[0]]
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_environment_that_is_really_made_runs_the_runtime_without_torch(jetson, tmp_path):
    """A real environment and real wheels; the system's OpenCV and TensorRT are two small files."""
    system = tmp_path / "dist-packages"
    system.mkdir()
    (system / "cv2.py").write_text(SYSTEM_CV2)
    (system / "tensorrt.py").write_text('__version__ = "10.3.0"\n')
    import numpy

    (system / "numpy").symlink_to(Path(numpy.__file__).parent)
    (system / "numpy.libs").symlink_to(Path(numpy.__file__).parents[1] / "numpy.libs")
    jetson |= {"PYTHONPATH": str(system)}
    (tmp_path / "bin" / "python3").unlink()
    (tmp_path / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))  # noqa: PTH118
    for _ in range(2):
        done = install(jetson, "--prefix", tmp_path / "kestrel")
        assert done.returncode == 0, done.stderr
    jetson["PYTHONPATH"] += f":{tmp_path / 'kestrel/app'}"
    probe = [tmp_path / "kestrel/venv/bin/python", "-m", "pip", "list", "--format", "freeze"]
    listed = subprocess.run(probe, env=jetson, capture_output=True, text=True, check=True).stdout
    names = {line.split("==")[0].lower() for line in listed.splitlines()}
    assert {"cuda-bindings", "av", "scipy"} <= names
    assert not names & {"opencv-python-headless", "opencv-python", "torch", "onnx", "tensorrt"}
    script = [tmp_path / "kestrel/venv/bin/python", tmp_path / "kestrel/app/runtime/run_video.py"]
    helped = subprocess.run([*script, "--help"], env=jetson, capture_output=True, text=True)
    assert "Examples:" in helped.stdout


# ----------------------------------------------------------------------------------------- linters


def tool(name: str) -> str:
    """A linter of the dev extra, beside the interpreter."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")
    return path


def shell_scripts() -> list[Path]:
    return sorted([*DEPLOY.rglob("*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("path", shell_scripts(), ids=lambda path: path.name)
def test_shell_script_passes_shellcheck(path: Path):
    done = subprocess.run([tool("shellcheck"), path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_container_file_passes_hadolint(path: Path):
    command = [tool("hadolint"), "--failure-threshold", "style", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_container_file_is_linted():
    assert sorted(DOCKERFILES) == sorted(DEPLOY.rglob("Dockerfile*"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_container_copies_only_what_reaches_the_builder_and_runs_as_no_root(path: Path):
    text = path.read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = [
        line.split()[1:-1]
        for line in text.splitlines()
        if line.startswith("COPY ") and "--from" not in line
    ]
    assert copied
    for name in sum(copied, []):
        assert name in allowed, f"{name} is kept out by .dockerignore"
        assert (ROOT / name).exists()
    user = re.findall(r"^USER (\S+)", text, re.M)[-1]
    assert user.isdecimal()
    assert int(user) > 0
    assert "HEALTHCHECK" in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_extras_of_a_container_are_those_of_pyproject(path: Path):
    extras = re.search(r"^ARG EXTRAS=(\S+)", path.read_text(), re.M)[1].split(",")
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
    assert set(extras) <= set(known)
    assert not set(extras) & {"train", "export", "dev"}


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with commands and settings that are there."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/kestrel/venv/bin/python", "/bin/true"))
    return path


def test_systemd_unit_is_valid(unit: Path):
    done = subprocess.run([tool("systemd-analyze"), "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_unit_is_hardened(unit: Path):
    command = [tool("systemd-analyze"), "security", "--offline=true",
               f"--threshold={MOST_EXPOSED}", "--no-pager", unit]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-500:]
