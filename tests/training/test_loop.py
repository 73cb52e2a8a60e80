"""The loop's parts: learning rate, averaged weights, and the order of samples."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tiny_models import CATEGORY_IDS, CLASSES
from torch import nn

from training.data.augment import Augment
from training.data.sample import Sample
from training.loop.averaging import AveragedModel
from training.loop.feed import EpochOrder, NumberedBatches, NumberedSamples, StreamedOrder
from training.loop.schedule import lr_factor


def factors(steps=1000, warm_up=100, final=0.01) -> list[float]:
    return [lr_factor(s, steps=steps, warm_up=warm_up, final=final) for s in range(steps)]


def test_learning_rate_rises_in_equal_steps_to_its_peak():
    rise = np.diff(factors()[:100])
    assert np.allclose(rise, 0.01)
    assert factors()[99] == 1.0


def test_learning_rate_falls_by_torchs_cosine_after_the_warm_up():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 900, eta_min=0.01)
    expected = []
    for _ in range(900):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert np.allclose(factors()[100:], expected, atol=1e-9)


def test_learning_rate_beyond_the_end_stays_at_its_last():
    assert lr_factor(5000, steps=1000, warm_up=100, final=0.01) == pytest.approx(0.01)


def test_learning_rate_without_warm_up_begins_at_its_peak():
    assert lr_factor(0, steps=10, warm_up=0, final=0.1) == 1.0


def test_average_follows_the_weights_by_its_formula():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = AveragedModel(model, 0.9, ramp=5.0)
    expected = {k: v.double().clone() for k, v in model.state_dict().items()}
    for update in range(1, 8):
        for parameter in model.parameters():
            parameter.data += 0.1 * update
        model[1].running_mean += 1
        average.update(model)
        decay = 0.9 * (1 - math.exp(-update / 5.0))
        for key, value in model.state_dict().items():
            expected[key] = expected[key] * decay + value.double() * (1 - decay)
    for key, value in average.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)


def test_average_copies_counters_and_leaves_the_model_alone():
    model = nn.BatchNorm1d(2)
    average = AveragedModel(model, 0.9)
    model(torch.randn(4, 2))
    before = copy.deepcopy(model.state_dict())
    average.update(model)
    assert int(average.model.num_batches_tracked) == 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())


class Numbered:
    """A source whose sample n is grey n; counts how often each is made."""

    classes, category_ids = CLASSES, CATEGORY_IDS

    def __init__(self, count: int = 50) -> None:
        self.count, self.made = count, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        self.made.append(index)
        return Sample(
            image=np.full((40, 60, 3), index % 256, np.uint8),
            boxes_xyxy=np.array([[5, 6, 25, 30]], np.float32),
            classes=np.array([index % 3], np.int64),
            is_crowd=np.array([False]),
            image_id=index,
            file_name=str(index),
        )


def orders(seed: int = 1):
    return {
        "epochs": EpochOrder(Numbered(), seed),
        "streamed": StreamedOrder(Numbered(2000), seed, 4),
    }


@pytest.mark.parametrize("kind", ["epochs", "streamed"])
def test_sample_of_a_number_is_the_same_in_any_order_of_asking_and_after_a_restart(kind):
    numbers = list(range(0, 600, 3))
    order = orders()[kind]
    forwards = {n: order.load(n).image_id for n in numbers}
    restarted = orders()[kind]
    shuffled = np.random.default_rng(0).permutation(numbers)
    assert {int(n): restarted.load(int(n)).image_id for n in shuffled} == forwards


@pytest.mark.parametrize("kind", ["epochs", "streamed"])
def test_other_seed_is_another_order(kind):
    ours, theirs = orders(1)[kind], orders(2)[kind]
    numbers = range(1000, 1100)
    assert [ours.load(n).image_id for n in numbers] != [theirs.load(n).image_id for n in numbers]


def test_epoch_holds_every_sample_once_and_the_next_in_another_order():
    order = EpochOrder(Numbered(), 0)
    epochs = [[order.load(50 * e + n).image_id for n in range(50)] for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(50))] * 2
    assert epochs[0] != epochs[1]


def test_stream_renders_new_frames_in_order_and_each_about_once():
    source = Numbered(2000)
    order = StreamedOrder(source, 0, 4)
    loaded = [order.load(n).image_id for n in range(4000)]
    assert loaded[::4] == list(range(1000))
    assert all(frame <= n // 4 for n, frame in enumerate(loaded))
    assert len(source.made) < 1.1 * 1000
    assert len(order._kept) <= StreamedOrder.WINDOW


def test_stream_draws_evenly_from_the_frames_so_far_while_they_are_few():
    order = StreamedOrder(Numbered(2000), 0, 4)
    early = [order.load(n).image_id for n in range(400) if n % 4]
    commonest = max(early.count(frame) for frame in set(early))
    assert commonest < 0.1 * len(early)


def test_stream_goes_round_a_source_that_is_shorter_than_the_run():
    order = StreamedOrder(Numbered(10), 0, 2)
    assert [order.load(n).image_id for n in range(0, 40, 2)] == list(range(10)) * 2


def numbered_samples(**changes: object) -> NumberedSamples:
    options = {"mosaic_end": 100, "seed": 3, "uses": 4} | changes
    return NumberedSamples(Numbered(200), (64, 96), Augment(mosaic=0.5), **options)


def test_augmented_sample_is_the_same_after_a_restart_and_in_any_order():
    first = numbered_samples()
    forwards = [first[n] for n in range(30)]
    again = numbered_samples()
    for n in reversed(range(30)):
        sample = again[n]
        assert np.array_equal(sample.image, forwards[n].image)
        assert np.array_equal(sample.boxes_xyxy, forwards[n].boxes_xyxy)


def test_augmentation_leaves_the_kept_frames_alone():
    samples = numbered_samples()
    for number in range(40):
        samples[number]
    for index, kept in samples.order._kept.items():
        assert (kept.image == index % 256).all()
        assert kept.boxes_xyxy.tolist() == [[5, 6, 25, 30]]


def test_stream_gives_back_the_masks_of_a_kept_frame():
    class Masked(Numbered):
        def __getitem__(self, index: int) -> Sample:
            masks = np.random.default_rng(index).integers(0, 2, (index % 3, 41, 61), np.uint8)
            things = np.zeros(index % 3, np.int64)
            return Sample(
                image=np.zeros((41, 61, 3), np.uint8),
                boxes_xyxy=np.zeros((len(things), 4), np.float32),
                classes=things,
                is_crowd=things > 0,
                image_id=index,
                file_name=str(index),
                masks=masks,
            )

    order = StreamedOrder(Masked(2000), 0, 4)
    for number in range(80):
        sample = order.load(number)
        assert np.array_equal(sample.masks, Masked()[sample.image_id].masks)


def test_mosaic_ends_at_its_sample():
    calm = NumberedSamples(
        Numbered(200), (64, 96), Augment(mosaic=1.0), mosaic_end=5, seed=3, uses=None
    )
    assert max(len(calm[n]) for n in range(5)) > 1
    assert all(len(calm[n]) <= 1 for n in range(5, 25))


def test_two_ranks_share_the_numbers_of_one_with_twice_the_batch():
    alone = list(NumberedBatches(3, 9, 4, 0, 1))
    ranks = [list(NumberedBatches(3, 9, 2, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == alone


def test_batches_after_a_resume_are_the_rest_of_the_run():
    whole = list(NumberedBatches(0, 10, 4, 1, 2))
    resumed = NumberedBatches(6, 10, 4, 1, 2)
    assert list(resumed) == whole[6:]
    assert len(resumed) == 4
