"""A model for video as a bundle: two graphs, state between them, and the proof of both."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from calling import call
from onnx import TensorProto, numpy_helper
from tiny_instance import TinySpec
from tiny_temporal import tiny_temporal, write_clips

import export.bundling
import export.verify
from export.adding import add_int8, float_graphs
from export.bundling import ExportOptions, make_samples, write_bundle
from export.graph.end_to_end import state_of
from export.precision.int8.calibration import hash_network
from export.proof.clip_reference import ClipReference, OneGraph
from export.showing.describe import describe
from export.verify import verify_bundle
from runtime.contract.bundle import VERIFY_NAME, Bundle, hash_file
from runtime.contract.errors import BundleError
from runtime.contract.limits import judge, limits_of
from runtime.contract.manifest import MANIFEST_NAME
from runtime.contract.outputs import KEY, NONKEY
from runtime.contract.samples import SAMPLES_NAME, Samples, write_samples
from runtime.engines.check import find_faults
from runtime.sessions import open_session
from training.loop.checkpoint import load_release, save_release
from training.models import REGISTRY
from training.models.base import TemporalModel

PRECISIONS = ("fp32", "fp16", "int8")
FRAMES = 10  # of a clip
MASK_IOU = 0.99
QUIET = {"report": lambda line: None}


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The tiny model is exported as any other, by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, "tiny_temporal", "tiny_temporal:TinyTemporal")
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), TinySpec().size_hw)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "tiny.safetensors"
    save_release(path, "tiny_temporal", tiny_temporal(), training={"data": "x"}, scores={})
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> TemporalModel:
    loaded, _ = load_release(checkpoint, "tiny_temporal")
    assert isinstance(loaded, TemporalModel)
    return loaded


@pytest.fixture(scope="module")
def written(checkpoint: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle in every precision; tests must not change it."""
    out = tmp_path_factory.mktemp("exported") / "tiny"
    options = ExportOptions(
        model="tiny_temporal", variant=None, checkpoint=checkpoint, size_hw=None, out=out,
        data=str(clips), precisions=PRECISIONS, calibration_images=6,
    )  # fmt: skip
    write_bundle(options, **QUIET)
    return out


