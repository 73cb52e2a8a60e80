"""The cache of engines: found again, built once, never half, never the wrong one."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from fake_bench import COLOURS, colour_bundle, with_batches
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from tiny_bundle import write_tiny_bundle

from runtime.contract.bundle import Bundle, hash_file
from runtime.contract.errors import BundleError, EngineError
from runtime.contract.manifest import Graph
from runtime.engines import build_all
from runtime.engines.build import BuildOptions
from runtime.engines.cache import find_or_build, record_verdict
from runtime.engines.fingerprint import Device, engine_file, identify
from runtime.engines.flavour import make_flavour
from runtime.engines.locking import locked

ROOT = Path(__file__).resolve().parents[2]
ORIN = Device("Orin", "8.7")
NUM_KILLS = 6
CHILD_TIMEOUT_S = 60

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs TensorRT-RTX to build real engines",
)


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    """No test writes into the user's real cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kestrel" / "engines"


@pytest.fixture
def bundle(tmp_path):
    return colour_bundle(tmp_path / "bundle")


@pytest.fixture
def trt():
    return FakeTensorRT(FakeCuda(), {"model": COLOURS})


@pytest.fixture
def flavour(trt):
    return make_flavour("tensorrt", trt)


def build(bundle, flavour, **options):
    return find_or_build(bundle, "model", "fp32", flavour, device=ORIN, **options)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_engine_lies_beside_the_bundle_with_what_is_known_of_it(bundle, flavour):
    built = build(bundle, flavour)
    name = built.fingerprint
    assert files_in(bundle.folder / "engines") == [f"{name}.engine", f"{name}.json"]
    record = json.loads((bundle.folder / "engines" / f"{name}.json").read_text())
    assert record == built.record
    assert record["sha256"] == hash_file(built.path)
    assert record["verdict"] == "not run"
    assert record["identity"]["device"] == "Orin"
    assert record["identity"]["flavour_version"] == "10.3.0"
    assert record["host_code_allowed"] is False


def test_engine_is_a_plain_plan(bundle, flavour):
    built = build(bundle, flavour)
    assert built.path.read_bytes() == built.plan() == built.without_plan().plan()


def test_second_call_finds_it(bundle, flavour, trt):
    first = build(bundle, flavour)
    written = first.path.stat().st_mtime_ns
    second = build(bundle, flavour)
    assert (first.is_new, second.is_new, trt.num_builds) == (True, False, 1)
    assert second.path.stat().st_mtime_ns == written
    assert second.plan() == first.plan()


def test_deleted_cache_is_rebuilt(bundle, flavour, trt):
    path = build(bundle, flavour).path
    path.unlink()
    assert build(bundle, flavour).is_new
    path.with_suffix(".json").unlink()
    assert build(bundle, flavour).is_new
    assert trt.num_builds == 3


TAMPERINGS = {
    "a changed byte": lambda p: p.write_bytes(b"X" + p.read_bytes()[1:]),
    "a cut end": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "an empty file": lambda p: p.write_bytes(b""),
    "a record that is no JSON": lambda p: p.with_suffix(".json").write_text("{"),
    "a record of another schema": lambda p: p.with_suffix(".json").write_text('{"schema": 9}'),
    "a record that is a list": lambda p: p.with_suffix(".json").write_text("[]"),
    "a record of something else": lambda p: p.with_suffix(".json").write_text(
        p.with_suffix(".json").read_text().replace("Orin", "Thor")
    ),
}


@pytest.mark.parametrize("tamper", TAMPERINGS.values(), ids=TAMPERINGS)
def test_tampered_engine_is_rebuilt(bundle, flavour, trt, tamper):
    path = build(bundle, flavour).path
    tamper(path)
    again = build(bundle, flavour)
    assert (again.is_new, again.path, trt.num_builds) == (True, path, 2)
    assert not build(bundle, flavour).is_new


def test_engine_that_was_changed_after_it_was_found_is_not_given_out(bundle, flavour):
    built = build(bundle, flavour).without_plan()
    built.path.write_bytes(b"other")
    with pytest.raises(EngineError, match="was changed or removed"):
        built.plan()


# Everything that an engine depends on gives it another name.
def _newer(trt):
    trt.__version__ = "10.3.1"
    return {"flavour": make_flavour("tensorrt", trt)}


