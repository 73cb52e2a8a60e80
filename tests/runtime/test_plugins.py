"""Our plugins as TensorRT's own Python code sees them, and what it would launch, launched."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kernel_calls import garbage, select, suppress
from kernel_cases import Config, make_case
from kernel_emulation import emulate
from plugin_module import Launch, build, install

from export.graph.nms import nms_function
from export.graph.operators import OUTPUTS
from export.graph.select import select_function
from runtime.contract.errors import EngineError
from runtime.engines import plugins
from runtime.engines.build import BuildOptions
from runtime.engines.fingerprint import Device
from runtime.engines.flavour import Flavour
from runtime.engines.kernels.shipped import KERNELS, NMS, SELECT, code_sha256, read_ptx

ORIN = Device("Orin", "8.7")
SELECT_ATTRIBUTES = {"activation": "sigmoid", "candidates": 100}
NMS_ATTRIBUTES = {"method": "fast", "max_detections": 40, "per_class_limit": 7}


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_state", plugins._State())
    monkeypatch.setattr(plugins, "_readable_isa", lambda: (8, 5))


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with monkeypatch.context() as patches:
        yield install(patches)


@pytest.fixture
def flavour(trt: Any) -> Flavour:
    return Flavour("tensorrt", trt, "11.4.0")


def build_select(trt: Any, batch: int, anchors: int, classes: int, **changes: Any) -> Launch:
    float32 = trt.DataType.FLOAT
    inputs = {
        "logits": (float32, (batch, anchors, classes)),
        "score_threshold": (float32, (batch, classes)),
    }
    return build(trt, plugins.SELECT_NODE, {**SELECT_ATTRIBUTES, **changes}, inputs)


def build_nms(trt: Any, batch: int, rows: int, **changes: Any) -> Launch:
    float32, int64 = trt.DataType.FLOAT, trt.DataType.INT64
    inputs = {
        "boxes": (float32, (batch, rows, 4)),
        "scores": (float32, (batch, rows)),
        "classes": (int64, (batch, rows)),
        "iou_threshold": (float32, (batch,)),
    }
    return build(trt, plugins.NMS_NODE, {**NMS_ATTRIBUTES, **changes}, inputs)


def run(launch: Launch, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Launch what the plan would hold: inputs, then numbers, then outputs."""
    kinds = {"FLOAT": np.float32, "INT32": np.int32, "INT64": np.int64}
    outputs = [
        garbage(shape, kinds[kind.name])
        for shape, kind in zip(launch.output_shapes, launch.output_types, strict=True)
    ]
    kernel = next(kernel for kernel in KERNELS if kernel.name == launch.entry)
    emulate(kernel.source).launch(
        launch.entry,
        launch.grid,
        launch.block,
        [*map(np.ascontiguousarray, inputs), *launch.numbers, *outputs],
        shared_bytes=launch.shared_bytes,
    )
    return outputs


@pytest.mark.parametrize(
    ("batch", "anchors", "activation"), [(1, 400, "sigmoid"), (3, 5000, "none")]
)
def test_select_plugin_launches_its_kernel(
    trt: Any, flavour: Flavour, batch: int, anchors: int, activation: str
):
    plugins.register_plugins(flavour, ORIN)
    launch = build_select(trt, batch, anchors, 8, activation=activation)
    case, _ = make_case(Config(100, 1, anchors, 8, batch, activation), 1)
    outputs = run(launch, [case["logits"], case["score_threshold"]])
    expected = select(case["logits"], case["score_threshold"], 100, activation)
    assert len(outputs) == 4  # the last is scratch, which no node reads
    for ours, theirs in zip(outputs, expected, strict=False):
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("method", plugins.METHODS)
def test_nms_plugin_launches_its_kernel(trt: Any, flavour: Flavour, method: str):
    plugins.register_plugins(flavour, ORIN)
    launch = build_nms(trt, 2, 100, method=method)
    case, _ = make_case(Config(100, 40, 300, 3, 2), 0)
    scores, anchors, classes = select(case["logits"], case["score_threshold"], 100)
    boxes = np.take_along_axis(case["boxes"], anchors[..., None], axis=1)
    feeds = (boxes, scores, classes, case["iou_threshold"])
    expected = suppress(*feeds, 40, method, 7)
    for ours, theirs in zip(run(launch, list(feeds)), expected.values(), strict=True):
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()


def test_entry_parameters_are_inputs_then_numbers_then_outputs(trt: Any, flavour: Flavour):
    plugins.register_plugins(flavour, ORIN)
    launches = ((SELECT, build_select(trt, 1, 90, 4), 2), (NMS, build_nms(trt, 1, 60), 4))
    for kernel, launch, num_inputs in launches:
        kinds = [parameter.kind for parameter in kernel.parameters]
        num_outputs = len(launch.output_shapes)
        expected = ["pointer"] * num_inputs + ["i32"] * len(launch.numbers)
        assert kinds == [*expected, *["pointer"] * num_outputs]


