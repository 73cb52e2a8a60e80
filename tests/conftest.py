"""What several folders of tests share; slow imports stay inside the fixtures."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from calling import forget_process_state

from runtime.pipeline.stopping import handle_signals_on_the_normal_stack


@pytest.fixture(autouse=True)
def fresh_process_state() -> None:
    """No test trains with the device and precision of the one before."""
    forget_process_state()


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of coloured discs."""
    from tiny_models import write_discs

    return write_discs(tmp_path_factory.mktemp("discs"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of a small model that finds things everywhere."""
    from tiny_models import tiny_model, tiny_spec

    from training.loop.checkpoint import save_release

    path = tmp_path_factory.mktemp("release") / "tiny.safetensors"
    save_release(
        path,
        "retinanet",
        tiny_model(spec=tiny_spec(score_threshold=0.02)),
        training={"data": "discs"},
        scores={"AP": 0.5},
    )
    return path


@pytest.fixture(scope="session")
def tiny_trace(tiny_checkpoint: Path) -> Any:
    """The tiny model's graph as `export.graph.end_to_end.trace` gives it."""
    from export.graph.end_to_end import trace
    from training.loop.checkpoint import load_release

    return trace(load_release(tiny_checkpoint)[0])


@pytest.fixture
def quick_trace(tiny_trace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the tiny checkpoint find it traced: that takes seconds each time."""
    import export.bundling

    monkeypatch.setattr(export.bundling, "trace", lambda model: copy.deepcopy(tiny_trace))


@pytest.fixture(scope="session")
def written_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_trace: Any, discs: Path
) -> Iterator[Path]:
    """The tiny checkpoint's bundle, as exported; tests must not change it, nor load it by cache."""
    import export.bundling
    from export.bundling import ExportOptions, write_bundle

    out = tmp_path_factory.mktemp("exported") / "tiny"
    options = ExportOptions(
        model="retinanet", variant=None, checkpoint=tiny_checkpoint, size_hw=None, out=out,
        data=str(discs), precisions=("fp32",),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.bundling, "trace", lambda model: copy.deepcopy(tiny_trace))
        write_bundle(options, report=lambda line: None)
    names = sorted(path.name for path in out.iterdir())
    yield out
    assert sorted(path.name for path in out.iterdir()) == names, "a test changed the shared bundle"


@pytest.fixture
def tiny_exported(written_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may change."""
    return Path(shutil.copytree(written_bundle, tmp_path / "tiny"))


@pytest.fixture(autouse=True)
def _signals_on_the_normal_stack():
    """Tests that raise signals share the process with those that compiled in OpenVINO."""
    handle_signals_on_the_normal_stack()
