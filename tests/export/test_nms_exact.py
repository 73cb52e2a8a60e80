"""KestrelSelect + KestrelNms give the result of their definition, bit for bit in choice and order.

1,000 cases run through ONNX Runtime and OpenVINO, each with both bodies of KestrelNms, and are
compared with a NumPy selection by definition followed by torchvision.ops.nms class by class, and
with ONNX Runtime's NonMaxSuppression.
"""

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
import torchvision

from export.graph.nms import nms_function
from export.graph.operators import select_pairs, suppress
from export.graph.select import select_function

Arrays = dict[str, np.ndarray]

CASES_PER_CONFIG = 200
BF16_CASES_PER_CONFIG = 20
SCORE_TOLERANCE = 2e-6  # sigmoids of two engines; measured up to 1.8e-7
THRESHOLD_CLEARANCE = (
    1e-4  # logits keep this distance from log(t / (1 - t)), whose last bit differs between engines
)
CHAIN = 64
OUTPUTS = ["selected_scores", "anchors", "selected_classes"]
OUTPUTS += ["num_detections", "boxes_xyxy", "scores", "classes", "indices"]


@dataclass(frozen=True)
class Config:
    candidates: int  # T
    kept: int  # M
    anchors: int  # A
    classes: int  # K
    batch: int  # B


CONFIGS = {
    "fewer_anchors_than_candidates": Config(80, 64, 64, 5, 1),
    "one_class_keeps_63": Config(200, 63, 400, 1, 1),
    "more_kept_than_candidates": Config(24, 32, 7, 4, 4),
    "three_classes_batch_2": Config(128, 98, 700, 3, 2),
    "deployed_size": Config(300, 100, 1500, 4, 1),
}


# ------------------------------------------------------------------------------------------ cases


def _random_image(rng: np.random.Generator, config: Config) -> Arrays:
    """Boxes over 200 px and logits around 0: logits (A, K), boxes (A, 4), score_threshold (K),
    iou_threshold ()."""
    num_clusters = int(rng.choice([3, 20, 200]))
    centres = rng.uniform(0, 200, (num_clusters, 2))[rng.integers(0, num_clusters, config.anchors)]
    centres = centres + rng.normal(0, 4, centres.shape)
    sides = rng.uniform(2, 60, (config.anchors, 2))
    return {
        "logits": rng.normal(0, 2, (config.anchors, config.classes)),
        "boxes": np.concatenate([centres - sides / 2, centres + sides / 2], axis=1),
        "score_threshold": np.full(config.classes, rng.choice([0.05, 0.3, 0.5])),
        "iou_threshold": np.array(rng.choice([0.0, 0.3, 0.5, 0.7, 1.0])),
    }


def _add_ties(rng: np.random.Generator, image: Arrays) -> None:
    image["logits"] = np.round(image["logits"] * rng.choice([0.5, 1, 4])) / 4


def _add_identical_logits(rng: np.random.Generator, image: Arrays) -> None:
    image["logits"][:] = 1.25


def _add_integer_boxes(rng: np.random.Generator, image: Arrays) -> None:
    """IoUs of small integers hit the thresholds 1/2 and 1/4 exactly."""
    corners = rng.integers(0, 8, image["boxes"].shape)
    image["boxes"] = np.sort(corners.reshape(-1, 2, 2), axis=1).reshape(-1, 4).astype(float)
    image["iou_threshold"] = np.array(rng.choice([0.25, 0.5]))


def _add_degenerate_boxes(rng: np.random.Generator, image: Arrays) -> None:
    """A third each: zero width, inverted in x, inverted in both axes (whose area is positive)."""
    boxes, kind = image["boxes"], rng.integers(0, 6, len(image["boxes"]))
    boxes[kind == 0, 2] = boxes[kind == 0, 0]
    boxes[kind == 1] = boxes[kind == 1][:, [2, 1, 0, 3]]
    boxes[kind == 2] = boxes[kind == 2][:, [2, 3, 0, 1]]


def _add_identical_boxes(rng: np.random.Generator, image: Arrays) -> None:
    image["boxes"][:] = image["boxes"][rng.integers(0, 3, len(image["boxes"]))]


def _add_nothing_over_threshold(rng: np.random.Generator, image: Arrays) -> None:
    image["logits"] -= 40


