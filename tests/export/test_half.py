"""The fp16 graph: typed as stated, close to float32, accepted by every backend."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_models import frames_of
from typed_graphs import FLOAT, HALF, casts_of, parse, types_of, weight

from export.graph import storage
from export.graph.lint import lint
from export.graph.walking import reads
from export.precision.audit import find_type_fault, share_of_half
from export.precision.half import to_half
from export.precision.writing import write_files
from export.proof.files import find_file_fault
from export.verify import MAX_AP_DROP, verify_artifact
from runtime.contract.bundle import PRECISION_KEY, Bundle, hash_file
from runtime.contract.limits import LIMITS, Limits, judge
from runtime.contract.manifest import MANIFEST_NAME
from runtime.contract.matching import Comparison, Unmatched, compare_detections

# The tiny detector at the 99th percentile: 0.07 px and 0.0003 were seen. Its weights are random and
# its scores nearly equal, so that rounding reorders them: 3 % of results had no partner.
BOX_PX, SCORE = 0.3, 0.002
MATCHED = 0.9

# ------------------------------------------------------------------------------- a real detector


@pytest.fixture(scope="module")
def mixed(both: Path) -> onnx.ModelProto:
    """The fp16 graph with our nodes in it."""
    return onnx.load(both / "model.fp16.plugin.onnx")


def test_every_convolution_computes_in_half(mixed):
    types = types_of(mixed)
    convolutions = [node for node in mixed.graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        assert {types[name] for name in (*node.input, *node.output)} == {HALF}, node.name


def test_mean_is_subtracted_in_float32_right_before_the_first_convolution(mixed):
    nodes = list(mixed.graph.node)
    first = next(node for node in nodes if node.op_type == "Conv")
    cast = next(node for node in nodes if first.input[0] in node.output)
    before = next(node for node in nodes if cast.input[0] in node.output)
    assert (cast.op_type, before.op_type) == ("Cast", "Sub")
    assert types_of(mixed)[before.output[0]] == FLOAT


def test_only_borders_have_casts_and_none_follows_another(mixed):
    casts = casts_of(mixed)
    made = {node.output[0] for node in casts}
    assert not [node.name for node in casts if node.input[0] in made]
    # The image, into the trunk, and out of it for logits and boxes.
    assert len(casts) == 4


def test_every_float_behind_the_last_casts_is_float32(mixed):
    types = types_of(mixed)
    behind = {node.output[0] for node in casts_of(mixed) if types[node.output[0]] == FLOAT} - {
        node.output[0] for node in casts_of(mixed) if node.input[0] == "image"
    }
    assert behind
    for node in mixed.graph.node:
        if not behind.isdisjoint(reads(node)):
            behind.update(node.output)
    assert {output.name for output in mixed.graph.output} <= behind
    assert HALF not in {types[name] for name in behind}


def test_no_float32_weight_is_left_in_the_trunk(mixed, both):
    base = onnx.load(both / "model.fp32.plugin.onnx")
    assert share_of_half(mixed) == 1
    assert share_of_half(base) == 0


@pytest.mark.parametrize("kind", ["portable", "plugin"])
def test_mixed_graph_has_no_lint_findings(both, kind):
    name = "model.fp16.onnx" if kind == "portable" else "model.fp16.plugin.onnx"
    model = onnx.load(both / name)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert lint(model, target=kind) == []


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 4])
def test_detections_are_those_of_float32_but_for_rounding(both, backend, batch):
    from runtime.sessions import open_session

    pytest.importorskip(backend, reason="is the backend under test")
    bundle = Bundle.open(both)
    exact = open_session(bundle, "onnxruntime", "fp32", device="cpu", threads=1)
    rounded = open_session(bundle, backend, "fp16", threads=1)
    comparison = Comparison()
    for seed in range(4):
        feeds = {
            "image": frames_of(batch, seed=seed).numpy(),
            "score_threshold": np.full((batch, 3), 0.02, np.float32),
            "iou_threshold": np.full(batch, 0.5, np.float32),
        }
        compare_detections(exact.run(feeds), rounded.run(feeds), feeds, comparison)
    exact.close()
    rounded.close()
    figures = comparison.summary()
    assert figures["matched"] > MATCHED * (figures["matched"] + figures["unmatched"])
    assert 0 < figures["p99_box_error_px"] < BOX_PX
    assert 0 < figures["p99_score_error"] < SCORE


def test_every_precision_of_the_bundle_builds_an_engine_for_both_batches(both_to_change):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build real engines")
    from runtime.engines import build_all

    engines = build_all(both_to_change, flavour="tensorrt_rtx")
    identities = [engine.record["identity"] for engine in engines]
    assert [identity["precision"] for identity in identities] == ["fp32", "fp16"]
    assert [sorted(identity["shapes"]) for identity in identities] == [["1", "4"]] * 2


def test_conversion_leaves_the_float32_graph_alone(both):
    base = onnx.load(both / "model.fp32.plugin.onnx")
    before = base.SerializeToString(deterministic=True)
    to_half(base)
    assert base.SerializeToString(deterministic=True) == before


# ------------------------------------------------------------------------------------ the audit


def plant_float32(folder: Path, name: str, source: str) -> None:
    """Put the float32 file under another precision's name, with a right hash."""
    (folder / name).write_bytes((folder / source).read_bytes())
    manifest = Bundle.open(folder).manifest
    graph = manifest.graphs["model"]
    hashes = graph.sha256 | {name: hash_file(folder / name)}
    graphs = {"model": dataclasses.replace(graph, sha256=hashes)}
    text = dataclasses.replace(manifest, graphs=graphs).to_json()
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def test_float32_file_under_the_name_of_fp16_is_found(both_to_change):
    plant_float32(both_to_change, "model.fp16.onnx", "model.fp32.onnx")
    bundle = Bundle.open(both_to_change)
    assert find_file_fault(bundle, "fp16").startswith("model.fp16.onnx: 0% of its weights")
    assert find_file_fault(bundle, "fp32") == ""


