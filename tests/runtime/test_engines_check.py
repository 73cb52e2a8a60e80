"""A fresh engine is held against PyTorch's results before anyone relies on it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from audited import make_document
from fake_bench import COLOURS, bench
from tiny_bundle import write_tiny_bundle

from runtime.contract.bundle import Bundle, hash_file
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


# ------------------------------------------------------------------- what the layers compute in


def test_audit_of_a_fresh_engine_is_kept_in_its_record(folder: Path):
    bundle = Bundle.open(folder)
    with bench(bundle) as made:
        made.trt.layers = make_document("FP32")
        check_engines(made.session, bundle, made.session.engine_files)
        path = made.session.engine_files["model"].path.with_suffix(".json")
    audit = json.loads(path.read_text())["check"]["audit"]
    assert (audit["verdict"], audit["shares"], audit["tail"]) == ("pass", {"fp32": 1}, {"fp32": 2})


def test_engine_that_computes_in_less_than_was_asked_for_is_refused(folder: Path):
    bundle = Bundle.open(folder)
    with bench(bundle) as made:
        made.trt.layers = make_document("FP16")
        engines = made.session.engine_files
        with pytest.raises(EngineError, match="fails its check on .*asked for fp32, not built"):
            check_engines(made.session, bundle, engines)
        assert engines["model"].verdict == "fail"
        assert "not built" in engines["model"].record["check"]["reasons"][0]


def test_engine_that_computes_in_less_is_loaded_where_that_is_allowed(folder: Path):
    bundle = Bundle.open(folder, allow_unverified=True)
    with bench(bundle) as made:
        made.trt.layers = make_document("FP16")
        check_engines(made.session, bundle, made.session.engine_files)
        assert made.session.engine_files["model"].verdict == "fail"


def test_engine_that_tells_nothing_of_its_layers_passes_by_its_results(folder: Path):
    bundle = Bundle.open(folder)
    with bench(bundle) as made:
        check_engines(made.session, bundle, made.session.engine_files)
        record = made.session.engine_files["model"].record
    assert (record["verdict"], record["check"]["audit"]["verdict"]) == ("pass", "not run")


# ------------------------------------------------------- a verdict belongs to what it was given for


def checked(folder: Path, graph=COLOURS, **changes: object) -> tuple[str, dict]:
    """Open the bundle and check its engines; the verdict it ends with, and the record."""
    bundle = Bundle.open(folder, allow_unverified=True)
    with bench(bundle, {"model": graph}) as made:
        for name, value in changes.items():
            setattr(made.session, name, value)
        check_engines(made.session, bundle, made.session.engine_files)
        engine = made.session.engine_files["model"]
        return engine.verdict, engine.record


def record_of(folder: Path) -> Path:
    (path,) = (folder / "engines").glob("*.json")
    return path


WRONG = dataclasses.replace(COLOURS, function=shifted)


def test_verdict_edited_by_hand_does_not_count(folder: Path, caplog):
    assert checked(folder, WRONG)[0] == "fail"
    path = record_of(folder)
    path.write_text(path.read_text().replace('"verdict": "fail"', '"verdict": "pass"'))
    assert checked(folder, WRONG)[0] == "fail"
    assert "was changed by hand: its verdict does not count" in caplog.text


def test_verdict_of_another_engine_does_not_count(folder: Path):
    checked(folder)
    record = json.loads(record_of(folder).read_text())
    engine = record_of(folder).with_suffix(".engine")
    engine.write_bytes(engine.read_bytes() + b" ")
    record["sha256"] = hash_file(engine)
    record_of(folder).write_text(json.dumps(record))
    bundle = Bundle.open(folder)
    with bench(bundle) as made:
        assert made.session.engine_files["model"].verdict == "not run"


@pytest.mark.parametrize(
    "changes",
    [{"device": "Thor (sm_110)"}, {"toolkit": "tensorrt 10.9.0"}],
    ids=["another device", "another TensorRT"],
)
def test_verdict_is_given_anew_where(changes, folder: Path):
    assert checked(folder)[0] == "pass"
    verdict, record = checked(folder, WRONG, **changes)
    assert verdict == "fail"
    assert record["check"].items() >= changes.items()


def test_verdict_is_given_anew_for_other_samples(folder: Path):
    assert checked(folder)[0] == "pass"
    samples = Bundle.open(folder).samples()
    feeds = {name: array[::-1].copy() for name, array in samples.feeds.items()}
    write_samples(folder / SAMPLES_NAME, {"model": Samples(feeds, COLOURS.function(feeds))})
    assert checked(folder, WRONG)[0] == "fail"


def test_verdict_is_kept_where_all_is_the_same(folder: Path):
    assert checked(folder)[0] == "pass"
    assert checked(folder, WRONG)[0] == "pass"  # not run again
