"""Networks that suppress nothing, all the way out: top rows, no iou_threshold, parity."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_models import frames_of, lively
from tiny_points import planted, point_network, two_people

from export.bundling import torch_results, trace_bases
from export.graph.lint import lint
from export.graph.operators import attach_functions
from export.graph.top_rows import take_top_rows
from export.proof.probes import probe_batches, probe_thresholds
from export.tasks.detection import EndToEnd
from runtime.contract.matching import Comparison, compare_detections
from runtime.contract.outputs import IOU_THRESHOLD, inputs_of, outputs_of
from training.layers.suppression import keep_rows

JOINT_PX = 0.1
BOX_PX = 0.01
SIZE_HW = (72, 104)  # sides at stride 8 and coarser are odd
MIDDLES = {"heatmap": -1.0, "joint_heatmap": -1.0, "size": 6.0}  # of maps, where it matters
CASES = [("centernet", "small"), ("centernet", "hourglass"), ("centernet_pose", "small")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def model(request):
    name, variant = request.param
    network = lively(point_network(name, variant, size_hw=SIZE_HW, max_detections=40))
    with torch.no_grad():  # scores and sizes spread as those of a trained network
        stacks = network(network.prepare(frames_of(2, SIZE_HW, seed=3))).stacks
        for head, maps in zip(network.heads, stacks, strict=True):
            for map_name, convolution in head.predict.items():
                factor = 1.5 / maps[map_name].std()
                convolution.weight *= factor
                middle = maps[map_name].mean((0, 2, 3)) - convolution.bias
                if map_name in MIDDLES:
                    convolution.bias.copy_(MIDDLES[map_name] - factor * middle)
    return network


@pytest.fixture(scope="module")
def portable(model):
    return attach_functions(trace_bases(model)["model"], early_exit=True, inline=True)


class OnnxSession:
    """ONNX Runtime on a graph, as the probes drive sessions."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        self.session = onnxruntime.InferenceSession(
            graph.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.session.run(None, feeds), strict=True))


class OpenVinoSession:
    """OpenVINO in float32 on a graph."""

    def __init__(self, graph: onnx.ModelProto, folder) -> None:
        openvino = pytest.importorskip("openvino")
        onnx.save(graph, folder / "graph.onnx")
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        self.compiled = openvino.Core().compile_model(folder / "graph.onnx", "CPU", options)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.compiled(feeds)
        return {port.any_name: found[port] for port in self.compiled.outputs}


def feeds_of(model, batch: int) -> dict[str, np.ndarray]:
    frames = frames_of(batch, SIZE_HW, seed=3).numpy()
    return {"image": frames, "score_threshold": np.full((batch, 1), 0.3, np.float32)}


def check_parity(model, session, batch: int) -> None:
    feeds = feeds_of(model, batch)
    comparison = Comparison(sigmas=getattr(model.spec, "sigmas", ()))
    compare_detections(torch_results(model, feeds), session.run(feeds), feeds, comparison)
    assert comparison.num_matched >= 3 * batch
    assert [u for u in comparison.unmatched if not u.is_explained] == []
    assert comparison.max_box_error_px <= BOX_PX
    assert max(comparison.joint_errors, default=0.0) <= JOINT_PX
    if model.task == "keypoints":
        assert len(comparison.joint_errors) > batch
        assert min(comparison.similarities) >= 0.999


def test_graph_has_neither_suppression_nor_its_threshold(model, portable):
    names = [spec.name for spec in inputs_of(model.task, is_suppressed=False)]
    assert [i.name for i in portable.graph.input] == names == ["image", "score_threshold"]
    assert [o.name for o in portable.graph.output] == [s.name for s in outputs_of(model.task)]
    plugin = attach_functions(trace_bases(model)["model"], early_exit=False, inline=False)
    assert [function.name for function in plugin.functions] == ["KestrelSelect"]
    assert lint(plugin, target="plugin") == lint(portable, target="portable") == []


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_finds_what_torch_finds(model, portable, batch):
    check_parity(model, OnnxSession(portable), batch)


@pytest.mark.parametrize("batch", [1, 3])
def test_openvino_finds_what_torch_finds(model, portable, batch, tmp_path):
    check_parity(model, OpenVinoSession(portable, tmp_path), batch)


def test_probes_pass_without_a_threshold_of_overlap(model, portable):
    class Described:
        classes, batches = model.spec.classes, (1, 4)

    session, feeds = OnnxSession(portable), feeds_of(model, 4)
    assert IOU_THRESHOLD.name not in feeds
    limits = {"score_threshold": feeds["score_threshold"]}
    assert probe_thresholds(session, Described, feeds["image"], limits) == []
    assert probe_batches(session, Described, feeds) == []


def test_equal_peaks_come_by_the_lower_cell():
    network = point_network("centernet").eval()
    raw = planted(network, two_people(0), (64, 96))
    heatmap = raw.stacks[0]["heatmap"][:1]
    heatmap[:] = -8
    cells = [(2, 20), (9, 3), (9, 11)]
    for row, column in cells:
        heatmap[0, 0, row, column] = 1.5
    raw = raw._replace(stacks=[{name: maps[:1] for name, maps in raw.stacks[0].items()}])
    found, limits = network.candidates(raw), torch.full((1, 1), 0.3)
    count, *_, anchors = EndToEnd(network).find_boxes(found, limits, None)
    assert count == 3
    assert anchors[0, :3].tolist() == [row * 24 + column for row, column in cells]


@pytest.mark.parametrize("most", [3, 8, 12], ids=lambda most: f"M{most}")
def test_top_rows_are_the_usable_ones_in_order_without_gaps(most):
    boxes = torch.arange(2 * 8 * 4.0).reshape(2, 8, 4)
    boxes[0, 1, 2], boxes[0, 4, 0], boxes[1, 0, 3] = torch.nan, torch.inf, -torch.inf
    scores = torch.linspace(0.9, 0.2, 8).repeat(2, 1)
    scores[0, 6:] = 0
    classes = torch.arange(8).repeat(2, 1)
    count, kept_boxes, kept_scores, labels, indices = take_top_rows(boxes, scores, classes, most)
    for row in range(2):
        kept = keep_rows(boxes[row], scores[row], classes[row], torch.tensor(0.5), "none")[:most]
        num = len(kept)
        assert count[row] == num
        assert indices[row, :num].tolist() == kept.tolist()
        assert torch.equal(kept_boxes[row, :num], boxes[row, kept])
        assert torch.equal(kept_scores[row, :num], scores[row, kept])
        assert labels[row, :num].tolist() == kept.tolist()
        for padding, value in ((kept_boxes, 0), (kept_scores, 0), (labels, -1), (indices, 0)):
            assert padding.shape[1] == most
            assert (padding[row, num:] == value).all()
    assert (count.dtype, labels.dtype, indices.dtype) == (torch.int32, torch.int32, torch.int64)