@pytest.fixture
def changing(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(written, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def reference(model: TemporalModel, written: Path, clips: Path) -> ClipReference:
    """PyTorch's answers to three clips of ten frames."""
    manifest = Bundle.open(written).manifest
    return ClipReference.make(
        model, manifest, str(clips), floor=None, score_floor=0.001, gated=("mask_AP",)
    )


def signature(info: onnx.ValueInfoProto) -> tuple[int, list[object]]:
    kind = info.type.tensor_type
    return kind.elem_type, [side.dim_param or side.dim_value for side in kind.shape.dim]


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("precision", PRECISIONS)
def test_state_has_one_name_type_and_shape_on_both_sides(written, precision):
    bundle = Bundle.open(written)
    key, nonkey = (onnx.load(bundle.file(each, precision)).graph for each in (KEY, NONKEY))
    given = {info.name: signature(info) for info in key.output}
    taken = {info.name: signature(info) for info in nonkey.input}
    assert bundle.manifest.state == {"features": "features_key", "source": "source_key"}
    for output, name in bundle.manifest.state.items():
        assert given[output] == taken[name]
        expected = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        assert given[output][0] == expected


def test_key_gives_the_task_s_outputs_and_nonkey_the_change_as_well(written):
    bundle = Bundle.open(written)
    names = {
        graph: [info.name for info in onnx.load(bundle.file(graph, "fp32")).graph.output]
        for graph in (KEY, NONKEY)
    }
    manifest = bundle.manifest
    assert [spec.name for spec in manifest.outputs] == names[NONKEY]
    assert names[KEY] == [spec.name for spec in manifest.outputs[:-1]] + [*manifest.state]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_features_are_sampled_in_float32_and_never_in_int8(written, precision):
    bundle = Bundle.open(written)
    graph = onnx.load(bundle.file(NONKEY, precision, "plugin")).graph
    types = {i.name: i.type.tensor_type.elem_type for i in (*graph.value_info, *graph.input)}
    makers = {name: node.op_type for node in graph.node for name in node.output}
    (node,) = [each for each in graph.node if each.op_type == "GridSample"]
    assert [types[name] for name in node.input] == [TensorProto.FLOAT] * 2
    assert makers[node.input[1]] != "DequantizeLinear"


def test_int8_products_of_both_graphs_are_int8_but_for_heads_and_the_flow(written):
    bundle = Bundle.open(written)
    found = {}
    for graph in (KEY, NONKEY):
        nodes = onnx.load(bundle.file(graph, "int8", "plugin")).graph.node
        dequantised = {n.output[0] for n in nodes if n.op_type == "DequantizeLinear"}
        convolutions = [node for node in nodes if node.op_type == "Conv"]
        found[graph] = [
            node.input[1].split(".")[1] for node in convolutions if node.input[1] in dequantised
        ]
    assert found == {KEY: ["stem", "trunk"], NONKEY: ["stem", "now"]}


def test_samples_are_key_frames_and_three_frames_that_lean_on_each(written, model, clips):
    key, nonkey = (Bundle.open(written).samples(graph) for graph in (KEY, NONKEY))
    assert (len(key), len(nonkey)) == (3, 9)  # the data set has three clips
    assert nonkey.results["change"].shape == (9,)
    again = make_samples(model, str(clips))[NONKEY]
    for name, value in again.results.items():
        assert np.array_equal(value, nonkey.results[name])


def test_bundle_is_shown_without_problems(written):
    assert describe(written)["problems"] == []


def test_one_graph_s_file_alone_is_refused_with_what_to_give(written):
    with pytest.raises(BundleError, match=r"one of the graphs key, nonkey.*bundle's folder"):
        Bundle.open(written / "nonkey.fp32.onnx")


# ----------------------------------------------------------------------------------- three streams


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_three_interleaved_streams_find_what_torch_finds(written, reference, precision, backend):
    bundle = Bundle.open(written, allow_unverified=True)
    with contextlib.closing(open_session(bundle, backend, precision)) as session:
        outputs = reference.run(session)
    assert [len(clip) for clip in outputs] == [FRAMES] * 3
    comparison = reference.compare(outputs)
    figures = comparison.summary(limits_of(precision).near)
    assert comparison.num_matched >= 3 * FRAMES
    reasons = judge(figures, limits_of(precision))
    if precision == "int8":  # masks of random weights are noise around a half
        reasons = [reason for reason in reasons if "mask" not in reason]
    assert reasons == []
    if precision == "fp32":
        assert figures["unexplained"] == 0
        assert figures["min_mask_iou"] >= MASK_IOU


def test_streams_that_shared_their_state_would_show(written, reference):
    bundle = Bundle.open(written, allow_unverified=True)
    with (
        contextlib.closing(open_session(bundle, "onnxruntime", "fp32")) as session,
        contextlib.closing(session.open_stream()) as one,
    ):
        shared = reference.run(_SharedState(one))
    figures = reference.compare(shared).summary()
    assert figures["unexplained"] > 10


class _SharedState:
    """A session all of whose streams are one."""

    def __init__(self, stream) -> None:
        self.stream = stream

    def open_stream(self) -> _SharedState:
        return self

    def submit(self, feeds, graph):
        return self.stream.submit(feeds, graph)

    def close(self) -> None:
        """Others still use it."""


def test_key_frames_alone_are_run_as_a_session_of_one_graph(written, reference):
    bundle = Bundle.open(written, allow_unverified=True)
    with contextlib.closing(open_session(bundle, "onnxruntime", "fp32")) as session:
        feeds = {"image": reference.frames[0][:1], **reference.limits}
        assert "change" not in OneGraph(session, KEY).run(feeds)
        assert "change" in OneGraph(session, NONKEY).run(feeds)


# -------------------------------------------------------------------------------------------- proof


@pytest.fixture
def verify(checkpoint, clips, written, monkeypatch) -> Callable[[Path], list[str]]:
    """The proof of fp32 on ONNX Runtime, without another trace; gives its reasons."""
    monkeypatch.setattr(export.verify, "BACKENDS", ("onnxruntime",))
    traced = float_graphs(Bundle.open(written))
    monkeypatch.setattr(export.bundling, "trace_frames", lambda model: traced)

    def run(folder: Path) -> list[str]:
        verify_bundle(
            folder, checkpoint=checkpoint, data=str(clips), num_images=3, precisions=("fp32",)
        )
        document = json.loads((folder / VERIFY_NAME).read_text())
        (row,) = [each for each in document["artifacts"] if "made_on" not in each]
        assert row["verdict"] == ("fail" if row["reasons"] else "pass")
        return row["reasons"]

    return run


def change_weight(folder: Path, graph: str, weight: str, change: Callable) -> None:
    """Change a weight in the fp32 files of one graph, with the right hashes."""
    manifest = Bundle.open(folder).manifest
    hashes = dict(manifest.graphs[graph].sha256)
    for name in (f"{graph}.fp32.onnx", f"{graph}.fp32.plugin.onnx"):
        proto = onnx.load(folder / name)
        tensor = next(t for t in proto.graph.initializer if t.name == weight)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), weight))
        (folder / name).write_bytes(proto.SerializeToString())
        hashes[name] = hash_file(folder / name)
    entry = dataclasses.replace(manifest.graphs[graph], sha256=hashes)
    graphs = manifest.graphs | {graph: entry}
    (folder / MANIFEST_NAME).write_text(dataclasses.replace(manifest, graphs=graphs).to_json())


