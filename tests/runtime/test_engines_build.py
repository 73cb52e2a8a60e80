"""Real engines, built by TensorRT-RTX, which needs no GPU for that."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
from fake_bench import COLOURS
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from onnx import TensorProto, helper, numpy_helper

from runtime.contract.errors import EngineError
from runtime.engines.build import BuildOptions, build_plan
from runtime.engines.flavour import load_flavour, make_flavour
from runtime.engines.progress import BuildBar, PhaseTree

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build real engines")

SIZE = 16
SHAPES = {
    batch: {"image": (batch, SIZE, SIZE, 3), "score_threshold": (batch, 8)} for batch in (1, 4)
}


@pytest.fixture(scope="module")
def rtx():
    return load_flavour("tensorrt_rtx")


def write_model(path, nodes, inputs, outputs, constants=(), **options):
    """Write a graph; inputs and outputs are (name, type, shape)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path, **options)
    return path


def write_conv(path, *, half=False, seed=0, **options):
    """uint8 image -> Cast -> Transpose -> Conv -> mean -> minus thresholds, batch open."""
    kind = np.float16 if half else np.float32
    random = np.random.default_rng(seed)
    weight = random.normal(size=(8, 3, 3, 3)).astype(kind)
    nodes = [
        helper.make_node(
            "Cast", ["image"], ["pixels"], to=helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        ),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weight"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("Cast", ["active"], ["active32"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["active32", "axes"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "score_threshold"], ["scores"]),
    ]
    return write_model(
        path,
        nodes,
        [
            ("image", TensorProto.UINT8, ["B", SIZE, SIZE, 3]),
            ("score_threshold", TensorProto.FLOAT, ["B", 8]),
        ],
        [("scores", TensorProto.FLOAT, ["B", 8])],
        [("weight", weight), ("axes", np.array([2, 3]))],
        **options,
    )


@pytest.mark.parametrize(("precision", "half"), [("fp32", False), ("fp16", True)])
def test_uint8_image_thresholds_and_open_batch_build(tmp_path, rtx, precision, half):
    path = write_conv(tmp_path / "model.onnx", half=half)
    plan = build_plan(path, flavour=rtx, precision=precision, shapes=SHAPES)
    assert len(plan.data) > 10_000
    assert plan.seconds > 0


