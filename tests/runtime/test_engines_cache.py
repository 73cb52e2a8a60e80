"""The cache of engines: found again, built once, never half, never the wrong one."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import tempfile
from pathlib import Path

import pytest
from engine_builder import CHILD_TIMEOUT_S, start_builder
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

ROOT = Path(__file__).resolve().parents[2]
ORIN = Device("Orin", "8.7")

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


@pytest.mark.parametrize("is_single_file", [False, True], ids=["in a bundle", "alone"])
def test_fingerprint_differs_by_external_weights(tmp_path, flavour, is_single_file):
    folder = write_tiny_bundle(tmp_path / "bundle", has_external_data=True, num_samples=0)
    weights = folder / "weights.bin"
    names = []
    for tail in (b"", b"\0"):
        before = hash_file(weights)
        weights.write_bytes(weights.read_bytes() + tail)
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace(before, hash_file(weights)))
        opened = Bundle.open(folder)
        if is_single_file:  # it has no hashes to take over: they are computed
            graph = dataclasses.replace(opened.manifest.graphs["model"], sha256={})
            manifest_alone = dataclasses.replace(opened.manifest, graphs={"model": graph})
            opened = Bundle(folder, manifest_alone, is_single_file=True)
        names.append(_identify(opened, flavour))
    assert names[0] != names[1]


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


@pytest.mark.parametrize("victim", [".engine", ".json"])
def test_disk_full_is_said_and_leaves_nothing_half_written(
    bundle, flavour, monkeypatch, caplog, victim
):
    write = Path.write_bytes

    def full(self, data):
        if self.suffix != victim:
            return write(self, data)
        write(self, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    built = build(bundle, flavour)
    monkeypatch.undo()
    assert built.path is None
    assert built.plan()
    assert files_in(bundle.folder / "engines") == []
    assert "free some space" in caplog.text


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
        child = start_builder(folder, drop, XDG_CACHE_HOME=str(cache))
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
    child = start_builder(folder, limit)
    out, err = child.communicate(timeout=CHILD_TIMEOUT_S)
    assert child.returncode == 0, err
    assert out.strip() == "True None"
    assert "used from memory" in err
    assert files_in(folder / "engines") == []


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
