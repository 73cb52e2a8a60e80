"""Box coding and overlaps, held against torchvision."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, clip_boxes_to_image

from training.layers.box_coding import (
    MAX_LOG_SCALE,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    pairwise_inside,
    pairwise_iou,
)

FLOAT32_PX = 1e-3
FLOAT32 = 1e-5


def boxes_of(count: int, seed: int, *, least: float = 2.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=draw) * 400
    sides = least + torch.rand(count, 2, generator=draw) * 100
    return torch.cat((corner, corner + sides), 1)


def test_encoding_is_torchvisions():
    boxes, anchors = boxes_of(200, 0), boxes_of(200, 1)
    theirs = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(boxes, anchors)
    torch.testing.assert_close(encode_boxes(boxes, anchors), theirs, rtol=FLOAT32, atol=FLOAT32)


def test_decoding_is_torchvisions():
    anchors = boxes_of(200, 1)
    deltas = torch.randn(200, 4, generator=torch.Generator().manual_seed(2))
    theirs = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas, anchors)
    torch.testing.assert_close(decode_boxes(deltas, anchors), theirs, rtol=FLOAT32, atol=FLOAT32_PX)


@pytest.mark.parametrize("least", [2.0, 0.5], ids=["objects", "below-a-pixel"])
def test_decoding_undoes_encoding_down_to_a_fiftieth_of_the_anchor(least):
    boxes, anchors = boxes_of(300, 3, least=least), boxes_of(300, 4)
    anchors[:, 2:] = anchors[:, :2] + 24
    again = decode_boxes(encode_boxes(boxes, anchors), anchors)
    torch.testing.assert_close(again, boxes, rtol=0, atol=FLOAT32_PX)


def test_encoding_of_a_box_without_size_is_finite():
    anchors = boxes_of(1, 0)
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert encode_boxes(point, anchors).isfinite().all()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_decoding_clips_wild_scales_and_stays_finite(sign):
    anchor = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    box = decode_boxes(torch.tensor([[0.0, 0.0, sign * 1e4, sign * 1e4]]), anchor)
    side = 10 * torch.tensor(sign * MAX_LOG_SCALE).exp()
    torch.testing.assert_close(box[0, 2:] - box[0, :2], side.expand(2))


def test_coding_of_no_boxes_is_no_boxes():
    none = torch.zeros(0, 4)
    assert encode_boxes(none, none).shape == (0, 4)
    assert decode_boxes(none, none).shape == (0, 4)


def test_clipping_is_torchvisions():
    boxes = boxes_of(100, 5) - 100
    theirs = clip_boxes_to_image(boxes, (200, 300))
    assert torch.equal(clip_boxes(boxes, (200, 300)), theirs)


def test_iou_is_torchvisions():
    a, b = boxes_of(80, 6), torch.cat((boxes_of(50, 7), boxes_of(80, 6)[:5]))
    torch.testing.assert_close(pairwise_iou(a, b), box_iou(a, b), rtol=FLOAT32, atol=FLOAT32)


def test_iou_with_a_box_without_size_is_zero():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert pairwise_iou(point, torch.cat((point, torch.tensor([[0.0, 0, 9, 9]])))).tolist() == [
        [0.0, 0.0]
    ]


def test_iou_of_a_batch_is_that_of_its_rows():
    a = torch.stack((boxes_of(5, 8), boxes_of(5, 9)))
    b = torch.stack((boxes_of(7, 10), boxes_of(7, 11)))
    for row in range(2):
        assert torch.equal(pairwise_iou(a, b)[row], pairwise_iou(a[row], b[row]))


def test_share_inside_is_measured_on_the_first_box():
    small = torch.tensor([[0.0, 0, 10, 10]])
    large = torch.tensor([[5.0, 0, 100, 100], [-5.0, -5, 50, 50], [20.0, 20, 30, 30]])
    assert pairwise_inside(small, large).tolist() == [[0.5, 1.0, 0.0]]