def test_files_say_their_precision_and_carry_the_manifest(both):
    for name, precision in (("model.fp32.onnx", "fp32"), ("model.fp16.onnx", "fp16")):
        bundle = Bundle.open(both / name)
        assert bundle.manifest.precisions == (precision,)
        model = onnx.load(both / name)
        assert {p.key: p.value for p in model.metadata_props}[PRECISION_KEY] == precision


def test_large_weights_of_each_precision_go_to_a_file_of_their_own(both, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "EXTERNAL_LIMIT_BYTES", 0)
    monkeypatch.setattr(storage, "SMALL_TENSOR_BYTES", 64)
    base = onnx.load(both / "model.fp32.plugin.onnx")
    del base.functions[:]
    graph = write_files(base, "model", Bundle.open(both).manifest, tmp_path)
    sizes = [(tmp_path / f"model.{p}.weights").stat().st_size for p in ("fp32", "fp16")]
    assert sizes[1] < sizes[0]
    assert set(graph.sha256) == {path.name for path in tmp_path.iterdir()}
    for name in ("model.fp16.onnx", "model.fp16.plugin.onnx"):
        assert find_type_fault(onnx.load(tmp_path / name, load_external_data=False), "fp16") == ""
        inside, outside = onnx.load(both / name), onnx.load(tmp_path / name)
        values = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer}
                  for m in (inside, outside)]  # fmt: skip
        assert values[0].keys() == values[1].keys()
        assert all(np.array_equal(values[0][key], values[1][key]) for key in values[0])


def test_half_file_under_the_name_of_fp32_is_found(mixed):
    assert find_type_fault(mixed, "fp16") == ""
    assert "100% of its weights are half" in find_type_fault(mixed, "fp32")


def test_weights_that_are_stored_in_half_and_computed_in_float32_do_not_count():
    text = """
    net (float[B,3,8,8] x) => (float[B,4,8,8] y) {
        wide = Cast <to = 1> (w)
        y = Conv <pads = [1,1,1,1]> (x, wide)
    }
    """
    model = parse(text, w=weight(4, 3, 3, 3).astype(np.float16))
    assert share_of_half(model) == 0


def test_verify_fails_an_artifact_whose_file_is_of_another_precision(both_to_change):
    plant_float32(both_to_change, "model.fp16.plugin.onnx", "model.fp32.plugin.onnx")
    bundle = Bundle.open(both_to_change)
    artifact = verify_artifact(
        bundle, "fp16", "onnxruntime", SimpleNamespace(faults=[]), MAX_AP_DROP
    )
    assert artifact["verdict"] == "fail"
    assert "model.fp16.plugin.onnx: 0% of its weights are half" in artifact["reasons"][0]


# ----------------------------------------------------------------------------------- the verdict


def figures_of(comparison: Comparison, precision: str) -> tuple[dict, Limits]:
    limits = LIMITS[precision]
    return comparison.summary(limits.near), limits


def with_errors(box_px: float, score: float, *, worst_px: float = 0.0) -> Comparison:
    """1000 matched results with these errors, one of them with a larger one."""
    boxes = [box_px] * 999 + [max(box_px, worst_px)]
    return Comparison(num_matched=1000, box_errors=boxes, score_errors=[score] * 1000)


def test_fp16_is_judged_by_the_99th_percentile_and_fp32_by_the_worst():
    flipped = with_errors(0.02, 5e-4, worst_px=34.0)
    assert judge(*figures_of(flipped, "fp16")) == []
    assert "34 px (max) > 0.05 px" in judge(*figures_of(flipped, "fp32"))[0]


@pytest.mark.parametrize(("box_px", "score"), [(0.6, 0.0), (0.0, 0.02)], ids=["box", "score"])
def test_fp16_fails_where_most_results_are_off(box_px, score):
    assert len(judge(*figures_of(with_errors(box_px, score), "fp16"))) == 1


@pytest.mark.parametrize(("count", "num_reasons"), [(20, 0), (21, 1)], ids=["few", "many"])
def test_fp16_fails_where_more_than_two_hundredths_have_no_partner(count, num_reasons):
    comparison = with_errors(0.02, 5e-4)
    comparison.unmatched = [Unmatched(0, "reference", 0, 0.8, 0.5, 0.5)] * count
    assert len(judge(*figures_of(comparison, "fp16"))) == num_reasons
