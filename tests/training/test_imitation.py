"""Losses that bring one network's rows and maps near another's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from training.losses.imitation import imitated_maps, imitated_rows, imitated_scores


@pytest.mark.parametrize("is_softmax", [False, True])
def test_scores_are_least_wrong_where_they_are_the_others(is_softmax: bool):
    torch.manual_seed(0)
    wanted = 2 * torch.randn(2, 30, 4)
    logits = torch.randn(2, 30, 4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(800):
        loss, sure = imitated_scores(logits, wanted, is_softmax=is_softmax)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    turn = functional.softmax if is_softmax else lambda x, _: torch.sigmoid(x)
    # by squares of differences the last of them is slow to go
    torch.testing.assert_close(turn(logits, -1), turn(wanted, -1), rtol=0, atol=0.1)
    expected = 1 - wanted.softmax(-1)[..., 0] if is_softmax else wanted.sigmoid().amax(-1)
    torch.testing.assert_close(sure, expected)


def test_softmax_rows_that_both_call_background_count_little():
    background = torch.tensor([[[9.0, 0.0, 0.0]]])
    an_object = torch.tensor([[[0.0, 9.0, 0.0]]])
    nothing, _ = imitated_scores(background, background, is_softmax=True)
    missed, _ = imitated_scores(background, an_object, is_softmax=True)
    invented, _ = imitated_scores(an_object, background, is_softmax=True)
    assert float(nothing) < 1e-4
    assert float(missed) == pytest.approx(9, abs=0.1)
    assert float(invented) == pytest.approx(9, abs=0.1)


def test_rows_count_by_how_sure_the_other_is():
    rows, wanted = torch.zeros(1, 2, 4), torch.tensor([[[2.0] * 4, [50.0] * 4]])
    loss = imitated_rows(rows, wanted, torch.tensor([[0.5, 0.0]]))
    assert float(loss) == pytest.approx(0.5 * (2 - 0.05))  # smooth L1 with beta 0.1


def test_maps_count_by_their_size():
    wanted = torch.full((1, 3, 4, 4), 8.0)
    assert float(imitated_maps(wanted, wanted)) == 0
    assert float(imitated_maps(wanted + 2, wanted)) == pytest.approx(0.25)
