"""A fresh engine is held against PyTorch's results before anyone relies on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fake_bench import COLOURS, bench
from tiny_bundle import write_tiny_bundle

from runtime.contract.bundle import Bundle
from runtime.contract.errors import EngineError
from runtime.contract.samples import SAMPLES_NAME, Samples, write_samples
from runtime.engines.check import check_engines

NUM_SAMPLES = 8
SHIFT_PX = 0.2


def shifted(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the right engine answers, a fifth of a pixel to the right."""
    outputs = COLOURS.function(feeds)
    return {**outputs, "boxes_xyxy": outputs["boxes_xyxy"] + np.float32(SHIFT_PX)}


def deaf(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An engine that ignores its score threshold."""
    return COLOURS.function({**feeds, "score_threshold": np.zeros_like(feeds["score_threshold"])})


def silent(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An engine that never finds anything."""
    return COLOURS.function({**feeds, "image": np.zeros_like(feeds["image"])})


FAULTS = {"shifted": shifted, "deaf": deaf, "silent": silent}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose samples switch a class off in every second frame."""
    folder = write_tiny_bundle(tmp_path, batches=(1, 4), num_samples=NUM_SAMPLES)
    samples = Bundle.open(folder).samples()
    feeds = {name: array.copy() for name, array in samples.feeds.items()}
    feeds["score_threshold"][1::2, 0] = 1.1
    write_samples(folder / SAMPLES_NAME, {"model": Samples(feeds, COLOURS.function(feeds))})
    return folder


def test_engine_that_agrees_passes_and_its_record_says_so(folder: Path):
    bundle = Bundle.open(folder)
    with bench(bundle) as made:
        engines = made.session.engine_files
        assert engines["model"].verdict == "not run"
        check_engines(made.session, bundle, engines)
        assert engines["model"].verdict == "pass"
    with bench(bundle) as again:
        assert not again.session.engine_files["model"].is_new
        assert again.session.engine_files["model"].verdict == "pass"


@pytest.mark.parametrize("fault", FAULTS)
def test_engine_that_disagrees_is_refused_and_its_record_says_so(folder: Path, fault: str):
    bundle = Bundle.open(folder)
    graph = dataclasses.replace(COLOURS, function=FAULTS[fault])
    with bench(bundle, {"model": graph}) as made:
        engines = made.session.engine_files
        with pytest.raises(EngineError, match="disagrees with PyTorch"):
            check_engines(made.session, bundle, engines)
        assert engines["model"].verdict == "fail"


def test_engine_that_disagrees_is_loaded_where_that_is_allowed(folder: Path):
    bundle = Bundle.open(folder, allow_unverified=True)
    graph = dataclasses.replace(COLOURS, function=shifted)
    with bench(bundle, {"model": graph}) as made:
        check_engines(made.session, bundle, made.session.engine_files)
        assert made.session.engine_files["model"].verdict == "fail"


def test_engine_of_a_bundle_without_samples_stays_unchecked(tmp_path: Path):
    bundle = Bundle.open(write_tiny_bundle(tmp_path, batches=(1,), num_samples=0))
    with bench(bundle) as made:
        check_engines(made.session, bundle, made.session.engine_files)
        assert made.session.engine_files["model"].verdict == "not run"