DIFFERENCES = {
    "device": lambda trt: {"device": Device("Thor", "11.0")},
    "compute capability": lambda trt: {"device": Device("Orin", "8.8")},
    "flavour": lambda trt: {"flavour": make_flavour("tensorrt_rtx", trt)},
    "version": _newer,
    "plugin": lambda trt: {"plugin_sha256": "ab" * 32},
    "workspace": lambda trt: {"options": BuildOptions(workspace_bytes=1 << 20)},
    "level": lambda trt: {"options": BuildOptions(optimisation_level=1)},
    "layer details": lambda trt: {"options": BuildOptions(has_layer_details=False)},
}


def _identify(bundle, first, **changes):
    given = {"flavour": first, "device": ORIN, "options": BuildOptions(), **changes}
    return identify(bundle, "model", "fp32", **given).fingerprint()


@pytest.mark.parametrize("change", DIFFERENCES.values(), ids=DIFFERENCES)
def test_fingerprint_differs_by(bundle, flavour, trt, change):
    assert _identify(bundle, flavour, **change(trt)) != _identify(bundle, flavour)


def test_fingerprint_does_not_depend_on_where_the_bundle_lies(tmp_path, flavour):
    folders = [tmp_path / "a", tmp_path / "b"]
    assert len({_identify(colour_bundle(folder), flavour) for folder in folders}) == 1


def test_fingerprint_differs_by_the_batches(bundle, flavour):
    assert _identify(with_batches(bundle, (1,)), flavour) != _identify(bundle, flavour)


def test_fingerprint_differs_by_the_weights_also_where_they_are_external(tmp_path, flavour):
    names = set()
    for scores in ((0.9, 0.8, 0.6), (0.9, 0.8, 0.5)):
        folder = write_tiny_bundle(
            tmp_path / str(scores[2]),
            has_external_data=True,
            base_scores={"model.fp32.onnx": scores},
        )
        shells = {hash_file(folder / "model.fp32.onnx")}
        names.add(_identify(Bundle.open(folder), flavour))
        single = Bundle.open(folder)
        single.is_single_file = True  # no hashes to take over: they are computed
        names.add(_identify(single, flavour))
    assert len(shells) == 1
    assert len(names) == 2


def test_timing_cache_does_not_change_the_fingerprint(bundle, flavour, tmp_path):
    options = BuildOptions(timing_cache=tmp_path / "timing.cache")
    assert _identify(bundle, flavour, options=options) == _identify(bundle, flavour)


def test_rtx_engines_are_for_any_device_unless_for_the_current_one(bundle, trt):
    rtx = make_flavour("tensorrt_rtx", trt)
    thor = Device("Thor", "11.0")
    assert _identify(bundle, rtx, device=None) == _identify(bundle, rtx, device=thor)
    current = BuildOptions(targets=("CURRENT",))
    assert _identify(bundle, rtx, options=current) != _identify(
        bundle, rtx, options=current, device=thor
    )


def test_tensorrt_without_a_device_is_refused(bundle, flavour):
    with pytest.raises(EngineError, match="there is none here"):
        find_or_build(bundle, "model", "fp32", flavour)


def test_file_with_our_operators_is_built_where_there_is_one(bundle):
    assert engine_file(bundle, "model", "fp32").name == "model.fp32.onnx"
    source = bundle.folder / "model.fp32.onnx"
    (bundle.folder / "model.fp32.plugin.onnx").write_bytes(source.read_bytes())
    graph = Graph(
        {"fp32": "model.fp32.onnx"},
        plugin_files={"fp32": "model.fp32.plugin.onnx"},
        sha256={"model.fp32.plugin.onnx": hash_file(source)},
    )
    manifest = dataclasses.replace(bundle.manifest, graphs={"model": graph})
    with_plugin = Bundle(bundle.folder, manifest)
    assert engine_file(with_plugin, "model", "fp32").name == "model.fp32.plugin.onnx"


def test_changed_onnx_file_is_refused_not_built(bundle, flavour, trt):
    path = bundle.folder / "model.fp32.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="sha256"):
        build(bundle, flavour)
    assert trt.num_builds == 0


def test_verdict_is_kept_on_disk(bundle, flavour):
    record_verdict(build(bundle, flavour), "pass")
    found = build(bundle, flavour)
    assert (found.is_new, found.verdict) == (False, "pass")


# Places that cannot be written ------------------------------------------------------------


def test_folder_that_cannot_be_made_falls_back_to_the_users_cache(
    bundle, flavour, trt, user_cache, caplog
):
    (bundle.folder / "engines").write_text("a file is in the way")
    built = build(bundle, flavour)
    assert built.path.parent == user_cache
    assert "cannot be written" in caplog.text
    assert not build(bundle, flavour).is_new
    assert trt.num_builds == 1


