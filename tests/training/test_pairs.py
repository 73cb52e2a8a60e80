"""Pairs of frames: the flow between them stays true under all that happens to both."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from training.data.augment import Augment
from training.data.clips import Flow
from training.data.sample import Sample
from training.data.street.clips import StreetClips
from training.losses.flow import cell_flow, end_point_error, flow_loss
from training.video.pairs import NumberedPairs, Pair, collate_pairs, warp_flow

SIZE_HW = (96, 160)
PLAIN = Augment.none()
SOME = Augment(flip=0.5, vertical_flip=0.5, scale=(0.7, 1.6), hsv=(0.1, 0.4, 0.4))


def pairs(augment: Augment = SOME, **options: object) -> NumberedPairs:
    source = StreetClips("train", kind="fast", num_frames=6, size_hw=(144, 256))
    return NumberedPairs(source, SIZE_HW, augment, **{"seed": 2} | options)


def same(one: Pair, other: Pair) -> bool:
    return (
        np.array_equal(one.key, other.key)
        and np.array_equal(one.later.image, other.later.image)
        and np.array_equal(one.later.masks, other.later.masks)
        and np.allclose(one.flow.offsets_xy, other.flow.offsets_xy, atol=0.1)
    )


def left_over(pair: Pair, offsets_xy: np.ndarray) -> float:
    """Mean grey difference between the key frame, moved, and the later frame, where it is seen."""
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]].astype(np.float32)
    maps = columns + offsets_xy[..., 0], rows + offsets_xy[..., 1]
    made = cv2.remap(pair.key, *maps, cv2.INTER_LINEAR)
    return float(np.abs(made.astype(float) - pair.later.image)[pair.flow.is_seen].mean())


def test_flow_explains_augmented_pairs_better_than_standing_still():
    drawn = [pairs()[number] for number in range(12)]
    moved = [left_over(pair, pair.flow.offsets_xy) for pair in drawn]
    still = [left_over(pair, np.zeros_like(pair.flow.offsets_xy)) for pair in drawn]
    assert np.mean(moved) < 0.5 * np.mean(still)


def test_flow_mirrored_with_its_frames_points_the_other_way():
    rows, columns = 40, 60
    flow = Flow(np.full((rows, columns, 2), (3.0, 2.0), np.float32), np.ones((rows, columns), bool))
    mirror = np.array([[-2.0, 0, 120], [0, 2.0, 0]])
    warped = warp_flow(flow, mirror, (80, 120))
    assert (warped.offsets_xy == (-6.0, 4.0)).all()
    assert warped.is_seen[:-4, 6:].all()
    assert not warped.is_seen[:, :6].any()  # lay outside of the result
    assert not warped.is_seen[-4:].any()


def test_pair_is_the_same_whenever_it_is_drawn():
    first = pairs(uses=3)
    forwards = [first[number] for number in range(12)]
    again = pairs(uses=3)
    assert all(same(again[number], forwards[number]) for number in reversed(range(12)))
    assert not same(forwards[0], forwards[1])


def test_pairs_are_used_again_and_new_ones_keep_coming(monkeypatch: pytest.MonkeyPatch):
    made = []
    draw = NumberedPairs.draw

    def drawn(self: NumberedPairs, number: int) -> Pair:
        made.append(number)
        return draw(self, number)

    monkeypatch.setattr(NumberedPairs, "draw", drawn)
    samples = pairs(uses=4)
    for number in range(24):
        samples[number]
    assert sorted(set(made)) == list(range(6))
    assert len(made) == 6


def test_three_pairs_share_a_key_frame_at_different_distances():
    samples = pairs(PLAIN)
    one, two, three, four = (samples.draw(number) for number in range(4))
    assert np.array_equal(one.key, two.key)
    assert np.array_equal(one.key, three.key)
    assert not np.array_equal(one.key, four.key)
    assert len({pair.later.image_id for pair in (one, two, three)}) == 3


def test_both_frames_of_a_pair_change_colour_alike():
    samples = NumberedPairs(pairs().source, SIZE_HW, Augment(flip=0, scale=(1, 1)), seed=2)
    plain = NumberedPairs(pairs().source, SIZE_HW, PLAIN, seed=2)
    shifts = []
    for number in range(4):
        made, bare = samples[number], plain[number]
        shifts.append(
            [made.key.mean() - bare.key.mean(), made.later.image.mean() - bare.later.image.mean()]
        )
    key, later = np.array(shifts).T
    assert np.abs(key).max() > 3
    assert np.abs(key - later).max() < 3


def test_batch_has_the_key_frames_first_and_the_later_frames_labels():
    drawn = [pairs()[number] for number in range(3)]
    images, targets = collate_pairs(drawn, "instance")
    assert images.shape == (6, *SIZE_HW, 3)
    assert np.array_equal(images[1].numpy(), drawn[1].key)
    assert np.array_equal(images[4].numpy(), drawn[1].later.image)
    assert targets.later.masks.shape[2:] == SIZE_HW
    assert targets.flow.shape == (3, 2, *SIZE_HW)
    assert targets.is_seen.shape == (3, 1, *SIZE_HW)
    assert np.array_equal(targets.flow[2, 1].numpy(), drawn[2].flow.offsets_xy[..., 1])


def test_batch_without_flow_says_so():
    sample: Sample = pairs()[0].later
    images, targets = collate_pairs([Pair(sample.image, sample, None)], "instance")
    assert len(images) == 2
    assert targets.flow is None
    assert targets.to(torch.device("cpu")).is_seen is None


def test_cells_take_the_mean_of_the_pixels_that_are_seen():
    rng = np.random.default_rng(0)
    flow = rng.normal(0, 5, (2, 2, 16, 24)).astype(np.float32)
    seen = rng.random((2, 1, 16, 24)) < 0.7
    cells, counts = cell_flow(torch.from_numpy(flow), torch.from_numpy(seen), (4, 3))
    for image in range(2):
        for row in range(4):
            for column in range(3):
                place = slice(4 * row, 4 * row + 4), slice(8 * column, 8 * column + 8)
                known = seen[image, 0][place]
                expected = flow[image][(slice(None), *place)][:, known].astype(np.float64).mean(1)
                expected *= (3 / 24, 4 / 16)
                assert cells[image, :, row, column].numpy() == pytest.approx(expected, abs=1e-5)
                assert bool(counts[image, 0, row, column]) == (known.mean() >= 0.5)


def test_true_flow_costs_nothing_and_another_the_root_of_its_distance_in_cells():
    flow, seen = torch.full((1, 2, 32, 64), 8.0), torch.ones(1, 1, 32, 64, dtype=torch.bool)
    true = torch.ones(1, 2, 4, 8)
    assert float(flow_loss([true, true[:, :, ::2, ::2] / 2], flow, seen)) < 0.1
    off = true + torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    assert float(flow_loss([off], flow, seen)) == pytest.approx(5.0**0.5, abs=1e-3)
    error, counts = end_point_error(off, flow, seen)
    assert error.shape == counts.shape == (1, 4, 8)


def test_flow_that_is_not_known_is_not_learnt():
    flow = torch.full((1, 2, 32, 64), torch.nan)
    found = torch.zeros(1, 2, 4, 8, requires_grad=True)
    loss = flow_loss([found], flow, torch.zeros(1, 1, 32, 64, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not found.grad.any()
