"""Weights on disk: large ones in one file, shared, aligned, readable; metadata replaced by key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

import export.graph.storage
from export.graph.storage import ALIGNMENT, move_weights, set_metadata, weight_bytes

WEIGHTS_BYTES = 2 * 64 * 64 * 4 + 2 * 64 * 4


@pytest.fixture
def model() -> onnx.ModelProto:
    """Two matrices of 16 KB and two biases of 256 bytes."""
    made = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]>\n'
        "net (float[B, 64] x) => (float[B, 64] y)\n"
        "{ a = Gemm(x, w0, b0)\n y = Gemm(a, w1, b1) }"
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w0", (64, 64)), ("b0", (64,)), ("w1", (64, 64)), ("b1", (64,))):
        value = rng.normal(0, 1, shape).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(value, name))
    return made


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.graph.storage, "EXTERNAL_LIMIT_BYTES", WEIGHTS_BYTES - 1)


def answer(source: bytes | str) -> np.ndarray:
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.arange(128, dtype=np.float32).reshape(2, 64)})[0]


def test_bytes_of_all_weights_are_counted(model):
    assert weight_bytes(model) == WEIGHTS_BYTES


def test_weights_up_to_the_limit_stay_in_the_file(model, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(export.graph.storage, "EXTERNAL_LIMIT_BYTES", WEIGHTS_BYTES)
    before = model.SerializeToString(deterministic=True)
    assert not move_weights(model, tmp_path, "w.weights")
    assert model.SerializeToString(deterministic=True) == before
    assert list(tmp_path.iterdir()) == []


def test_moved_weights_give_the_same_answers_in_onnx_runtime(model, tmp_path, low_limit):
    expected = answer(model.SerializeToString())
    assert move_weights(model, tmp_path, "w.weights")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert np.array_equal(answer(str(tmp_path / "m.onnx")), expected)


def test_moved_weights_begin_at_whole_pages_and_small_tensors_stay(model, tmp_path, low_limit):
    move_weights(model, tmp_path, "w.weights")
    places = {
        t.name: {entry.key: entry.value for entry in t.external_data}
        for t in model.graph.initializer
    }
    assert [name for name, place in places.items() if place] == ["w0", "w1"]
    assert all(int(places[name]["offset"]) % ALIGNMENT == 0 for name in ("w0", "w1"))
    assert places["w1"]["length"] == str(64 * 64 * 4)
    assert len(model.SerializeToString()) < 2048


def test_metadata_replaces_entries_of_the_same_key_and_keeps_the_others(model):
    set_metadata(model, {"a": "1", "b": "2"})
    set_metadata(model, {"b": "3"})
    assert {p.key: p.value for p in model.metadata_props} == {"a": "1", "b": "3"}
