"""Masks go through shared memory as bits and come out as they were."""

from __future__ import annotations

import pytest
import torch
from tiny_samples import empty_sample, make_sample

from training.loop.feed import NumberedBatches, make_feed
from training.loop.packing import PackedMasks
from training.tasks import instance


class Drawn(torch.utils.data.Dataset):
    def __getitem__(self, number):
        return make_sample() if number % 3 else empty_sample((120, 200))


@pytest.mark.parametrize("width", [1, 8, 13, 160])
def test_packed_masks_come_out_as_they_were(width):
    masks = torch.randint(0, 2, (2, 3, 5, width), dtype=torch.uint8)
    packed = PackedMasks.pack(masks)
    assert packed.bits.numel() <= masks.numel() / 8 + 2 * 3 * 5
    assert torch.equal(packed.to(torch.device("cpu")), masks)


def test_batch_without_objects_has_masks_of_none():
    masks = torch.zeros(2, 0, 5, 13, dtype=torch.uint8)
    assert PackedMasks.pack(masks).to(torch.device("cpu")).shape == masks.shape


def test_workers_hand_over_what_the_task_collates():
    batches = NumberedBatches(0, 2, 2, 0, 1)
    plain = make_feed(Drawn(), batches, collate=instance.collate, workers=0)
    worked = make_feed(Drawn(), batches, collate=instance.collate, workers=1)
    for (images, targets), (their_images, packed) in zip(plain, worked, strict=True):
        assert isinstance(packed.masks, PackedMasks)
        theirs = packed.to(torch.device("cpu"))
        assert torch.equal(their_images, images)
        assert torch.equal(theirs.masks, targets.masks)
        assert torch.equal(theirs.boxes_xyxy, targets.boxes_xyxy)
        assert targets.masks.any()