def test_without_any_folder_the_engine_lives_in_memory(bundle, flavour, user_cache, caplog):
    (bundle.folder / "engines").write_text("a file is in the way")
    user_cache.parent.mkdir(parents=True)
    user_cache.write_text("here too")
    built = build(bundle, flavour)
    assert built.path is None
    assert built.plan()
    assert built.without_plan().plan() == built.plan()  # nothing else has it
    assert "lives in memory" in caplog.text


def test_disk_full_is_said_and_leaves_nothing_half_written(bundle, flavour, monkeypatch, caplog):
    import errno

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    built = build(bundle, flavour)
    monkeypatch.undo()
    assert built.path is None
    assert built.plan()
    assert files_in(bundle.folder / "engines") == []
    assert "free some space" in caplog.text


_CHILD = """
import os, sys
sys.path[:0] = [{root!r}, {here!r}]
{before}
from runtime.engines import build_all
for built in build_all({folder!r}, flavour="tensorrt_rtx"):
    print(built.is_new, built.path)
"""


def _child(folder: Path, before: str = "", **environment: str) -> subprocess.Popen:
    code = _CHILD.format(
        root=str(ROOT), here=str(Path(__file__).parent), folder=str(folder), before=before
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@needs_rtx
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to drop it")
def test_read_only_folder_of_another_user_falls_back_to_the_users_cache(tmp_path):
    with tempfile.TemporaryDirectory() as public:
        Path(public).chmod(0o755)
        folder = write_tiny_bundle(Path(public) / "bundle", num_samples=0)
        cache = Path(public) / "cache"
        cache.mkdir()
        cache.chmod(0o777)
        warm = write_tiny_bundle(tmp_path / "warm", batches=(1,), num_samples=0)
        # Everything is loaded before root is dropped: the interpreter may lie in root's home.
        drop = (
            "from runtime.engines import build_all\n"
            f"build_all({str(warm)!r}, flavour='tensorrt_rtx')\n"
            "os.setuid(65534)"
        )
        child = _child(folder, drop, XDG_CACHE_HOME=str(cache))
        out, err = child.communicate(timeout=CHILD_TIMEOUT_S)
        assert child.returncode == 0, err
        assert out.startswith(f"True {cache}/kestrel/engines/")
        assert "Permission denied" in err
        assert not (folder / "engines").exists()


@needs_rtx
def test_file_size_limit_in_the_middle_of_writing_leaves_the_engine_in_memory(tmp_path):
    resource = pytest.importorskip("resource", reason="needs POSIX resource limits")
    assert resource.RLIMIT_FSIZE is not None
    folder = write_tiny_bundle(tmp_path / "bundle", num_samples=0)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    child = _child(folder, limit)
    out, err = child.communicate(timeout=CHILD_TIMEOUT_S)
    assert child.returncode == 0, err
    assert out.strip() == "True None"
    assert "used from memory" in err
    assert files_in(folder / "engines") == []


# Several at once, and death ---------------------------------------------------------------


def test_threads_that_want_the_same_engine_build_it_once(bundle, flavour, trt):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(build(bundle, flavour))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(built.is_new for built in results) == [False] * 4 + [True]
    assert trt.num_builds == 1


@needs_rtx
def test_processes_that_want_the_same_engine_build_it_once(tmp_path):
    folder = write_tiny_bundle(tmp_path / "bundle", num_samples=0)
    children = [_child(folder) for _ in range(3)]
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
    for _ in range(NUM_KILLS):
        child = _child(folder, slow)
        assert child.stdout.readline() == "ready\n"
        engines = folder / "engines"
        until = time.monotonic() + CHILD_TIMEOUT_S
        while not list(engines.glob("*.part*")) and child.poll() is None:
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
    survivor = _child(folder)
    out, err = survivor.communicate(timeout=CHILD_TIMEOUT_S)
    assert out.startswith("True"), err
    assert len(files_in(folder / "engines")) == 2  # left-overs are swept, locks too
    assert not build_all(folder, flavour="tensorrt_rtx")[0].is_new


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


@needs_rtx
def test_build_all_gives_one_engine_for_each_precision(tmp_path):
    folder = write_tiny_bundle(
        tmp_path,
        precisions=("fp32", "fp16"),
        num_samples=0,
        base_scores={"model.fp16.onnx": (0.5, 0.4, 0.3)},
    )
    built = build_all(folder, flavour="tensorrt_rtx")
    assert [each.record["identity"]["precision"] for each in built] == ["fp32", "fp16"]
    assert len({each.fingerprint for each in built}) == 2
    assert [each.is_new for each in build_all(folder, ["fp16"], flavour="tensorrt_rtx")] == [False]
