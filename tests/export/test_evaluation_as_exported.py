"""Training's own evaluation keeps the rows that KestrelNms keeps, by the method of the spec."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_instance import make_feeds, tiny_instances
from torchvision.ops import batched_nms

from export.graph.end_to_end import trace
from export.graph.operators import attach_functions
from training.layers.suppression import keep_rows
from training.tasks import instance

SCORE_THRESHOLD, IOU_THRESHOLD = 0.6, 0.1  # at which the two methods differ on these frames
SAME = 1e-4  # of boxes in pixels and of scores: float32 in another order


def evaluated(nms: str) -> list[instance.Instances]:
    model = tiny_instances(nms=nms)
    images = torch.from_numpy(make_feeds(model, 2)["image"])
    limits = {"score_threshold": SCORE_THRESHOLD, "iou_threshold": IOU_THRESHOLD}
    return instance.detect(model, images, **limits)


@pytest.mark.parametrize("nms", ["greedy", "fast"])
def test_evaluation_finds_what_the_exported_graph_finds(nms):
    model = tiny_instances(nms=nms)
    feeds = make_feeds(model, 2)
    feeds["score_threshold"][:] = SCORE_THRESHOLD
    feeds["iou_threshold"][:] = IOU_THRESHOLD
    expected = evaluated(nms)
    base = trace(model)
    for early_exit in (True, False):
        graph = attach_functions(base, early_exit=early_exit, inline=True)
        session = onnxruntime.InferenceSession(graph.SerializeToString())
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, feeds), strict=True))
        for row, result in enumerate(expected):
            count = len(result.boxes.scores)
            assert count == found["num_detections"][row] > 3
            np.testing.assert_array_equal(found["classes"][row, :count], result.boxes.classes)
            np.testing.assert_allclose(found["scores"][row, :count], result.boxes.scores, SAME)
            boxes = found["boxes_xyxy"][row, :count]
            np.testing.assert_allclose(boxes, result.boxes.boxes_xyxy, rtol=0, atol=SAME)


def test_the_two_methods_differ_where_a_beaten_box_would_beat_another():
    greedy, fast = (evaluated(nms)[0].boxes.scores for nms in ("greedy", "fast"))
    assert len(fast) < len(greedy)
    assert set(fast) <= set(greedy)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_rows_are_those_of_torchvision(seed):
    draw = torch.Generator().manual_seed(seed)
    near = torch.randint(0, 60, (200, 2), generator=draw).float()
    sides = torch.randint(4, 40, (200, 2), generator=draw).float()
    boxes = torch.cat([near, near + sides], dim=1)
    scores = torch.rand(200, generator=draw).sort(descending=True).values
    classes = torch.randint(0, 3, (200,), generator=draw)
    kept = keep_rows(boxes, scores, classes, torch.tensor(0.5), "greedy")
    assert kept.tolist() == batched_nms(boxes, scores, classes, 0.5).tolist()


def test_without_suppression_every_filled_row_with_a_finite_box_stays():
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [0, 0, torch.nan, 9], [1, 1, 2, 2]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.0])
    kept = keep_rows(boxes, scores, torch.zeros(4, dtype=torch.int64), torch.tensor(0.5), "none")
    assert kept.tolist() == [0, 1]


def test_unknown_method_is_named():
    rows = (torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.tensor(0.5))
    with pytest.raises(ValueError, match="'soft', expected one of greedy, fast, none"):
        keep_rows(*rows, "soft")