def _add_few_over_threshold(rng: np.random.Generator, image: Arrays) -> None:
    image["logits"][rng.random(image["logits"].shape) > 0.01] -= 40


def _add_not_a_number(rng: np.random.Generator, image: Arrays) -> None:
    logits = image["logits"]
    logits[rng.random(logits.shape) < 0.2] = np.nan
    logits[rng.random(logits.shape) < 0.02] = np.inf
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    image["score_threshold"] = rng.choice([0.0, 0.1, 1.0], logits.shape[1])


def _add_not_a_number_boxes(rng: np.random.Generator, image: Arrays) -> None:
    image["boxes"][rng.random(image["boxes"].shape) < 0.1] = np.nan


def _add_class_filter(rng: np.random.Generator, image: Arrays) -> None:
    """Classes that are switched off have the best logits of all: they must not crowd others out."""
    off = rng.random(image["logits"].shape[1]) < 0.5
    image["logits"][:, off] += 10
    image["score_threshold"][off] = rng.choice([1.0, 1.5])


def _add_class_thresholds(rng: np.random.Generator, image: Arrays) -> None:
    image["score_threshold"] = rng.choice(
        [-1.0, 0.0, 0.02, 0.5, 0.9, 1.0, 2.0], image["logits"].shape[1]
    )


def _add_multi_label(rng: np.random.Generator, image: Arrays) -> None:
    """One box under several classes, mostly with equal logits."""
    image["logits"][:] = np.round(image["logits"].max(axis=1, keepdims=True) * 2) / 2


def _add_chain(rng: np.random.Generator, image: Arrays) -> None:
    """Boxes in a row, each overlapping only its neighbours above the threshold, with falling
    scores."""
    length = min(CHAIN, len(image["boxes"]))
    at = rng.permutation(len(image["boxes"]))[:length] if rng.random() < 0.5 else np.arange(length)
    left = np.arange(length) * 10.0
    image["boxes"][at] = np.stack(
        [left, 0 * left, left + 40, 0 * left + 30], axis=1
    )  # IoU 0.6, then 1/3
    image["logits"][:] = -40
    label = rng.integers(0, image["logits"].shape[1], length) if rng.random() < 0.3 else 0
    image["logits"][at, label] = 6 - np.arange(length) * (0.125 if rng.random() < 0.7 else 0.0)
    image["score_threshold"][:] = 0.05
    image["iou_threshold"] = np.array(0.5)


def _add_far_coordinates(rng: np.random.Generator, image: Arrays) -> None:
    image["boxes"] = image["boxes"] * rng.choice([1e-3, 1e4]) + rng.choice([0, 1e5])


CHANGES = [function for name, function in globals().items() if name.startswith("_add_")]


def _cut(score_threshold: np.ndarray) -> np.ndarray:
    """Give the threshold (..., K) in the units of logits, by definition."""
    threshold = score_threshold.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = np.log(threshold / (1 - threshold))
    return np.where(threshold <= 0, -np.inf, np.where(threshold >= 1, np.inf, cut)).astype(
        np.float32
    )


def _make_image(rng: np.random.Generator, config: Config, *, is_chain: bool) -> Arrays:
    image = _random_image(rng, config)
    changes = rng.permutation(np.array(CHANGES))[: rng.integers(0, 3)]
    for change in [_add_chain] if is_chain else changes:
        change(rng, image)
    image = {name: array.astype(np.float32) for name, array in image.items()}
    cut, logits = _cut(image["score_threshold"]), image["logits"]
    with np.errstate(invalid="ignore"):
        near = (np.abs(logits - cut) < THRESHOLD_CLEARANCE) & (logits != cut)
    image["logits"] = np.where(near, logits + np.float32(2 * THRESHOLD_CLEARANCE), logits)
    return image


def _make_case(config: Config, number: int) -> Arrays:
    """Stack B images, each tenth time chains; shapes of `_random_image` with B in front."""
    rng = np.random.default_rng([number, config.anchors])
    images = [_make_image(rng, config, is_chain=number % 10 == 0) for _ in range(config.batch)]
    return {name: np.stack([image[name] for image in images]) for name in images[0]}


# -------------------------------------------------------------------------------------- reference


