"""Several builders at once, and builders that are killed."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from engine_builder import CHILD_TIMEOUT_S, ROOT, start_builder
from fake_bench import COLOURS, colour_bundle
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from tiny_bundle import write_tiny_bundle

from runtime.engines import build_all
from runtime.engines.cache import find_or_build
from runtime.engines.fingerprint import Device
from runtime.engines.flavour import make_flavour
from runtime.engines.locking import locked

ORIN = Device("Orin", "8.7")
NUM_KILLS, NUM_KILLS_SLOW = 6, 30

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs TensorRT-RTX to build real engines",
)

# The child says when it begins, and then builds or finds its engine again and again.
AND_LOADS = """
import runtime.engines
build = runtime.engines.build_all
def build_and_load(*arguments, **options):
    print("begins", flush=True)
    while True:
        for built in build(*arguments, **options):
            built.plan()
        print("loaded", flush=True)
import tensorrt_rtx
runtime.engines.build_all = build_and_load
"""


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    """No test writes into the user's real cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_threads_that_want_the_same_engine_build_it_once(tmp_path):
    bundle = colour_bundle(tmp_path)
    trt = FakeTensorRT(FakeCuda(), {"model": COLOURS})
    flavour = make_flavour("tensorrt", trt)
    results = []

    def work():
        results.append(find_or_build(bundle, "model", "fp32", flavour, device=ORIN))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(built.is_new for built in results) == [False] * 4 + [True]
    assert trt.num_builds == 1


@needs_rtx
def test_processes_that_want_the_same_engine_build_it_once(tmp_path):
    folder = write_tiny_bundle(tmp_path / "bundle", num_samples=0)
    children = [start_builder(folder) for _ in range(3)]
    said = [child.communicate(timeout=CHILD_TIMEOUT_S) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], said
    assert sorted(out.split()[0] for out, _ in said) == ["False", "False", "True"]
    assert len({out.split()[1] for out, _ in said}) == 1
    assert len(files_in(folder / "engines")) == 2


@needs_rtx
def test_killed_builders_never_break_the_cache(tmp_path):
    folder = write_tiny_bundle(tmp_path / "bundle", num_samples=0)
    chance = random.Random(4)
    # The child says when it begins to build, so that the kills fall into building and writing.
    slow = (
        "import time, pathlib\n"
        "write = pathlib.Path.write_bytes\n"
        "def slowly(self, data):\n"
        "    with self.open('wb') as file:\n"
        "        for start in range(0, len(data), 200_000):\n"
        "            file.write(data[start:start + 200_000]); file.flush(); time.sleep(0.02)\n"
        "pathlib.Path.write_bytes = slowly\n"
        "import tensorrt_rtx; print('ready', flush=True)"
    )
    half_written = 0
    for kill in range(NUM_KILLS):
        child = start_builder(folder, slow)
        assert child.stdout.readline() == "ready\n"
        engines = folder / "engines"
        until = time.monotonic() + CHILD_TIMEOUT_S
        is_late = kill % 3 != 0  # two of three while it writes, one while it parses or builds
        while is_late and not list(engines.glob("*.part*")) and child.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=CHILD_TIMEOUT_S)
        half_written += bool(list(engines.glob("*.part*")))
        for path in [*engines.glob("*.engine"), *engines.glob("*.json")]:
            if not path.name.startswith("."):
                path.unlink()  # what was whole may stand; begin again for the next kill
    assert half_written > 0  # the kills did fall into the writing
    survivor = start_builder(folder)
    out, err = survivor.communicate(timeout=CHILD_TIMEOUT_S)
    assert out.startswith("True"), err
    assert len(files_in(folder / "engines")) == 2  # left-overs are swept, locks too
    assert not build_all(folder, flavour="tensorrt_rtx")[0].is_new


def wait_for_line(child: subprocess.Popen, said: str) -> None:
    line = child.stdout.readline()
    assert line.startswith(said), child.stderr.read() if child.poll() is not None else line


@needs_rtx
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_builders_and_loaders_killed_at_any_moment_leave_a_cache_that_works(tmp_path):
    folder = write_tiny_bundle(tmp_path / "bundle", num_samples=0)
    engines = folder / "engines"
    chance = random.Random(30)
    child = start_builder(folder, AND_LOADS)
    wait_for_line(child, "begins")
    began = time.monotonic()
    wait_for_line(child, "loaded")
    takes = time.monotonic() - began  # one build and one load
    child.kill()
    child.communicate(timeout=CHILD_TIMEOUT_S)
    were_new = []
    for kill in range(NUM_KILLS_SLOW):
        is_build = kill % 3 != 2  # one of three only finds and reads what is there
        for path in engines.glob("[!.]*") if is_build else ():
            path.unlink()
        child = start_builder(folder, AND_LOADS)
        wait_for_line(child, "begins")
        time.sleep(chance.uniform(0, takes))
        child.kill()
        child.communicate(timeout=CHILD_TIMEOUT_S)
        assert child.returncode == -signal.SIGKILL
        (built,) = build_all(folder, flavour="tensorrt_rtx")
        were_new.append(built.is_new)
        assert hashlib.sha256(built.path.read_bytes()).hexdigest() == built.record["sha256"]
        whole = [built.path.name, built.path.with_suffix(".json").name]
        assert [name for name in files_in(engines) if not name.startswith(".")] == whole
    assert {*were_new} == {True, False}  # kills fell before an engine was whole, and after


def test_lock_is_let_go_when_its_holder_is_killed(tmp_path):
    path = tmp_path / ".lock"
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from runtime.engines.locking import locked\n"
        f"with locked(Path({str(path)!r})):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    waits = []
    timer = threading.Timer(0.2, holder.kill)
    timer.start()
    with locked(path, lambda: waits.append(holder.poll())):
        assert holder.wait(CHILD_TIMEOUT_S) == -signal.SIGKILL
    assert waits == [None]  # it was held by a living process, and was waited for once
    assert not path.exists()


def test_lock_excludes_and_survives_the_removal_of_its_file(tmp_path):
    path = tmp_path / ".lock"
    inside, most = [], []

    def work():
        for _ in range(20):
            with locked(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) == 80
