"""The kernels of KestrelSelect and KestrelNms choose what their definition chooses.

The shipped source runs on the CPU and is held against the bodies in standard operators in ONNX
Runtime, NumPy, and torchvision's NMS class by class: the same rows in the same order.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx.helper
import onnx.parser
import onnxruntime
import pytest
import torch
import torchvision
from kernel_calls import METHODS, garbage, num_blocks, select, suppress
from kernel_cases import (
    OFF_GRID,
    UNLIKE_TORCHVISION,
    Arrays,
    Config,
    keep_by_definition,
    make_case,
    select_by_definition,
)

from export.graph.nms import nms_function
from export.graph.select import select_function
from runtime.engines.kernels.shipped import SELECT, SELECT_STRETCH

SCORE_TOLERANCE = 2e-6  # sigmoids of two libraries
NMS_OUTPUTS = ("num_detections", "det_boxes", "det_scores", "det_classes", "det_indices")

SMALL = {
    "one_block": Config(100, 40, 300, 5),
    "one_class_batch_3": Config(256, 256, 700, 1, 3),
    "two_blocks_more_kept_than_rows": Config(33, 64, 1700, 10, 2),
    "scores": Config(128, 50, 900, 20, activation="none"),
    "fewer_anchors_than_candidates": Config(200, 63, 60, 7),
    "fast": Config(256, 100, 800, 6, 2, method="fast"),
    "fast_limit_3": Config(128, 100, 600, 4, method="fast", per_class_limit=3),
}
LIMITS = {
    "most_candidates_batch_8": Config(2048, 300, 4000, 4, 8),
    "most_classes": Config(1000, 100, 1200, 365),
    "most_candidates_all_kept_fast": Config(
        2048, 2048, 9000, 2, method="fast", per_class_limit=2048
    ),
}
CASES_OF_EACH = 43  # x 7 configs: 301


@functools.cache
def body(config: Config) -> onnxruntime.InferenceSession:
    """Both operators in standard operators, of any B, A and K; boxes are gathered between."""
    graph = onnx.parser.parse_graph(
        f"""
        detect (float[B, A, K] logits, float[B, A, 4] boxes,
                float[B, K] score_threshold, float[B] iou_threshold)
            => (float[B, T] scores, int64[B, T] anchors, int64[B, T] classes,
                int32[B] num_detections, float[B, M, 4] det_boxes, float[B, M] det_scores,
                int32[B, M] det_classes, int64[B, M] det_indices)
        {{
            scores, anchors, classes = kestrel.KestrelSelect
                <candidates = {config.candidates}, activation = "{config.activation}">
                (logits, score_threshold)
            axis = Constant<value = int64[1] {{2}}>()
            anchors3 = Unsqueeze(anchors, axis)
            chosen = GatherND<batch_dims = 1>(boxes, anchors3)
            num_detections, det_boxes, det_scores, det_classes, det_indices = kestrel.KestrelNms
                <max_detections = {config.kept}, method = "{config.method}",
                 per_class_limit = {config.per_class_limit}>
                (chosen, scores, classes, iou_threshold)
        }}
        """
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("kestrel", 1)]
    functions = [
        select_function(activation=config.activation),  # type: ignore[arg-type]
        nms_function(early_exit=True, method=config.method),  # type: ignore[arg-type]
    ]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run_kernels(case: Arrays, config: Config, order: int = 0) -> Arrays:
    scores, anchors, classes = select(
        case["logits"], case["score_threshold"], config.candidates, config.activation, order=order
    )
    chosen = np.take_along_axis(case["boxes"], anchors[..., None], axis=1)
    kept = suppress(
        chosen,
        scores,
        classes,
        case["iou_threshold"],
        config.kept,
        config.method,
        config.per_class_limit,
        order=order,
    )
    return {"scores": scores, "anchors": anchors, "classes": classes, **kept}


def assert_as_the_body(got: Arrays, case: Arrays, config: Config) -> None:
    session = body(config)
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, case), strict=True))
    for name, value in expected.items():
        if name in ("scores", "det_scores"):
            np.testing.assert_allclose(got[name], value, rtol=0, atol=SCORE_TOLERANCE)
            assert np.array_equal(got[name] > 0, value > 0)
        else:
            np.testing.assert_array_equal(got[name], value, err_msg=name)


def assert_as_defined(got: Arrays, case: Arrays, config: Config, changes: set[str]) -> int:
    """Against NumPy and torchvision; how many rows were kept."""
    num_kept = 0
    for index in range(config.batch):
        image = {name: array[index] for name, array in case.items()}
        flat, scores = select_by_definition(image, config.candidates, config.activation)
        count = len(flat)
        chosen = got["anchors"][index] * config.classes + got["classes"][index]
        np.testing.assert_array_equal(chosen[:count], flat)
        np.testing.assert_allclose(got["scores"][index, :count], scores, atol=SCORE_TOLERANCE)
        assert not got["scores"][index, count:].any()
        assert not chosen[count:].any()
        boxes, classes = image["boxes"][flat // config.classes], flat % config.classes
        kept = keep_by_definition(boxes, classes, image["iou_threshold"], config)
        assert got["num_detections"][index] == len(kept)
        np.testing.assert_array_equal(got["det_indices"][index, : len(kept)], kept)
        assert not got["det_indices"][index, len(kept) :].any()
        if not changes & OFF_GRID:
            exactly = keep_by_definition(boxes, classes, image["iou_threshold"], config, np.float64)
            np.testing.assert_array_equal(kept, exactly)
        if config.method == "greedy" and not changes & UNLIKE_TORCHVISION:
            theirs = keep_by_torchvision(boxes, classes, image["iou_threshold"])
            np.testing.assert_array_equal(kept, theirs[: config.kept])
        num_kept += len(kept)
    return num_kept


def keep_by_torchvision(
    boxes: np.ndarray, classes: np.ndarray, threshold: np.ndarray
) -> np.ndarray:
    """Class by class, which rounds no coordinates; rows come best first."""
    finite = np.isfinite(boxes).all(axis=1)
    ranks = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    kept: list[int] = []
    for label in np.unique(classes[finite]):
        rows = torch.from_numpy(np.flatnonzero(finite & (classes == label)))
        found = torchvision.ops.nms(torch.from_numpy(boxes)[rows], ranks[rows], float(threshold))
        kept += rows[found].tolist()
    return np.array(sorted(kept), dtype=np.int64)


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_kernels_body_numpy_and_torchvision_keep_the_same(config: Config):
    total = 0
    for number in range(CASES_OF_EACH):
        case, changes = make_case(config, number)
        got = run_kernels(case, config, order=number % 4)
        assert_as_the_body(got, case, config)
        total += assert_as_defined(got, case, config, changes)
    assert total > 5 * CASES_OF_EACH


@pytest.mark.parametrize("config", LIMITS.values(), ids=LIMITS)
def test_kernels_are_right_at_their_limits(config: Config):
    case, changes = make_case(config, 0)
    got = run_kernels(case, config)
    assert_as_the_body(got, case, config)
    assert assert_as_defined(got, case, config, changes) > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_kernels_body_numpy_and_torchvision_keep_the_same_5000_times(config: Config):
    for number in range(CASES_OF_EACH, CASES_OF_EACH + 715):
        case, changes = make_case(config, number)
        got = run_kernels(case, config, order=number % 7)
        assert_as_the_body(got, case, config)
        assert_as_defined(got, case, config, changes)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("config", LIMITS.values(), ids=LIMITS)
def test_kernels_are_right_at_their_limits_50_times(config: Config):
    for number in range(1, 18):
        case, changes = make_case(config, number)
        got = run_kernels(case, config, order=number % 3)
        assert_as_the_body(got, case, config)
        assert_as_defined(got, case, config, changes)


@pytest.mark.parametrize("order", [1, 2, 3, 4], ids=["falling", "shuffled", "again", "and_again"])
def test_the_order_of_threads_and_blocks_changes_no_bit(order: int):
    config = Config(300, 100, 3000, 20, 2)
    for number in (1, 4, 17):
        case, _ = make_case(config, number)
        expected, got = run_kernels(case, config), run_kernels(case, config, order)
        for name, value in expected.items():
            assert value.tobytes() == got[name].tobytes(), name


def test_iou_beside_the_threshold_is_decided_by_the_rounded_quotient():
    """Thresholds are the IoU of two boxes, and the numbers of float32 next to it."""
    rng = np.random.default_rng(11)
    near = rng.uniform(0, 40, (200, 2, 2))
    boxes = np.concatenate([near, near + rng.uniform(50, 90, near.shape)], axis=2)
    boxes = boxes.astype(np.float32)  # (200, 2, 4): any two overlap
    sides = np.minimum(boxes[:, 0, 2:], boxes[:, 1, 2:]) - np.maximum(
        boxes[:, 0, :2], boxes[:, 1, :2]
    )
    inter = sides[:, 0] * sides[:, 1]
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    exact = inter / (areas[:, 0] + areas[:, 1] - inter)
    assert exact.dtype == np.float32
    scores, classes = np.full((200, 2), 0.5, np.float32), np.zeros((200, 2), np.int64)
    below, above = (np.nextafter(exact, np.float32(end)) for end in (0, 1))
    for threshold, num_kept in ((below, 1), (exact, 2), (above, 2)):
        got = suppress(boxes, scores, classes, threshold, 2)
        assert (got["num_detections"] == num_kept).all()


@pytest.mark.parametrize("method", METHODS)
def test_no_candidate_leaves_everything_empty(method: str):
    config = Config(64, 32, 2000, 12, 2, method=method)
    case, _ = make_case(config, 0)
    case["score_threshold"][:] = 1
    got = run_kernels(case, config)
    assert not got["num_detections"].any()
    assert (got["det_classes"] == -1).all()
    for name in ("scores", "anchors", "classes", "det_boxes", "det_scores", "det_indices"):
        assert not got[name].any(), name


def test_a_batch_gives_what_its_images_give_alone():
    config = Config(300, 100, 2500, 14, 4)
    case, _ = make_case(config, 3)
    together = run_kernels(case, config)
    for index in range(config.batch):
        alone = run_kernels({n: a[index : index + 1] for n, a in case.items()}, config)
        for name, value in alone.items():
            assert np.array_equal(value[0], together[name][index]), name


def test_a_launch_leaves_nothing_behind_for_the_next_in_the_same_memory():
    """Scratch holds the last launch's rows then, and the counts of blocks must be at 0 again."""
    config = Config(50, 20, 4000, 10, 2)
    assert num_blocks(config.anchors, config.classes) == 3
    scratch = garbage((2, 3, 51), np.int64)
    for number in range(6):
        case, _ = make_case(config, number)
        feeds = (case["logits"], case["score_threshold"], config.candidates)
        for again, fresh in zip(select(*feeds, scratch=scratch), select(*feeds), strict=True):
            assert np.array_equal(again, fresh)


@pytest.mark.slow
def test_images_beyond_the_table_of_counts_are_still_right():
    """The table holds 1,024 places; what comes after them is read by one block alone."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 1, (3, SELECT_STRETCH + 300, 1)).astype(np.float32)
    thresholds = np.full((3, 1), 0.5, np.float32)
    expected = select(logits, thresholds, 40)
    held = []
    for _ in range(400):
        held.append(garbage((3, 2, 41), np.int64).copy())
        for ours, theirs in zip(
            select(logits, thresholds, 40, scratch=held[-1]), expected, strict=True
        ):
            assert np.array_equal(ours, theirs)


def test_the_stretch_of_a_block_is_what_the_source_says():
    from runtime.engines.kernels.shipped import FOLDER

    text = (FOLDER / SELECT.source).read_text(encoding="utf-8")
    assert f"constexpr int STRETCH = {SELECT_STRETCH};" in text