def test_external_weights_are_found_beside_the_file(tmp_path, rtx):
    path = write_conv(
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert (tmp_path / "weights.bin").stat().st_size > 0
    build_plan(path, flavour=rtx, precision="fp32", shapes=SHAPES)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(EngineError, match="refuses model.onnx"):
        build_plan(path, flavour=rtx, precision="fp32", shapes=SHAPES)


def test_targets_can_be_chosen(tmp_path, rtx):
    path = write_conv(tmp_path / "model.onnx")
    sizes = {
        targets: len(
            build_plan(
                path,
                flavour=rtx,
                precision="fp32",
                shapes=SHAPES,
                options=BuildOptions(targets=targets),
            ).data
        )
        for targets in ((), ("SM86",), ("SM86", "SM89"))
    }
    assert sizes[("SM86",)] < sizes[("SM86", "SM89")]


BAD_OPTIONS = {
    "an unknown target": (BuildOptions(targets=("SM87",)), "no target 'SM87'; choose of .*SM86"),
    "no target": (BuildOptions(targets=("NONE",)), "no target 'NONE'"),
    "current beside another": (BuildOptions(targets=("CURRENT", "SM86")), "CURRENT alone"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_targets_are_refused(tmp_path, rtx, options, message):
    path = write_conv(tmp_path / "model.onnx")
    with pytest.raises(EngineError, match=message):
        build_plan(path, flavour=rtx, precision="fp32", shapes=SHAPES, options=options)


def test_targets_are_refused_where_tensorrt_builds_for_its_own_gpu(tmp_path):
    flavour = make_flavour("tensorrt", FakeTensorRT(FakeCuda(), {"model": COLOURS}))
    with pytest.raises(EngineError, match="for tensorrt_rtx only"):
        build_plan(
            tmp_path / "model.onnx",
            flavour=flavour,
            precision="fp32",
            shapes={},
            options=BuildOptions(targets=("SM86",)),
        )


def _nonzero(path):
    return write_model(
        path,
        [helper.make_node("NonZero", ["x"], ["y"], name="find")],
        [("x", TensorProto.FLOAT, ["B", 8])],
        [("y", TensorProto.INT64, [2, "n"])],
    )


def _large_topk(path):
    return write_model(
        path,
        [helper.make_node("TopK", ["x", "k"], ["y", "i"], name="best")],
        [("x", TensorProto.FLOAT, ["B", 5000])],
        [("y", TensorProto.FLOAT, ["B", 3841]), ("i", TensorProto.INT64, ["B", 3841])],
        [("k", np.array([3841]))],
    )


def _mixed_types(path):
    return write_model(
        path,
        [helper.make_node("Add", ["x", "h"], ["y"], name="sum")],
        [("x", TensorProto.FLOAT, ["B", 8])],
        [("y", TensorProto.FLOAT, ["B", 8])],
        [("h", np.ones(8, np.float16))],
    )


def _uint8_arithmetic(path):
    return write_model(
        path,
        [helper.make_node("Mul", ["x", "x"], ["y"], name="square")],
        [("x", TensorProto.UINT8, ["B", 8])],
        [("y", TensorProto.UINT8, ["B", 8])],
    )


def _unknown_operator(path):
    return write_model(
        path,
        [helper.make_node("KestrelDream", ["x"], ["y"], name="dream", domain="kestrel")],
        [("x", TensorProto.FLOAT, ["B", 8])],
        [("y", TensorProto.FLOAT, ["B", 8])],
    )


def _garbage(path):
    path.write_bytes(b"this is no model " * 9)
    return path


REFUSED = {
    "NonZero": (_nonzero, r"node find \(NonZero\).*fixed output size"),
    "TopK over 3840": (_large_topk, "cannot build.*3840.*fewer candidates"),
    "mixed types": (_mixed_types, r"node sum \(Add\).*export that precision again"),
    "arithmetic on uint8": (_uint8_arithmetic, "only Cast may touch"),
    "unknown operator": (_unknown_operator, r"node dream \(KestrelDream\).*its body in standard"),
    "no ONNX file": (_garbage, "file is (empty or )?damaged"),
}


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_graph_gives_one_line_with_node_and_cure(tmp_path, rtx, write, message):
    path = write(tmp_path / "model.onnx")
    shapes = {1: {}, 4: {}}
    with pytest.raises(EngineError, match=f"(?is){message}") as caught:
        build_plan(path, flavour=rtx, precision="fp32", shapes=shapes)
    assert "\n" not in str(caught.value)
    assert "model.onnx" in str(caught.value)


def test_a_refusal_does_not_spoil_the_next_build(tmp_path, rtx):
    with pytest.raises(EngineError):
        build_plan(_nonzero(tmp_path / "bad.onnx"), flavour=rtx, precision="fp32", shapes={1: {}})
    path = write_conv(tmp_path / "model.onnx")
    build_plan(path, flavour=rtx, precision="fp32", shapes=SHAPES)
    assert rtx.library_log.take() == []


@pytest.mark.parametrize(
    "shape", [(1, SIZE, SIZE + 1, 3), (1, SIZE, SIZE), (2, SIZE, SIZE, -1)], ids=str
)
def test_shapes_that_do_not_fit_the_file_are_refused(tmp_path, rtx, shape):
    path = write_conv(tmp_path / "model.onnx")
    shapes = {1: {**SHAPES[1], "image": shape}}
    with pytest.raises(EngineError, match="input 'image' has shape.*the manifest wants"):
        build_plan(path, flavour=rtx, precision="fp32", shapes=shapes)


def test_fixed_batch_in_the_file_serves_that_batch_only(tmp_path, rtx):
    path = write_model(
        tmp_path / "model.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, [1, 8])],
        [("y", TensorProto.FLOAT, [1, 8])],
    )
    build_plan(path, flavour=rtx, precision="fp32", shapes={1: {"x": (1, 8)}})
    with pytest.raises(EngineError, match="batch 4"):
        build_plan(path, flavour=rtx, precision="fp32", shapes={1: {}, 4: {}})


def test_progress_rises_from_zero_to_near_one(tmp_path, rtx):
    seen = []
    path = write_conv(tmp_path / "model.onnx")
    build_plan(
        path,
        flavour=rtx,
        precision="fp32",
        shapes=SHAPES,
        progress=lambda fraction, phase: seen.append((fraction, phase)),
    )
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] < 0.2
    assert 0.8 < fractions[-1] <= 1
    assert any(phase == "Building engine" for _, phase in seen)


def test_ctrl_c_during_a_build_cancels_it_and_the_next_build_works(tmp_path, rtx):
    def interrupt(fraction, phase):
        raise KeyboardInterrupt

    path = write_conv(tmp_path / "model.onnx")
    with pytest.raises(KeyboardInterrupt):
        build_plan(path, flavour=rtx, precision="fp32", shapes=SHAPES, progress=interrupt)
    build_plan(path, flavour=rtx, precision="fp32", shapes=SHAPES)


def test_tf32_is_cleared_for_fp32_only(tmp_path):
    cleared = {}
    for precision in ("fp32", "fp16"):
        trt = FakeTensorRT(FakeCuda(), {"model": COLOURS})
        made = []

        class Builder(trt.Builder):
            def create_builder_config(self):
                made.append(super().create_builder_config())  # noqa: B023 (used within the loop)
                return made[-1]  # noqa: B023

        trt.Builder = Builder
        flavour = make_flavour("tensorrt", trt)
        shapes = {1: {}}
        build_plan(tmp_path / "model.onnx", flavour=flavour, precision=precision, shapes=shapes)
        cleared[precision] = made[0].cleared
    assert cleared == {"fp32": [trt.BuilderFlag.TF32], "fp16": []}


# Progress without TensorRT ----------------------------------------------------------------


def test_nested_phases_share_the_step_of_their_parent():
    tree = PhaseTree()
    tree.start("all", None, 4)
    tree.step("all", 0)
    tree.start("part", "all", 2)
    tree.step("part", 0)
    assert tree.fraction_at("part") == pytest.approx(0.25 + 0.5 / 4)
    tree.finish("part")
    tree.step("all", 1)
    assert tree.fraction_at("all") == pytest.approx(0.5)


def test_fraction_never_falls_and_never_leaves_its_range():
    tree = PhaseTree()
    tree.start("all", None, 1)
    tree.step("all", 5)
    assert tree.fraction_at("all") == 1
    tree.start("late", "all", 2)
    assert tree.fraction_at("late") == 1
    tree.step("unknown", 0)
    tree.finish("unknown")
    assert tree.fraction_at("unknown") == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_draws_on_a_terminal_and_leaves_the_line_clean():
    terminal = Terminal()
    bar = BuildBar("building engine", terminal)
    bar(0.5, "Timing tactics")
    bar.close()
    text = terminal.getvalue()
    assert "building engine [############............]  50%" in text
    assert text.endswith("\r\x1b[K")


def test_bar_writes_one_line_elsewhere():
    stream = io.StringIO()
    bar = BuildBar("building engine", stream)
    for step in range(20):
        bar(step / 20, "phase")
    bar.close()
    assert stream.getvalue().count("\n") == 1
    assert "\r" not in stream.getvalue()
