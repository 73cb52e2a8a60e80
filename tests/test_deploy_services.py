"""What keeps a camera running: container files, compose and the systemd unit, and `make setup`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.doctoring import storage
from runtime.video_options import parse

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.rglob("Dockerfile*"))
COMPOSE = DEPLOY / "docker" / "compose.yaml"
UNIT = (DEPLOY / "systemd" / "kestrel@.service").read_text()

# Makes environments that hold a Python of the version asked for, and writes down what pip gets.
STUB_PYTHON = """#!/bin/bash
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip") echo "$*" >>"$STUB_LOG" ;;
    -c*) exec "$REAL_PYTHON" -c "import sys; sys.version_info = ($STUB_VERSION); $2" ;;
    *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_folder_that_a_container_works_in_belongs_to_its_user(path: Path):
    """A new volume takes its owner from the image; WORKDIR alone would make the folder root's."""
    final = re.split(r"^FROM ", path.read_text(), flags=re.M)[-1]
    user = re.search(r"^USER (\d+)$", final, re.M)[1]
    before, folder = re.search(r"(.*)^WORKDIR (/data)$", final, re.M | re.S).groups()
    assert f"install -d -o {user} -g {user} {folder}\n" in before


def test_compose_example_names_files_that_are_there(monkeypatch):
    monkeypatch.setenv("KESTREL_SOURCE", "0")
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for service in services.values():
        context = (COMPOSE.parent / service["build"]["context"]).resolve()
        assert (context / service["build"]["dockerfile"]).is_file()
        assert service["read_only"]
        assert set(service["environment"]) == {"KESTREL_SOURCE"}
        args = parse(service["command"])
        assert args.sources == ["0"]
        assert args.json_append
        assert service["cap_drop"] == ["ALL"]


def test_compose_starts_one_camera_and_each_has_results_of_its_own():
    yaml = pytest.importorskip("yaml")
    described = yaml.safe_load(COMPOSE.read_text())
    services = described["services"].values()
    profiles = [service["profiles"] for service in services]
    assert all(profiles)
    assert len(set(sum(profiles, []))) == len(services)
    results = [each.split(":")[0] for service in services for each in service["volumes"][1:]]
    assert sorted(results) == sorted(described["volumes"])


def test_no_service_puts_a_source_on_a_command_line():
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load(COMPOSE.read_text())["services"].values()
    commands = [" ".join(service["command"]) for service in services]
    commands += re.findall(r"^ExecStart=.*\n.*", UNIT, re.M)
    assert len(commands) == 3
    for command in commands:
        assert "--source env:KESTREL_SOURCE " in command


def test_settings_of_a_unit_are_those_that_it_reads(monkeypatch):
    example = (DEPLOY / "systemd" / "camera.env.example").read_text()
    given = dict(re.findall(r"^(KESTREL_\w+)=(.*)$", example, re.M))
    assert set(re.findall(r"(?:\$\{?|env:)(KESTREL_\w+)", UNIT)) == set(given)

    monkeypatch.setenv("KESTREL_SOURCE", given["KESTREL_SOURCE"])
    words = re.search(r"run_video\.py (.*?) \$KESTREL_OPTIONS", UNIT, re.S)[1]
    args = parse([*words.replace("\\\n", "").split(), *given["KESTREL_OPTIONS"].split()])
    assert args.sources == [given["KESTREL_SOURCE"]]
    assert args.max_age_ms == 200
    assert args.json_append


def test_unit_reaches_the_socket_of_csi_cameras_and_has_a_place_for_temporary_files():
    assert re.search(r"^PrivateTmp=(?!no)", UNIT, re.M) is None
    state = re.search(r"^WorkingDirectory=(.*)$", UNIT, re.M)[1]
    assert f" TMPDIR={state}" in re.search(r"^Environment=.*$", UNIT, re.M)[0]


def test_unit_has_the_memory_that_the_doctor_asks_for_to_build_an_engine():
    gigabytes = re.search(r"^MemoryMax=(\d+)G$", UNIT, re.M)[1]
    assert int(gigabytes) << 30 >= storage._BUILD_MEMORY
    assert "MemorySwapMax=0" not in UNIT


@pytest.mark.parametrize(
    ("version", "is_pinned"), [("3, 10, 13", False), ("3, 11, 0", True), ("3, 14, 1", True)]
)
def test_setup_takes_the_pins_where_python_can(version, is_pinned, tmp_path):
    python, venv, log = tmp_path / "python3", tmp_path / "venv", tmp_path / "log"
    python.write_text(STUB_PYTHON)
    python.chmod(0o755)
    command = ["make", "-C", ROOT, "setup", f"PYTHON={python}", f"VENV={venv}"]
    variables = {"STUB_LOG": str(log), "STUB_VERSION": version, "REAL_PYTHON": sys.executable}
    done = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (pip,) = log.read_text().splitlines()
    assert ("-c constraints.txt " in pip) == is_pinned
    assert re.search(r"-e \.\[runtime,\S+,dev\]$", pip)


def test_every_way_to_install_the_runtime_brings_opencv():
    ways = re.findall(r'"kestrel-vision\[(\S+)\]', (ROOT / "README.md").read_text())
    assert len(ways) == 3
    for extras in ways:
        assert {"runtime", "video"} <= set(extras.split(","))


def test_every_script_stands_in_the_readmes_table():
    rows = set(re.findall(r"`(\w+/\w+\.py)`", (ROOT / "README.md").read_text()))
    for folder in ("training", "export", "runtime", "benchmarks"):
        for path in sorted((ROOT / folder).glob("*.py")):
            if 'if __name__ == "__main__":' in path.read_text():
                assert f"{folder}/{path.name}" in rows