def test_faithful_bundle_passes_and_is_scored_on_frames_and_on_clips(changing, verify):
    assert verify(changing) == []
    document = json.loads((changing / VERIFY_NAME).read_text())
    row = document["artifacts"][-1]
    assert row["clips"]["matched"] >= 3 * FRAMES
    assert row["clips"]["min_mask_iou"] >= MASK_IOU
    assert row["clips"]["max_change_error_px"] <= limits_of("fp32").change_px
    for score in ("mask_AP", "clip_mask_AP"):
        assert abs(row[score] - document[f"{score}_checkpoint"]) <= 0.005


def test_flow_that_points_the_other_way_fails_on_clips_alone(changing, verify):
    change_weight(changing, NONKEY, "model.flow.weight", np.negative)
    reasons = verify(changing)
    assert any(reason.startswith("clips: ") for reason in reasons)
    assert not any(reason.startswith("box error") for reason in reasons)  # of key frames
    assert any("nonkey.fp32.onnx: weight model.flow.weight is -1 times" in r for r in reasons)


def test_samples_of_frames_between_key_frames_that_are_not_torch_s_fail(changing, verify):
    samples = {graph: Bundle.open(changing).samples(graph) for graph in (KEY, NONKEY)}
    results = dict(samples[NONKEY].results)
    results["boxes_xyxy"] = results["boxes_xyxy"] + np.float32(0.2)
    samples[NONKEY] = Samples(samples[NONKEY].feeds, results)
    write_samples(changing / SAMPLES_NAME, samples)
    assert any("samples are not PyTorch's results: box error" in each for each in verify(changing))


def test_samples_of_one_graph_alone_fail(changing, verify):
    write_samples(changing / SAMPLES_NAME, {KEY: Bundle.open(changing).samples(KEY)})
    assert any("expected as many of nonkey for each of key" in each for each in verify(changing))


def test_engine_s_check_runs_key_frames_before_those_that_lean_on_them(changing):
    bundle = Bundle.open(changing, allow_unverified=True)
    key, nonkey = (bundle.samples(graph) for graph in (KEY, NONKEY))
    with contextlib.closing(open_session(bundle, "onnxruntime", "fp32")) as session:
        assert find_faults(session, KEY, key) == []
        assert find_faults(session, NONKEY, nonkey, key) == []
        turned = Samples({name: value[::-1] for name, value in key.feeds.items()}, key.results)
        assert find_faults(session, NONKEY, nonkey, turned) != []


# ------------------------------------------------------------------------------- adding precisions


def test_int8_is_added_as_the_export_writes_it(changing, written, clips):
    for graph in (KEY, NONKEY):
        (changing / f"{graph}.int8.onnx").unlink()
    add_int8(changing, data=str(clips), count=6, **QUIET)
    names = [
        each for graph in (KEY, NONKEY) for each in (f"{graph}.int8.onnx", f"{graph}.int8.cpu.onnx")
    ]
    for name in names:
        ours, theirs = (hash_network(onnx.load(folder / name)) for folder in (changing, written))
        assert ours == theirs
    assert describe(changing)["problems"] == []


def test_stored_ranges_of_both_graphs_are_taken_again(changing, written):
    add_int8(changing, stored=written / "calibration.json", count=0, **QUIET)
    assert json.loads((changing / "calibration.json").read_text()) == json.loads(
        (written / "calibration.json").read_text()
    )


def test_mixed_is_refused_in_a_line_before_anything_is_written(
    changing, clips, checkpoint, tmp_path
):
    options = ("--data", clips, "--checkpoint", checkpoint, "--ap-budget", 0.01)
    done = call("export.quantize", changing, *options)
    assert done.returncode == 2
    assert "has the graphs key, nonkey; mixed is searched on one graph" in done.stderr
    out = tmp_path / "new"
    done = call("export.to_onnx", "--model", "tiny_temporal", *options, "--out", out)
    assert done.returncode == 2
    assert "tiny_temporal has several graphs" in done.stderr
    assert not out.exists()


def test_state_is_named_after_what_the_model_leaves(model):
    assert state_of(model) == {"features": "features_key", "source": "source_key"}
