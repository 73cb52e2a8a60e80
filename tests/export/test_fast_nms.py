"""KestrelNms of method "fast" is YOLACT's Fast NMS, bit for bit in choice and order.

The definition is a NumPy loop over rows, in float32. Beside it stands the published procedure (per
class: sort, the best 200, upper triangle of the IoU matrix, maximum of each column), as YOLACT's
`fast_nms` writes it. Both bodies run in ONNX Runtime and OpenVINO, the operator in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.helper
import onnx.inliner
import onnx.parser
import onnxruntime
import openvino
import pytest
import torch

from export.graph.lint import lint
from export.graph.nms import nms_function
from export.graph.operators import attach_functions, suppress

Arrays = dict[str, np.ndarray]
OUTPUTS = ["num_detections", "boxes_xyxy", "scores", "classes", "indices"]
PUBLISHED_CASES = 12
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Config:
    rows: int  # T
    kept: int  # M
    classes: int  # K
    batch: int  # B
    limit: int = 200  # of rows of a class
    cases: int = 60


CONFIGS = {
    "one_chunk": Config(40, 30, 3, 1),
    "one_row": Config(1, 3, 1, 2),
    "chunk_exactly_full": Config(63, 63, 2, 1),
    "more_kept_than_rows": Config(90, 120, 4, 3, cases=30),
    "limit_of_five_a_class": Config(150, 60, 3, 2, limit=5),
    "limit_of_200_binds": Config(300, 100, 1, 1, cases=25),
    "deployed_size": Config(300, 100, 8, 4, cases=12),
}


# ------------------------------------------------------------------------------------------ cases


def make_image(rng: np.random.Generator, config: Config) -> Arrays:
    """Clustered boxes (T, 4), falling scores (T), 0 in empty rows, classes (T), a threshold."""
    count = config.rows
    clusters = rng.uniform(0, 200, (int(rng.choice([2, 10, 80])), 2))
    centres = clusters[rng.integers(0, len(clusters), count)] + rng.normal(0, 5, (count, 2))
    sides = rng.uniform(4, 60, (count, 2))
    scores = np.sort(rng.uniform(0.01, 1, count))[::-1].copy()
    scores[rng.integers(0, count + 1) if rng.random() < 0.3 else count :] = 0
    return {
        "boxes": np.concatenate([centres - sides / 2, centres + sides / 2], axis=1),
        "scores": scores,
        "classes": rng.integers(0, config.classes, count),
        "iou_threshold": np.array(rng.choice([0.0, 0.3, 0.5, 0.7, 1.0])),
    }


def _add_ties(rng: np.random.Generator, image: Arrays) -> None:
    image["scores"] = np.ceil(image["scores"] * 8) / 8


def _add_integer_boxes(rng: np.random.Generator, image: Arrays) -> None:
    """IoUs of small integers hit the thresholds 1/2 and 1/4 exactly."""
    corners = rng.integers(0, 8, image["boxes"].shape)
    image["boxes"] = np.sort(corners.reshape(-1, 2, 2), axis=1).reshape(-1, 4).astype(float)
    image["iou_threshold"] = np.array(rng.choice([0.25, 0.5]))


def _add_chain(rng: np.random.Generator, image: Arrays) -> None:
    """Boxes in a row, each overlapping its neighbours: fast keeps the first alone."""
    left = np.arange(len(image["boxes"])) * 10.0
    image["boxes"] = np.stack([left, 0 * left, left + 40, 0 * left + 30], axis=1)
    image["classes"][:] = 0
    image["iou_threshold"] = np.array(0.5)


def _add_degenerate_boxes(rng: np.random.Generator, image: Arrays) -> None:
    boxes, kind = image["boxes"], rng.integers(0, 6, len(image["boxes"]))
    boxes[kind == 0, 2] = boxes[kind == 0, 0]
    boxes[kind == 1] = boxes[kind == 1][:, [2, 1, 0, 3]]
    boxes[kind == 2] = boxes[kind == 2][:, [2, 3, 0, 1]]


def _add_not_finite(rng: np.random.Generator, image: Arrays) -> None:
    image["boxes"][rng.random(image["boxes"].shape) < 0.1] = np.nan
    image["boxes"][rng.random(image["boxes"].shape) < 0.02] = np.inf


def _add_identical_boxes(rng: np.random.Generator, image: Arrays) -> None:
    image["boxes"][:] = image["boxes"][
        rng.integers(0, min(3, len(image["boxes"])), len(image["boxes"]))
    ]


ORDERLY = [_add_ties, _add_integer_boxes, _add_chain, _add_identical_boxes]
DISORDERLY = [_add_degenerate_boxes, _add_not_finite]


def make_case(config: Config, number: int, *, is_orderly: bool = False) -> Arrays:
    rng = np.random.default_rng([number, config.rows])
    images = []
    for _ in range(config.batch):
        image = make_image(rng, config)
        changes = ORDERLY if is_orderly else ORDERLY + DISORDERLY
        for place in rng.permutation(len(changes))[: rng.integers(0, 3)]:
            changes[place](rng, image)
        if is_orderly:  # 0 / 0 of a box without an area is not defined as published
            image["boxes"][:, 2:] += np.float32(1)
        images.append(image)
    case = {name: np.stack([image[name] for image in images]) for name in images[0]}
    return {
        name: array.astype(np.int64 if name == "classes" else np.float32)
        for name, array in case.items()
    }


# ------------------------------------------------------------------------------------- references


def overlap(a: np.ndarray, b: np.ndarray) -> np.float32:
    """IoU of two boxes in float32."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inter = np.float32(max(sides[0], np.float32(0)) * max(sides[1], np.float32(0)))
    areas = [max((box[2] - box[0]) * (box[3] - box[1]), TINY) for box in (a, b)]
    return np.float32(inter / np.float32(np.float32(areas[0] + areas[1]) - inter))


