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