def _select_by_definition(image: Arrays, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the flat indices (n,) of the first n <= T candidates and their scores (n,)."""
    logits = image["logits"]
    passes = (logits > _cut(image["score_threshold"])) & (logits > -np.inf)
    flat = np.flatnonzero(passes)
    value = logits.reshape(-1)[flat]
    order = np.lexsort((flat, -value))[:candidates]
    with np.errstate(over="ignore"):
        return flat[order], 1 / (1 + np.exp(-value[order].astype(np.float64)))


def _keep_by_torchvision(
    boxes: np.ndarray, classes: np.ndarray, iou_threshold: np.ndarray
) -> np.ndarray:
    """Give the rows kept by torchvision's NMS run class by class, in order; rows come best
    first."""
    finite = np.isfinite(boxes).all(axis=1)
    ranks = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    kept: list[int] = []
    for label in np.unique(classes[finite]):
        rows = torch.from_numpy(np.flatnonzero(finite & (classes == label)))
        found = torchvision.ops.nms(
            torch.from_numpy(boxes)[rows], ranks[rows], float(iou_threshold)
        )
        kept += rows[found].tolist()
    return np.array(sorted(kept), dtype=np.int64)


def _suppression_session() -> onnxruntime.InferenceSession:
    graph = onnx.parser.parse_graph(
        "suppress (float[1, T, 4] boxes, float[1, K, T] scores, int64 most, float iou, float score)"
        "=> (int64[N, 3] kept)"
        "{ kept = NonMaxSuppression(boxes, scores, most, iou, score) }"
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def _keep_by_onnxruntime(
    session: onnxruntime.InferenceSession,
    boxes: np.ndarray,
    classes: np.ndarray,
    iou_threshold: np.ndarray,
) -> np.ndarray:
    """Give the rows kept by ONNX Runtime's NonMaxSuppression, in order; rows come best first.

    It swaps the corners of inverted boxes, which then overlap others. An inverted box has no
    intersection by our definition, so it is handed over with an empty area.
    """
    if not len(boxes):
        return np.zeros(0, np.int64)
    boxes = boxes.copy()
    finite = np.isfinite(boxes).all(axis=1)
    boxes[~finite] = 0
    inverted = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    boxes[inverted, 2:] = boxes[inverted, :2]
    scores = np.zeros((1, classes.max() + 1, len(boxes)), np.float32)
    ranks = np.arange(len(boxes), 0, -1, dtype=np.float32)
    scores[0, classes, np.arange(len(boxes))] = np.where(finite, ranks, 0)
    feeds = {
        "boxes": boxes[None],
        "scores": scores,
        "most": np.array(len(boxes)),
        "score": np.zeros((), np.float32),
    }
    kept = session.run(None, {**feeds, "iou": np.asarray(iou_threshold)})[0]
    return np.sort(kept[:, 2])


# ---------------------------------------------------------------------------------------- engines


def _build_model(config: Config, *, early_exit: bool) -> onnx.ModelProto:
    b, a, k, t, m = config.batch, config.anchors, config.classes, config.candidates, config.kept
    graph = onnx.parser.parse_graph(
        f"""
        detect (float[{b}, {a}, {k}] logits, float[{b}, {a}, 4] boxes,
                float[{b}, {k}] score_threshold, float[{b}] iou_threshold)
            => (float[{b}, {t}] selected_scores, int64[{b}, {t}] anchors,
                int64[{b}, {t}] selected_classes,
                int32[{b}] num_detections, float[{b}, {m}, 4] boxes_xyxy, float[{b}, {m}] scores,
                int32[{b}, {m}] classes, int64[{b}, {m}] indices)
        {{
            selected_scores, anchors, selected_classes
                = kestrel.KestrelSelect<candidates = {t}, activation = "sigmoid">
                (logits, score_threshold)
            axis = Constant<value = int64[1] {{2}}>()
            anchors3 = Unsqueeze(anchors, axis)
            selected_boxes = GatherND<batch_dims = 1>(boxes, anchors3)
            num_detections, boxes_xyxy, scores, classes, indices
                = kestrel.KestrelNms<max_detections = {m}>
                (selected_boxes, selected_scores, selected_classes, iou_threshold)
        }}
        """
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("kestrel", 1)]
    functions = [select_function(), nms_function(early_exit=early_exit)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _run_with_onnxruntime(model: onnx.ModelProto) -> Callable[[Arrays], Arrays]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda feeds: dict(zip(OUTPUTS, session.run(OUTPUTS, feeds), strict=True))


def _run_with_openvino(model: onnx.ModelProto, precision: str) -> Callable[[Arrays], Arrays]:
    core = openvino.Core()
    inlined = onnx.inliner.inline_local_functions(model)
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(inlined.SerializeToString()), "CPU", settings)
    return lambda feeds: dict(zip(OUTPUTS, map(np.array, compiled(feeds).values()), strict=True))


def _run_with_torch(config: Config) -> Callable[[Arrays], Arrays]:
    def run(feeds: Arrays) -> Arrays:
        logits, boxes, *thresholds = (torch.from_numpy(array) for array in feeds.values())
        selected = select_pairs(logits, thresholds[0], config.candidates, "sigmoid")
        chosen = boxes.gather(1, selected[1][..., None].expand(-1, -1, 4))
        kept = suppress(chosen, selected[0], selected[2], thresholds[1], config.kept)
        return dict(zip(OUTPUTS, (x.numpy() for x in (*selected, *kept)), strict=True))

    return run


def _make_engines(config: Config) -> dict[str, Callable[[Arrays], Arrays]]:
    early, fixed = (_build_model(config, early_exit=early_exit) for early_exit in (True, False))
    return {
        "onnxruntime, early exit": _run_with_onnxruntime(early),
        "onnxruntime, fixed trips": _run_with_onnxruntime(fixed),
        "openvino f32, early exit": _run_with_openvino(early, "f32"),
        "openvino f32, fixed trips": _run_with_openvino(fixed, "f32"),
        "openvino bf16, early exit": _run_with_openvino(early, "bf16"),
        "torch": _run_with_torch(config),
    }


def _check_image(
    got: Arrays, image: Arrays, config: Config, kept_by: dict[str, np.ndarray], flat: np.ndarray
) -> None:
    """Compare all outputs for one image with the selection `flat` (n,) and the rows kept of it."""
    count = len(flat)
    anchors, classes = flat // config.classes, flat % config.classes
    filled = got["selected_scores"] > 0
    assert filled.sum() == count
    assert filled[:count].all()
    assert np.array_equal(got["anchors"], np.pad(anchors, (0, config.candidates - count)))
    assert np.array_equal(got["selected_classes"], np.pad(classes, (0, config.candidates - count)))
    for name, kept_all in kept_by.items():
        kept = kept_all[: config.kept]
        empty = config.kept - len(kept)
        assert got["num_detections"] == len(kept), name
        assert np.array_equal(got["indices"], np.pad(kept, (0, empty))), name
        assert np.array_equal(
            got["classes"], np.pad(classes[kept], (0, empty), constant_values=-1)
        ), name
        boxes = np.pad(image["boxes"][anchors[kept]], ((0, empty), (0, 0)))
        assert np.array_equal(got["boxes_xyxy"], boxes), name
        assert np.array_equal(got["scores"], np.pad(got["selected_scores"][kept], (0, empty))), name


@pytest.mark.parametrize("name", CONFIGS)
def test_select_and_nms_give_the_result_of_their_definition(name: str) -> None:
    config, suppress = CONFIGS[name], _suppression_session()
    engines = _make_engines(config)
    for number in range(CASES_PER_CONFIG):
        case = _make_case(config, number)
        outputs = {
            engine: run(case)
            for engine, run in engines.items()
            if "bf16" not in engine or number < BF16_CASES_PER_CONFIG
        }
        for row in range(config.batch):
            image = {key: array[row] for key, array in case.items()}
            flat, scores = _select_by_definition(image, config.candidates)
            boxes, classes = image["boxes"][flat // config.classes], flat % config.classes
            kept_by = {
                "torchvision": _keep_by_torchvision(boxes, classes, image["iou_threshold"]),
                "NonMaxSuppression": _keep_by_onnxruntime(
                    suppress, boxes, classes, image["iou_threshold"]
                ),
            }
            for engine, output in outputs.items():
                got = {key: array[row] for key, array in output.items()}
                try:
                    _check_image(got, image, config, kept_by, flat)
                    np.testing.assert_allclose(
                        got["selected_scores"][: len(flat)], scores, atol=SCORE_TOLERANCE
                    )
                except AssertionError as error:
                    raise AssertionError(
                        f"{engine}, case {number}, image {row}: {error}"
                    ) from error