def keep_by_definition(image: Arrays, limit: int) -> np.ndarray:
    """The rows kept, one row after the other, without a matrix."""
    kept = []
    before: dict[int, list[int]] = {}
    for row, box in enumerate(image["boxes"]):
        if not image["scores"][row] > 0 or not np.isfinite(box).all():
            continue
        rivals = before.setdefault(int(image["classes"][row]), [])
        if len(rivals) < limit and not any(
            overlap(image["boxes"][rival], box) > image["iou_threshold"] for rival in rivals
        ):
            kept.append(row)
        rivals.append(row)
    return np.array(kept, np.int64)


def keep_as_published(image: Arrays, num_classes: int, limit: int) -> np.ndarray:
    """`fast_nms` of YOLACT: a (K, N) table of scores, then K matrices at once."""
    num_rows = len(image["scores"])
    table = np.zeros((num_classes, num_rows), np.float32)
    table[image["classes"], np.arange(num_rows)] = image["scores"]
    order = np.argsort(-table, axis=1, kind="stable")[:, :limit]  # (K, n)
    scores = np.take_along_axis(table, order, axis=1)
    boxes = image["boxes"][order]  # (K, n, 4)
    a, b = boxes[:, :, None], boxes[:, None]
    sides = np.clip(
        np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None
    )
    inter = sides[..., 0] * sides[..., 1]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    iou = np.triu(inter / (area[:, :, None] + area[:, None] - inter), k=1)
    is_kept = (iou.max(axis=1) <= image["iou_threshold"]) & (scores > 0)
    return np.sort(order[is_kept])


# ---------------------------------------------------------------------------------------- engines


def build_model(config: Config, *, early_exit: bool) -> onnx.ModelProto:
    b, t, m = config.batch, config.rows, config.kept
    graph = onnx.parser.parse_graph(
        f"""
        keep (float[{b}, {t}, 4] boxes, float[{b}, {t}] scores_in, int64[{b}, {t}] classes_in,
              float[{b}] iou_threshold)
            => (int32[{b}] num_detections, float[{b}, {m}, 4] boxes_xyxy, float[{b}, {m}] scores,
                int32[{b}, {m}] classes, int64[{b}, {m}] indices)
        {{
            num_detections, boxes_xyxy, scores, classes, indices
                = kestrel.KestrelNms<max_detections = {m}, method = "fast",
                                     per_class_limit = {config.limit}>
                (boxes, scores_in, classes_in, iou_threshold)
        }}
        """
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("kestrel", 1)]
    functions = [nms_function(early_exit=early_exit, method="fast")]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def run_onnxruntime(model: onnx.ModelProto) -> Callable[[Arrays], Arrays]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda feeds: dict(zip(OUTPUTS, session.run(OUTPUTS, feeds), strict=True))


