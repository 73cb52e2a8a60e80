"""The two operators in torch, their nodes in ONNX, and a toy detector through every engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.helper
import onnx.parser
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn

from export.graph.lint import lint
from export.graph.nms import nms_function
from export.graph.operators import attach_functions, select_pairs, suppress, translation_table
from export.graph.select import select_function
from export.graph.walking import walk

Arrays = dict[str, np.ndarray]

SIZE, STRIDE, CLASSES, CANDIDATES, KEPT = 48, 4, 5, 60, 30
OUTPUTS = ["num_detections", "boxes_xyxy", "scores", "classes"]
BOX_TOLERANCE_PX = 1e-3  # convolutions of two engines differ in the last bits
SCORE_TOLERANCE = 1e-5


class ToyDetector(nn.Module):
    """One convolution, two heads, boxes decoded for the selected rows only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 5, stride=STRIDE, padding=2)
        self.logits = nn.Conv2d(16, CLASSES, 3, padding=1)
        self.sides = nn.Conv2d(16, 4, 3, padding=1)

    def forward(
        self, image: Tensor, score_threshold: Tensor, iou_threshold: Tensor
    ) -> tuple[Tensor, ...]:
        features = self.stem(image.float().permute(0, 3, 1, 2) / 64 - 2).relu()
        logits = self.logits(features).flatten(2).transpose(1, 2)  # (B, A, K)
        sides = self.sides(features).flatten(2).transpose(1, 2)  # (B, A, 4)
        scores, anchors, classes = select_pairs(logits, score_threshold, CANDIDATES, "sigmoid")
        chosen = sides.gather(1, anchors[..., None].expand(-1, -1, 4))  # (B, T, 4)
        across = SIZE // STRIDE
        centres = torch.stack([anchors % across, anchors // across], dim=2).float() * STRIDE
        boxes = torch.cat(
            [centres - chosen[..., :2].exp() * 4, centres + chosen[..., 2:].exp() * 4], dim=2
        )
        kept = suppress(boxes, scores, classes, iou_threshold, KEPT)
        return kept[0], kept[1], kept[2], kept[3]


@pytest.fixture(scope="module")
def detector() -> ToyDetector:
    torch.manual_seed(7)
    return ToyDetector().eval()


@pytest.fixture(scope="module")
def traced(detector: ToyDetector) -> onnx.ModelProto:
    """The toy detector as the exporter writes it: single nodes without bodies."""
    batch = torch.export.Dim("B", min=1)
    program = torch.onnx.export(
        detector,
        tuple(torch.from_numpy(array) for array in make_feeds(2).values()),
        dynamo=True,
        opset_version=18,
        input_names=list(make_feeds(2)),
        output_names=OUTPUTS,
        dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
        custom_translation_table=translation_table(),
        verbose=False,
    )
    return program.model_proto


def make_feeds(batch: int) -> Arrays:
    rng = np.random.default_rng(3)
    thresholds = rng.choice([0.3, 0.45, 1.0], (batch, CLASSES)).astype(np.float32)
    return {
        "image": rng.integers(0, 256, (batch, SIZE, SIZE, 3)).astype(np.uint8),
        "score_threshold": thresholds,
        "iou_threshold": np.full(batch, 0.4, np.float32),
    }


def run_torch(detector: ToyDetector, feeds: Arrays) -> Arrays:
    with torch.no_grad():
        outputs = detector(*(torch.from_numpy(array) for array in feeds.values()))
    return {name: output.numpy() for name, output in zip(OUTPUTS, outputs, strict=True)}


def run_onnxruntime(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return dict(zip(OUTPUTS, session.run(OUTPUTS, feeds), strict=True))


def run_openvino(model: onnx.ModelProto, feeds: Arrays, *, is_static: bool) -> Arrays:
    core = openvino.Core()
    network = core.read_model(model.SerializeToString())
    if is_static:
        network.reshape({name: list(array.shape) for name, array in feeds.items()})
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return dict(zip(OUTPUTS, map(np.array, compiled(feeds).values()), strict=True))


def assert_same_detections(got: Arrays, expected: Arrays) -> None:
    assert np.array_equal(got["num_detections"], expected["num_detections"])
    assert np.array_equal(got["classes"], expected["classes"])
    np.testing.assert_allclose(got["boxes_xyxy"], expected["boxes_xyxy"], atol=BOX_TOLERANCE_PX)
    np.testing.assert_allclose(got["scores"], expected["scores"], atol=SCORE_TOLERANCE)


# ------------------------------------------------------------------------------------------- export


def test_exporter_writes_one_node_for_each_operator(traced: onnx.ModelProto) -> None:
    ours = [node for node in traced.graph.node if node.domain == "kestrel"]
    assert [node.op_type for node in ours] == ["KestrelSelect", "KestrelNms"]
    assert [len(node.output) for node in ours] == [3, 5]
    attributes = [
        {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        for node in ours
    ]
    assert attributes[0] == {"candidates": CANDIDATES, "activation": b"sigmoid"}
    assert attributes[1] == {"max_detections": KEPT, "method": b"greedy", "per_class_limit": 200}


@pytest.mark.parametrize("early_exit", [True, False], ids=["early_exit", "fixed_trips"])
@pytest.mark.parametrize("inline", [True, False], ids=["inlined", "functions"])
def test_every_tensor_is_typed_but_for_the_batch(
    traced: onnx.ModelProto, early_exit: bool, inline: bool
) -> None:
    model = attach_functions(traced, early_exit=early_exit, inline=inline)
    infos = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        for name in node.output:
            kind = infos[name].type.tensor_type
            sizes = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
            assert kind.elem_type, name
            assert all(size == "B" or isinstance(size, int) for size in sizes), (name, sizes)
            assert "B" not in sizes[1:], (name, sizes)
    assert not lint(model, target="portable" if inline else "plugin")


def test_inlined_model_has_standard_operators_only(traced: onnx.ModelProto) -> None:
    model = attach_functions(traced, early_exit=True, inline=True)
    assert not model.functions
    assert {node.domain for node in walk(model.graph.node)} == {""}
    assert [entry.domain for entry in model.opset_import] == [""]


def test_attaching_again_exchanges_the_body(traced: onnx.ModelProto) -> None:
    once = attach_functions(traced, early_exit=True, inline=False)
    twice = attach_functions(once, early_exit=False, inline=False)
    assert len(once.functions) == len(twice.functions) == 2
    assert twice.functions[1] == nms_function(early_exit=False)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("early_exit", [True, False], ids=["early_exit", "fixed_trips"])
def test_torch_onnxruntime_and_openvino_find_the_same(
    detector: ToyDetector, traced: onnx.ModelProto, early_exit: bool, batch: int
) -> None:
    feeds = make_feeds(batch)
    expected = run_torch(detector, feeds)
    assert 3 < expected["num_detections"].min() <= expected["num_detections"].max() <= KEPT
    inlined = attach_functions(traced, early_exit=early_exit, inline=True)
    functions = attach_functions(traced, early_exit=early_exit, inline=False)
    assert_same_detections(run_onnxruntime(inlined, feeds), expected)
    assert_same_detections(run_onnxruntime(functions, feeds), expected)
    assert_same_detections(run_openvino(inlined, feeds, is_static=True), expected)
    assert_same_detections(run_openvino(inlined, feeds, is_static=False), expected)


def test_openvino_keeps_selection_and_suppression_in_float32_under_a_bf16_hint(
    traced: onnx.ModelProto,
) -> None:
    """bf16 reaches what feeds a convolution or MatMul; ours must lie behind the last of these."""
    model = attach_functions(traced, early_exit=True, inline=True)
    core = openvino.Core()
    network = core.read_model(model.SerializeToString())
    network.reshape({name: list(array.shape) for name, array in make_feeds(1).items()})
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    precisions = {}
    for layer in compiled.get_runtime_model().get_ordered_ops():
        info = {key: str(value.value) for key, value in layer.get_rt_info().items()}
        if "Kestrel" in info.get("originalLayersNames", ""):
            precisions[layer.get_friendly_name()] = info["outputPrecisions"]
    assert len(precisions) > 30
    assert not {name: kind for name, kind in precisions.items() if "16" in kind}


# ------------------------------------------------------------------------------------- TensorRT-RTX


def build_rtx(model: onnx.ModelProto, batch: int) -> list[str]:
    """Build an engine without a GPU, of one batch size; gives the builder's log."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: object, message: str) -> None:
            self.lines.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = (batch, *tuple(tensor.shape)[1:])
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, log.lines[-5:]
    return log.lines


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("inline", [True, False], ids=["inlined", "functions"])
def test_rtx_builds_fixed_trips_without_a_copy_to_the_host(
    traced: onnx.ModelProto, inline: bool, batch: int
) -> None:
    log = build_rtx(attach_functions(traced, early_exit=False, inline=inline), batch)
    assert any(line.startswith("Layers:") for line in log)
    assert not [line for line in log if "copy_d2h" in line]


def test_rtx_copies_to_the_host_with_early_exit(traced: onnx.ModelProto) -> None:
    """This is what the test above would see; without it that test could pass by looking away."""
    log = build_rtx(attach_functions(traced, early_exit=True, inline=True), 1)
    assert [line for line in log if "copy_d2h" in line]


# ---------------------------------------------------------------------------------------- operators


def random_logits(seed: int) -> tuple[Tensor, Tensor]:
    """Logits (2, 50, 4) with ties and thresholds (2, 4)."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(2, 50, 4, generator=generator) * 4).round() / 4
    return logits, torch.rand(2, 4, generator=generator)


def test_operators_pass_the_checks_of_torch() -> None:
    logits, thresholds = random_logits(0)
    torch.library.opcheck(select_pairs, (logits, thresholds, 20, "sigmoid"))
    scores, anchors, classes = select_pairs(logits, thresholds, 20, "sigmoid")
    boxes = torch.rand(2, 20, 4)
    torch.library.opcheck(suppress, (boxes, scores, classes, torch.full((2,), 0.5), 10))


def run_select_function(logits: Tensor, thresholds: Tensor, count: int) -> list[np.ndarray]:
    """Run the body for scores that are probabilities already."""
    batch, anchors, classes = logits.shape
    graph = onnx.parser.parse_graph(
        f"pick (float[{batch}, {anchors}, {classes}] x, float[{batch}, {classes}] y)"
        f"=> (float[{batch}, {count}] s, int64[{batch}, {count}] a, int64[{batch}, {count}] c)"
        f'{{ s, a, c = kestrel.KestrelSelect<candidates = {count}, activation = "none">(x, y) }}'
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("kestrel", 1)]
    function = select_function(activation="none")
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": logits.numpy(), "y": thresholds.numpy()})


def test_scores_that_are_probabilities_stay_as_they_are() -> None:
    logits, thresholds = random_logits(1)
    scores = logits.sigmoid()
    thresholds[0, 0], thresholds[1, 1] = 0.0, 1.5
    thresholds[0, 1] = scores[0, 0, 1]  # exactly at the threshold: not over it
    scores[0, 3] = 0  # and 0 is not over 0
    expected = select_pairs(scores, thresholds, 60, "none")
    for got, want in zip(run_select_function(scores, thresholds, 60), expected, strict=True):
        assert np.array_equal(got, want.numpy())
    flat = scores.gather(1, expected[1][..., None].expand(-1, -1, 4)).gather(
        2, expected[2][..., None]
    )
    assert torch.equal(torch.where(expected[0] > 0, flat[..., 0], 0), expected[0])


def node_model(*lines: str) -> onnx.ModelProto:
    """A graph of the given nodes over x (B, 9, 2), y (B, 2)."""
    graph = onnx.parser.parse_graph(
        "g (float[B, 9, 2] x, float[B, 2] y) => (float[B, 4] s) {" + "\n".join(lines) + "}"
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("kestrel", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: select_pairs(x, y, 201, "sigmoid"), "candidates is 201, expected 1 to 200"),
        (lambda x, y: select_pairs(x, y, 0, "sigmoid"), "candidates is 0"),
        (lambda x, y: select_pairs(x, y, 20, "softmax"), "activation is 'softmax'"),
        (lambda x, y: select_pairs(x.half(), y, 20, "none"), "logits is torch.float16"),
        (lambda x, y: suppress(x, y, y.long(), y[:, 0], 0), "max_detections is 0"),
        (lambda x, y: suppress(x, y, y, y[:, 0], 1), "classes is torch.float32"),
        (lambda x, y: select_function(activation="softmax"), "activation is 'softmax'"),
        (lambda x, y: select_function(opset=17), "opset is 17"),
        (lambda x, y: nms_function(early_exit=True, opset=20), "opset is 20"),
        (lambda x, y: nms_function(early_exit=True, steps_per_iteration=0), "at least 1"),
    ],
)
def test_operators_refuse_what_they_cannot_do(
    call: Callable[[Tensor, Tensor], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(*random_logits(0))


def test_attaching_refuses_two_activations_in_one_model() -> None:
    model = node_model(
        's, a, c = kestrel.KestrelSelect<candidates = 4, activation = "none">(x, y)',
        't, d, e = kestrel.KestrelSelect<candidates = 4, activation = "sigmoid">(x, y)',
    )
    with pytest.raises(ValueError, match=r"activations \['none', 'sigmoid'\], expected one"):
        attach_functions(model, early_exit=True, inline=True)


def test_attaching_refuses_an_unknown_node() -> None:
    with pytest.raises(ValueError, match="KestrelOther in domain 'kestrel'"):
        attach_functions(node_model("s = kestrel.KestrelOther(x)"), early_exit=True, inline=True)
