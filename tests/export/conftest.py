"""Tests of the export use the runtime's tiny bundle; what several of them plant faults in."""

import copy
import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "runtime"))


@pytest.fixture
def one_backend(monkeypatch: pytest.MonkeyPatch, quick_trace: None) -> None:
    """Proofs run on ONNX Runtime only, and explain a failure without another trace."""
    import export.verify

    monkeypatch.setattr(export.verify, "BACKENDS", ("onnxruntime",))


@pytest.fixture(scope="session")
def both(written_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle in fp32 and fp16, made of its float32 graph without another trace."""
    import onnx

    from export.precision.writing import name_files, write_files
    from runtime.contract.bundle import Bundle
    from runtime.contract.manifest import MANIFEST_NAME

    folder = Path(shutil.copytree(written_bundle, tmp_path_factory.mktemp("both") / "tiny"))
    base = onnx.load(folder / "model.fp32.plugin.onnx")
    del base.functions[:]
    precisions = ("fp32", "fp16")
    manifest = dataclasses.replace(
        Bundle.open(folder).manifest,
        precisions=precisions,
        graphs={"model": name_files("model", precisions)},
    )
    graphs = {"model": write_files(copy.deepcopy(base), "model", manifest, folder)}
    text = dataclasses.replace(manifest, graphs=graphs).to_json()
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def both_to_change(both: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(both, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def with_int8(written_bundle: Path, discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle in fp32 and int8, calibrated on six discs; tests must not change it."""
    from export.adding import add_int8

    folder = Path(shutil.copytree(written_bundle, tmp_path_factory.mktemp("int8") / "tiny"))
    add_int8(folder, data=str(discs), count=6, report=lambda line: None)
    return folder


@pytest.fixture
def int8_to_change(with_int8: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(with_int8, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def with_mixed(with_int8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with int8 and mixed, every second group of it in half; not to be changed."""
    from export.adding import float_graph, write_added
    from export.precision.int8.calibration import CALIBRATION_NAME, read_calibrations
    from export.precision.mixed import Assignment
    from export.precision.search.grouping import group_products
    from runtime.contract.bundle import Bundle

    folder = tmp_path_factory.mktemp("mixed")
    bundle = Bundle.open(with_int8)
    base = float_graph(bundle)
    calibrations = read_calibrations(with_int8 / CALIBRATION_NAME)
    calibration = calibrations["model"]
    floats = [name for group in group_products(base)[::2] for name in group.products]
    assignment = Assignment(calibration=calibration, float_nodes=tuple(floats))
    write_added(bundle.manifest, {"model": base}, calibrations, with_int8, folder, assignment)
    return folder


@pytest.fixture
def mixed_to_change(with_mixed: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(with_mixed, tmp_path / "tiny"))
