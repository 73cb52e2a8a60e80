"""TensorRT-RTX builds without a GPU: every registered model, for every GPU that it knows."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_graphs import ranges_of
from tiny_models import frames_of, shrunk, tiny_model

from export.bundling import describe, trace_bases
from export.precision.int8.leaning import leaning_feeds
from export.precision.int8.rewriting import to_int8
from export.precision.mixed import to_mixed
from export.precision.search.grouping import group_products
from export.precision.writing import CONVERSIONS, name_files, write_files
from runtime.contract.bundle import Bundle
from runtime.contract.manifest import MANIFEST_NAME, Manifest
from runtime.contract.outputs import KEY, NONKEY
from runtime.engines import BuildOptions, build_all, load_flavour
from training.loop.checkpoint import load_release, save_release
from training.models import REGISTRY, model_variant
from training.models.base import Model

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build real engines")

NOT_A_TARGET = {"NONE", "CURRENT"}  # CURRENT is the GPU of this machine
TARGETS = tuple(
    name
    for name in load_flavour("tensorrt_rtx").module.ComputeCapability.__members__
    if name not in NOT_A_TARGET
)
CASES = [
    (name, variant)
    for name, place in REGISTRY.items()
    for variant in importlib.import_module(place.split(":")[0]).VARIANTS
]
PRECISIONS = ("fp32", "fp16", "int8", "mixed")
_written: dict[tuple[str, str], Path] = {}


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    """No test writes into the user's real cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(name: str, variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one variant at a small size, traced once."""
    if (name, variant) not in _written:
        out = tmp_path_factory.mktemp(f"{name}-{variant}")
        checkpoint = out / "model.safetensors"
        spec = shrunk(model_variant(name, variant).spec)
        save_release(checkpoint, name, tiny_model(name, spec), training={"data": "x"}, scores={})
        _written[(name, variant)] = write_graphs(name, checkpoint, out)
    return _written[(name, variant)]


def write_graphs(name: str, checkpoint: Path, out: Path) -> Path:
    from export.bundling import ExportOptions

    model, header = load_release(checkpoint, name)
    options = ExportOptions(
        model=name, variant=None, checkpoint=checkpoint, size_hw=None, out=out,
        precisions=PRECISIONS,
    )  # fmt: skip
    bases = trace_bases(model)
    precisions = PRECISIONS if len(bases) == 1 else PRECISIONS[:-1]  # mixed is for one graph
    names = {graph: name_files(graph, precisions) for graph in bases}
    manifest = describe(model, options, header, checkpoint, names)
    manifest = dataclasses.replace(manifest, precisions=precisions)
    graphs = {}
    for graph, base in bases.items():
        feeds = feeds_of(bases, base, model, manifest)
        ranges = ranges_of(base, feeds)
        floats = [name for group in group_products(base)[::2] for name in group.products]
        conversions = CONVERSIONS | {
            "int8": functools.partial(to_int8, ranges=ranges),
            "mixed": functools.partial(to_mixed, ranges=ranges, float_nodes=floats),
        }
        for_cpus = {"mixed": functools.partial(to_int8, ranges=ranges, float_nodes=floats)}
        graphs[graph] = write_files(base, graph, manifest, out, conversions, for_cpus)
    text = dataclasses.replace(manifest, graphs=graphs).to_json()
    (out / MANIFEST_NAME).write_text(text, encoding="utf-8")
    return out


def feeds_of(
    bases: dict[str, onnx.ModelProto], base: onnx.ModelProto, model: Model, manifest: Manifest
) -> list[dict[str, np.ndarray]]:
    """One frame, and the state of an earlier one where the graph takes it."""
    frames = frames_of(1, model.spec.size_hw).numpy()
    if base is bases.get(NONKEY):
        return list(leaning_feeds(bases[KEY], manifest.state, frames))
    return [{"image": frames}]


def check_builds(folder: Path, target: str) -> None:
    engines = build_all(folder, flavour="tensorrt_rtx", options=BuildOptions(targets=(target,)))
    precisions = Bundle.open(folder).manifest.precisions
    graphs = Bundle.open(folder).manifest.graphs
    expected = [(precision, graph) for precision in precisions for graph in graphs]
    found = [(e.record["identity"]["precision"], e.record["graph"]) for e in engines]
    assert found == expected
    assert all(engine.is_new for engine in engines)
    for engine in engines:
        assert engine.record["identity"]["flags"]["targets"] == [target]
        assert len(np.frombuffer(engine.plan(), np.uint8)) == engine.record["size_bytes"] > 0


def test_module_offers_the_gpus_that_it_is_made_for():
    assert {"SM86", "SM89"} <= {*TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_small_model_builds_for(target, both_to_change):
    check_builds(both_to_change, target)


@pytest.mark.parametrize("target", [TARGETS[0], "SM89", TARGETS[-1]])
def test_small_int8_model_builds_for(target, int8_to_change):
    check_builds(int8_to_change, target)


@pytest.mark.parametrize("target", [TARGETS[0], "SM89", TARGETS[-1]])
def test_small_mixed_model_builds_for(target, mixed_to_change):
    check_builds(mixed_to_change, target)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), CASES, ids=["-".join(case) for case in CASES])
@pytest.mark.parametrize("target", TARGETS)
def test_every_variant_builds_for(target, name, variant, folder):
    check_builds(folder, target)
    manifest = Bundle.open(folder).manifest
    assert manifest.precisions == (PRECISIONS[:-1] if manifest.state else PRECISIONS)
