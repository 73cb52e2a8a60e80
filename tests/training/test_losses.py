"""Losses, held against torchvision and against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from training.losses.boxes import giou_loss, smooth_l1_loss
from training.losses.focal import focal_loss, quality_focal_loss

FLOAT32 = 1e-5


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def boxes_of(count: int, seed: int) -> torch.Tensor:
    corner = draw(count, 2, seed=seed) * 30
    return torch.cat((corner, corner + 2 + draw(count, 2, seed=seed + 100).abs() * 30), 1)


def test_focal_loss_and_its_gradient_are_torchvisions():
    labels = (draw(50, 7, seed=1) > 1).float()
    ours, theirs = (draw(50, 7).mul(4).requires_grad_() for _ in range(2))
    a = focal_loss(ours, labels)
    b = sigmoid_focal_loss(theirs, labels, alpha=0.25, gamma=2.0, reduction="sum")
    a.backward()
    b.backward()
    torch.testing.assert_close(a, b, rtol=FLOAT32, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_quality_focal_loss_is_its_formula_in_float64():
    logits, labels = draw(40, 3) * 3, torch.rand(40, 3, generator=torch.Generator().manual_seed(1))
    p, y = logits.double().sigmoid(), labels.double()
    wanted = -((y - p).abs() ** 2 * ((1 - y) * (1 - p).log() + y * p.log())).sum()
    torch.testing.assert_close(
        quality_focal_loss(logits, labels).double(), wanted, rtol=FLOAT32, atol=0
    )


def test_quality_focal_loss_is_least_where_the_score_is_the_label():
    labels = torch.full((1, 1), 0.6)
    scores = torch.tensor([0.3, 0.5, 0.6, 0.7, 0.9])
    losses = [float(quality_focal_loss(s.logit().reshape(1, 1), labels)) for s in scores]
    assert losses.index(min(losses)) == 2


@pytest.mark.parametrize("loss", [focal_loss, quality_focal_loss], ids=["hard", "soft"])
def test_score_loss_stays_finite_at_wild_logits(loss):
    logits = torch.tensor([[1e4, -1e4, 80.0, -80.0]], requires_grad=True)
    value = loss(logits, torch.tensor([[0.0, 1.0, 1.0, 0.0]]))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [focal_loss, quality_focal_loss], ids=["hard", "soft"])
def test_score_loss_of_no_rows_is_zero(loss):
    assert float(loss(torch.zeros(0, 3), torch.zeros(0, 3))) == 0


def test_smooth_l1_is_torchs():
    a, b = draw(60, 4), draw(60, 4, seed=1)
    wanted = functional.smooth_l1_loss(a, b, beta=1 / 9, reduction="none").sum(-1)
    torch.testing.assert_close(smooth_l1_loss(a, b), wanted, rtol=FLOAT32, atol=FLOAT32)


def test_giou_loss_and_its_gradient_are_torchvisions():
    wanted = boxes_of(200, 1)
    ours, theirs = (boxes_of(200, 0).requires_grad_() for _ in range(2))
    a, _ = giou_loss(ours, wanted)
    b = generalized_box_iou_loss(theirs, wanted)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(a, b, rtol=1e-4, atol=FLOAT32)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_giou_loss_tells_the_plain_iou_too():
    a, b = boxes_of(50, 2), boxes_of(50, 3)
    _, iou = giou_loss(a.clone().requires_grad_(), b)
    assert not iou.requires_grad
    torch.testing.assert_close(iou, box_iou(a, b).diagonal(), rtol=1e-4, atol=1e-6)


def test_giou_loss_of_equal_boxes_is_zero_and_of_far_ones_near_two():
    box = torch.tensor([[0.0, 0, 10, 10]])
    far = torch.tensor([[1e4, 1e4, 1e4 + 10, 1e4 + 10]])
    assert abs(float(giou_loss(box, box)[0])) < FLOAT32
    assert float(giou_loss(box, far)[0]) == pytest.approx(2, abs=1e-3)


def test_giou_loss_of_a_box_without_size_is_finite():
    point = torch.tensor([[5.0, 5, 5, 5]], requires_grad=True)
    loss, _ = giou_loss(point, torch.tensor([[5.0, 5, 5, 5]]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert point.grad.isfinite().all()
