"""Bundles that are damaged or failed their proof, and engines of other machines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from planted import Planted, codes, only
from test_doctor_nvidia import needs_compiler
from test_doctor_packages import ORT, plant_tensorrt
from tiny_bundle import write_tiny_bundle

from runtime.contract.bundle import Bundle
from runtime.contract.manifest import MANIFEST_NAME
from runtime.contract.samples import SAMPLES_NAME
from runtime.doctoring import bundles, engine_files
from runtime.doctoring.findings import Finding
from runtime.doctoring.survey import Survey
from runtime.engines.build import BuildOptions
from runtime.engines.cache import _make_record
from runtime.engines.fingerprint import Device, engine_file, identify
from runtime.engines.flavour import Flavour

ORIN = Device("Orin", "8.7")
VERSION = "10.7.0"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny", precisions=("fp32", "int8"))


def look(planted: Planted, bundle: Path) -> dict[str, Finding]:
    planted.wheel("onnxruntime", "1.30.0", {"onnxruntime/__init__.py": ORT})
    return codes(list(bundles.check_bundles(Survey(planted.machine(), [bundle]))))


# ----------------------------------------------------------------------------------------- bundles


def test_whole_bundle_says_what_of_it_runs_here(planted: Planted, tmp_path: Path):
    folder = write_tiny_bundle(tmp_path / "tiny", verdicts={("fp32", "onnxruntime"): "pass"})
    planted.wheel("onnxruntime", "1.30.0", {"onnxruntime/__init__.py": ORT})
    (found,) = bundles.check_bundles(Survey(planted.machine(), [folder]))
    assert found.level == "ok"
    assert "detection, 3 classes, 64x48; whole; runs with onnxruntime (fp32)" in found.found


def flip_a_byte(bundle: Path) -> None:
    path = bundle / "model.fp32.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def remove_a_graph(bundle: Path) -> None:
    (bundle / "model.int8.onnx").unlink()


def cut_samples(bundle: Path) -> None:
    path = bundle / SAMPLES_NAME
    path.write_bytes(path.read_bytes()[:200])


def raise_schema(bundle: Path) -> None:
    path = bundle / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))


def remove_manifest(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).unlink()


@pytest.mark.parametrize(
    ("damage", "code", "says", "cure"),
    [
        (flip_a_byte, "bundle-damaged", "the manifest expects", "copy the bundle"),
        (remove_a_graph, "bundle-damaged", "model.int8.onnx is missing", "Copy the whole folder"),
        (cut_samples, "bundle-samples-damaged", SAMPLES_NAME, ""),
        (raise_schema, "bundle-unreadable", "schema 99", "Upgrade the runtime"),
        (remove_manifest, "bundle-unreadable", "no manifest.json", "export/to_onnx.py"),
    ],
    ids=["flipped byte", "missing graph", "cut samples", "newer schema", "no manifest"],
)
def test_damaged_bundle_is_found(planted, bundle: Path, damage, code: str, says: str, cure: str):
    damage(bundle)
    found = look(planted, bundle)
    assert list(found) == [code]
    assert found[code].level == "error"
    assert says in found[code].found
    assert cure in found[code].cure
    assert found[code].cure


def test_all_damaged_files_are_told_at_once(planted: Planted, bundle: Path):
    flip_a_byte(bundle)
    remove_a_graph(bundle)
    planted.wheel("onnxruntime", "1.30.0", {"onnxruntime/__init__.py": ORT})
    findings = list(bundles.check_bundles(Survey(planted.machine(), [bundle])))
    assert [each.code for each in findings] == ["bundle-damaged"] * 2


def test_failed_proof_is_an_error_where_nothing_else_runs(planted: Planted, tmp_path: Path):
    verdicts = {("fp32", "onnxruntime"): "fail"}
    found = look(planted, write_tiny_bundle(tmp_path / "tiny", verdicts=verdicts))
    assert found["bundle-failed-proof"].level == "error"
    assert "fp32 with onnxruntime" in found["bundle-failed-proof"].found


def test_failed_proof_of_one_precision_is_a_warning(planted: Planted, tmp_path: Path):
    verdicts = {("int8", "onnxruntime"): "fail", ("fp32", "onnxruntime"): "pass"}
    folder = write_tiny_bundle(tmp_path / "tiny", precisions=("fp32", "int8"), verdicts=verdicts)
    assert look(planted, folder)["bundle-failed-proof"].level == "warning"


def test_bundle_that_nobody_verified_is_told(planted: Planted, bundle: Path):
    found = look(planted, bundle)["bundle-unproven"]
    assert "export/verify.py" in found.cure


def test_bundle_without_any_backend_is_an_error(planted: Planted, bundle: Path):
    found = only(list(bundles.check_bundles(Survey(planted.machine(), [bundle]))))
    assert found.code == "bundle-no-backend"
    assert "pip install" in found.cure


def test_int8_on_a_processor_that_would_overflow_is_told(planted: Planted, bundle: Path):
    planted.intel("sse2 avx2")
    assert "VNNI" in look(planted, bundle)["bundle-int8-inexact"].found


def test_folder_that_every_user_may_write_is_found(planted: Planted, bundle: Path):
    bundle.chmod(0o777)
    assert "chmod" in look(planted, bundle)["bundle-writable-by-all"].cure


# ----------------------------------------------------------------------------------------- engines


def plant_engine(bundle: Path, **changes: Any) -> Path:
    """An engine with its record, as if built on an Orin; `changes` are of its identity."""
    opened = Bundle.open(bundle)
    toolkit = Flavour("tensorrt", None, VERSION)
    identity = identify(opened, "model", "fp32", toolkit, device=ORIN, options=BuildOptions())
    plan = b"plan" * 100
    onnx = engine_file(opened, "model", "fp32")
    record = _make_record(identity, "model", onnx, plan, 1.0)
    record["identity"] |= changes
    record["sha256"] = hashlib.sha256(plan).hexdigest()
    folder = bundle / "engines"
    folder.mkdir(exist_ok=True)
    path = folder / f"{record['fingerprint']}.engine"
    path.write_bytes(plan)
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


def change_record(engine: Path, **changes: Any) -> None:
    path = engine.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def on_orin(driven: Planted) -> Planted:
    """A machine with TensorRT and an Orin."""
    plant_tensorrt(driven, VERSION)
    return driven


def look_at_engines(planted: Planted, bundle: Path) -> list[Finding]:
    return list(engine_files.check_engines(Survey(planted.machine(), [bundle])))


@needs_compiler
def test_engine_of_this_machine_fits(on_orin: Planted, bundle: Path):
    plant_engine(bundle)
    (found,) = look_at_engines(on_orin, bundle)
    assert found.level == "ok"
    assert "fits; its check: not run" in found.found


@needs_compiler
@pytest.mark.parametrize(
    ("changes", "code", "says", "cure"),
    [
        ({"device": "NVIDIA H200", "compute_capability": "9.0"}, "engine-foreign",
         "built for NVIDIA H200, here is Orin (sm_87)", "builds it anew"),
        ({"flavour_version": "10.3.0"}, "engine-foreign", "built with 10.3.0, here is 10.7.0",
         "builds it anew"),
        ({"platform": "Linux riscv64"}, "engine-foreign", "built on Linux riscv64",
         "builds it anew"),
        ({"plugin_sha256": "0" * 64}, "engine-foreign", "our kernels are other ones", "builds it"),
        ({"onnx_sha256": {"model": "0" * 64}}, "engine-stale", "another one by now", "delete it"),
        ({"precision": "fp16"}, "engine-stale", "no graph that can be read", "delete it"),
    ],
    ids=["gpu", "version", "platform", "kernels", "exported again", "unknown precision"],
)  # fmt: skip
def test_engine_of_elsewhere_is_found(
    on_orin: Planted, bundle: Path, changes: dict, code: str, says: str, cure: str
):
    plant_engine(bundle, **changes)
    found = only(look_at_engines(on_orin, bundle))
    assert (found.code, found.level) == (code, "warning")
    assert says in found.found
    assert cure in found.cure


def test_engine_for_a_gpu_is_of_no_use_without_one(planted: Planted, bundle: Path):
    plant_tensorrt(planted, VERSION)
    plant_engine(bundle)
    found = only(look_at_engines(planted, bundle))
    assert (found.code, found.level) == ("engine-no-gpu", "note")
    assert "is for Orin" in found.found


def test_engine_without_its_tensorrt_is_told(planted: Planted, bundle: Path):
    plant_engine(bundle)
    assert only(look_at_engines(planted, bundle)).code == "engine-no-toolkit"


def cut_engine(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes()[:100])


def remove_engine(engine: Path) -> None:
    engine.unlink()


def remove_record(engine: Path) -> None:
    engine.with_suffix(".json").unlink()


def cut_record(engine: Path) -> None:
    record = engine.with_suffix(".json")
    record.write_text(record.read_text()[:50])


def age_record(engine: Path) -> None:
    change_record(engine, schema=0)


def open_folder(engine: Path) -> None:
    engine.parent.chmod(0o777)


def pass_by_hand(engine: Path) -> None:
    change_record(engine, verdict="pass")


@needs_compiler
@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (cut_engine, "engine-damaged"),
        (remove_engine, "engine-damaged"),
        (remove_record, "engine-without-record"),
        (cut_record, "engine-record-unreadable"),
        (age_record, "engine-record-unreadable"),
        (open_folder, "engines-writable-by-all"),
        (pass_by_hand, "engine-record-edited"),
    ],
)
def test_engine_that_cannot_be_trusted_is_found(on_orin: Planted, bundle: Path, damage, code: str):
    damage(plant_engine(bundle))
    found = only(look_at_engines(on_orin, bundle))
    assert found.code == code
    assert found.cure


@needs_compiler
def test_engine_that_failed_its_check_is_an_error(on_orin: Planted, bundle: Path):
    from runtime.engines.cache import EngineFile, read_record, record_verdict

    path = plant_engine(bundle)
    record = read_record(path.with_suffix(".json"))
    reasons = {"reasons": ["it disagrees with PyTorch: 3 of 40 boxes"]}
    record_verdict(EngineFile(path, record), "fail", reasons)
    found = codes(look_at_engines(on_orin, bundle))["engine-failed"]
    assert found.level == "error"
    assert "3 of 40 boxes" in found.found


@needs_compiler
def test_engines_of_the_users_cache_are_those_of_the_bundle(on_orin: Planted, bundle: Path):
    engine = plant_engine(bundle, flavour_version="10.3.0")
    cache = on_orin.home / ".cache/kestrel"
    cache.mkdir(parents=True)
    engine.parent.rename(cache / "engines")
    assert only(look_at_engines(on_orin, bundle)).code == "engine-foreign"
    (cache / "engines/other.json").write_text("{}")
    assert len(look_at_engines(on_orin, bundle)) == 1