def test_attributes_of_a_node_are_those_that_its_plugin_registers(trt: Any, flavour: Flavour):
    plugins.register_plugins(flavour, ORIN)
    registry = trt.get_plugin_registry()
    for function in (select_function(), nms_function(early_exit=False)):
        creator = registry.get_creator(function.name, "1", function.domain)
        declared = {entry.name for entry in function.attribute_proto} | set(function.attribute)
        assert {field.name for field in creator.field_names} == declared


def test_plugin_outputs_have_the_order_and_types_of_the_nodes(trt: Any, flavour: Flavour):
    plugins.register_plugins(flavour, ORIN)
    built = {"KestrelSelect": build_select(trt, 1, 90, 4), "KestrelNms": build_nms(trt, 1, 60)}
    names = {"FLOAT": "float", "INT32": "int32", "INT64": "int64"}
    for node, launch in built.items():
        kinds = [names[kind.name] for kind in launch.output_types]
        expected = [kind for kind, _ in OUTPUTS[node].values()]
        assert kinds[: len(expected)] == expected


def test_plan_holds_the_ptx_of_the_device(trt: Any, flavour: Flavour):
    plugins.register_plugins(flavour, ORIN)
    assert build_nms(trt, 1, 60).ptx == read_ptx(NMS, (8, 7))[0]
    plugins.register_plugins(flavour, Device("T4", "7.5"))
    assert b".target sm_75" in build_nms(trt, 1, 60).ptx


def test_plan_for_many_gpus_holds_the_ptx_of_the_oldest(trt: Any, flavour: Flavour):
    options = BuildOptions(is_hardware_compatible=True)
    plugins.register_plugins(flavour, Device("H100", "9.0"), options)
    assert b".target sm_80" in build_select(trt, 1, 90, 4).ptx


def test_registering_again_changes_nothing_and_gives_the_same_hash(flavour: Flavour):
    first = plugins.register_plugins(flavour, ORIN)
    assert first == plugins.register_plugins(flavour, ORIN) == code_sha256(SELECT, NMS)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_a_tensorrt_without_such_plugins_builds_the_definition(name: str):
    old = SimpleNamespace(__name__=name, __version__="10.3.0")
    assert plugins.with_plugins(lambda code: code, Flavour(name, old, "10.3.0"), ORIN) == ""


def test_a_gpu_older_than_our_ptx_builds_the_definition(flavour: Flavour, trt: Any):
    assert plugins.register_plugins(flavour, Device("P100", "6.0")) == ""
    assert not trt.get_plugin_registry().creators


def test_a_build_that_fails_with_plugins_is_done_without(
    flavour: Flavour, trt: Any, caplog: pytest.LogCaptureFixture
):
    tried = []

    def build_engine(code: str) -> str:
        tried.append(code)
        if code:
            assert len(trt.get_plugin_registry().creators) == 2
            raise EngineError("tensorrt cannot build model.onnx: PTX is not to its taste.")
        assert not trt.get_plugin_registry().creators  # the parser finds the local functions
        return "engine"

    assert plugins.with_plugins(build_engine, flavour, ORIN) == "engine"
    assert tried == [code_sha256(SELECT, NMS), ""]
    assert "building without our kernels" in caplog.text
    assert plugins.with_plugins(lambda code: code, flavour, ORIN) == ""


def test_a_build_that_fails_without_plugins_says_why(flavour: Flavour):
    def build_engine(code: str) -> str:
        raise EngineError(f"refused with {code or 'nothing'}")

    with pytest.raises(EngineError, match="refused with nothing"):
        plugins.with_plugins(build_engine, flavour, ORIN)


def test_more_rows_than_the_kernels_hold_are_refused(trt: Any, flavour: Flavour):
    plugins.register_plugins(flavour, ORIN)
    with pytest.raises(ValueError, match="KestrelSelect has 2049 rows; its kernel takes 2048"):
        build_select(trt, 1, 4000, 2, candidates=plugins.MOST_ROWS + 1)
    with pytest.raises(ValueError, match="KestrelNms has 3000 rows; its kernel takes 2048"):
        build_nms(trt, 1, 3000)
    with pytest.raises(ValueError, match=r"4294967296 logits an image; its kernel counts to 2\^32"):
        build_select(trt, 1, 2**24, 2**8)


def test_words_that_the_kernels_do_not_know_are_refused(trt: Any, flavour: Flavour):
    plugins.register_plugins(flavour, ORIN)
    with pytest.raises(ValueError, match="knows no 'softmax'; expected one of: none, sigmoid"):
        build_select(trt, 1, 400, 2, activation="softmax")
    with pytest.raises(ValueError, match="knows no 'soft'; expected one of: greedy, fast"):
        build_nms(trt, 1, 30, method="soft")