def run_openvino(model: onnx.ModelProto, precision: str) -> Callable[[Arrays], Arrays]:
    core = openvino.Core()
    inlined = onnx.inliner.inline_local_functions(model)
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(inlined.SerializeToString()), "CPU", settings)
    return lambda feeds: dict(zip(OUTPUTS, map(np.array, compiled(feeds).values()), strict=True))


def run_torch(config: Config) -> Callable[[Arrays], Arrays]:
    def run(feeds: Arrays) -> Arrays:
        tensors = (torch.from_numpy(array) for array in feeds.values())
        found = suppress(*tensors, config.kept, "fast", config.limit)
        return dict(zip(OUTPUTS, (each.numpy() for each in found), strict=True))

    return run


def make_engines(config: Config) -> dict[str, Callable[[Arrays], Arrays]]:
    early, fixed = (build_model(config, early_exit=early_exit) for early_exit in (True, False))
    return {
        "onnxruntime, early exit": run_onnxruntime(early),
        "onnxruntime, fixed trips": run_onnxruntime(fixed),
        "openvino f32, early exit": run_openvino(early, "f32"),
        "openvino f32, fixed trips": run_openvino(fixed, "f32"),
        "openvino bf16, early exit": run_openvino(early, "bf16"),
        "torch": run_torch(config),
    }


def assert_rows(got: Arrays, row: int, image: Arrays, kept: np.ndarray) -> None:
    """All five outputs of one image against the rows kept, padding included."""
    size = got["indices"].shape[1]
    kept = kept[:size]
    empty = size - len(kept)
    assert got["num_detections"][row] == len(kept)
    assert np.array_equal(got["indices"][row], np.pad(kept, (0, empty)))
    classes = np.pad(image["classes"][kept], (0, empty), constant_values=-1)
    assert np.array_equal(got["classes"][row], classes)
    boxes = np.pad(image["boxes"][kept], ((0, empty), (0, 0)))
    assert np.array_equal(got["boxes_xyxy"][row], boxes)
    assert np.array_equal(got["scores"][row], np.pad(image["scores"][kept], (0, empty)))


def as_feeds(case: Arrays) -> Arrays:
    names = ("boxes", "scores_in", "classes_in", "iou_threshold")
    return dict(zip(names, case.values(), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_fast_nms_gives_the_result_of_its_definition(name: str) -> None:
    config = CONFIGS[name]
    engines = make_engines(config)
    num_kept = num_rows = 0
    for number in range(config.cases):
        case = make_case(config, number)
        outputs = {engine: run(as_feeds(case)) for engine, run in engines.items()}
        for row in range(config.batch):
            image = {key: array[row] for key, array in case.items()}
            with np.errstate(all="ignore"):
                kept = keep_by_definition(image, config.limit)
            num_kept, num_rows = num_kept + len(kept), num_rows + (image["scores"] > 0).sum()
            for engine, output in outputs.items():
                try:
                    assert_rows(output, row, image, kept)
                except AssertionError as error:
                    raise AssertionError(f"{engine}, case {number}, {row}: {error}") from error
    assert 0 < num_kept < num_rows or config.rows == 1


@pytest.mark.parametrize("name", ["deployed_size", "limit_of_five_a_class", "limit_of_200_binds"])
def test_definition_is_the_published_procedure(name: str) -> None:
    config = CONFIGS[name]
    for number in range(PUBLISHED_CASES):
        case = make_case(config, number, is_orderly=True)
        found = run_torch(config)(as_feeds(case))
        for row in range(config.batch):
            image = {key: array[row] for key, array in case.items()}
            kept = keep_as_published(image, config.classes, config.limit)
            assert np.array_equal(kept, keep_by_definition(image, config.limit)), number
            assert_rows(found, row, image, kept)


def test_removed_row_still_removes_others_which_greedy_does_not() -> None:
    """IoU 0.6 with the neighbour, 1/3 with the one after it."""
    left = torch.arange(6) * 10.0
    boxes = torch.stack([left, 0 * left, left + 40, 0 * left + 30], dim=1)[None]
    scores, classes = torch.linspace(0.9, 0.4, 6)[None], torch.zeros(1, 6, dtype=torch.int64)
    threshold = torch.full((1,), 0.5)
    fast, greedy = (
        suppress(boxes, scores, classes, threshold, 6, method) for method in ("fast", "greedy")
    )
    assert fast[4][0, : int(fast[0])].tolist() == [0]
    assert greedy[4][0, : int(greedy[0])].tolist() == [0, 2, 4]


def test_fast_nms_of_2048_rows_gives_what_its_definition_gives() -> None:
    config = Config(2048, 300, 40, 1)
    rng = np.random.default_rng(5)
    image = make_image(rng, config)
    image["iou_threshold"] = np.array(0.5)
    case = {
        name: np.asarray(array, np.int64 if name == "classes" else np.float32)[None]
        for name, array in image.items()
    }
    image = {name: array[0] for name, array in case.items()}
    kept = keep_by_definition(image, config.limit)
    assert len(kept) > 100
    for run in (
        run_onnxruntime(build_model(config, early_exit=True)),
        run_openvino(build_model(config, early_exit=False), "f32"),
    ):
        assert_rows(run(as_feeds(case)), 0, image, kept)


# ------------------------------------------------------------------------------------- in a model


def node_model(*methods: str) -> onnx.ModelProto:
    """A graph of a raw frame that is not looked at, boxes from it, and one node a method."""
    nodes = "\n".join(
        f"n{i}, b{i}, s{i}, c{i}, i{i} = kestrel.KestrelNms<max_detections = 4, "
        f'method = "{method}", per_class_limit = 200>(boxes, scores, classes, iou_threshold)'
        for i, method in enumerate(methods)
    )
    graph = onnx.parser.parse_graph(
        "g (float[B, 70, 4] boxes, float[B, 70] scores, int64[B, 70] classes, "
        "float[B] iou_threshold) => (int32[B] n0, float[B, 4, 4] b0) {" + nodes + "}"
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("kestrel", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize("early_exit", [True, False], ids=["early_exit", "fixed_trips"])
@pytest.mark.parametrize("inline", [True, False], ids=["inlined", "functions"])
def test_attached_body_is_the_one_that_the_node_names(early_exit: bool, inline: bool) -> None:
    model = attach_functions(node_model("fast"), early_exit=early_exit, inline=inline)
    broken = [each for each in lint(model, target="portable" if inline else "plugin")
              if each.rule != "image-input"]  # fmt: skip
    assert broken == []
    case = make_case(Config(70, 4, 3, 2), 3)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(["n0", "b0"], case)
    for row in range(2):
        image = {key: array[row] for key, array in case.items()}
        kept = keep_by_definition(image, 200)[:4]
        assert found[0][row] == len(kept)
        assert np.array_equal(found[1][row, : len(kept)], image["boxes"][kept])


def test_attaching_refuses_two_methods_in_one_model() -> None:
    with pytest.raises(ValueError, match=r"methods \['fast', 'greedy'\], expected one"):
        attach_functions(node_model("fast", "greedy"), early_exit=True, inline=True)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method of suppression is 'soft'"):
        nms_function(early_exit=True, method="soft")
    with pytest.raises(ValueError, match="method of suppression is 'soft'"):
        suppress(torch.zeros(1, 2, 4), torch.zeros(1, 2), torch.zeros(1, 2).long(),
                 torch.zeros(1), 2, "soft")  # fmt: skip


# ------------------------------------------------------------------------------------- TensorRT-RTX


@pytest.mark.parametrize("rows", [40, 300, 2048])
def test_rtx_builds_fixed_trips_without_a_copy_to_the_host(rows: int) -> None:
    from test_operators import build_rtx

    config = Config(rows, 100, 8, 4)
    log = build_rtx(build_model(config, early_exit=False), 4)
    assert any(line.startswith("Layers:") for line in log)
    assert not [line for line in log if "copy_d2h" in line]
