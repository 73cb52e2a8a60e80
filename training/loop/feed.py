"""Batches in a fixed order: sample number n of a run is the same whenever and wherever it is drawn.

That is what lets `--resume` continue where a killed run stood, and several ranks share one order.
"""

from __future__ import annotations

import dataclasses
import math
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from training.data.augment import Augment, augmented
from training.data.sample import Sample, Source
from training.loop.packing import PackingCollate


class EpochOrder:
    """Which sample of a data set has number n: every epoch all of them, in a fresh order."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed
        self._epoch: tuple[int, np.ndarray] | None = None

    def load(self, number: int) -> Sample:
        """The sample of number n, before augmentation."""
        epoch, offset = divmod(number, len(self.source))
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.source))
            self._epoch = (epoch, order)
        return self.source[int(self._epoch[1][offset])]


class StreamedOrder:
    """Which frame of a rendered source has number n: new ones at an even pace, each used again.

    Every `uses`-th sample is new; the others are drawn from the last WINDOW frames, which stay in
    memory, their masks as bits. So the renderer works at 1 / uses of the trainer's pace, and
    frames keep coming.
    """

    WINDOW = 384  # frames, about 1 MB each

    def __init__(self, source: Source, seed: int, uses: int) -> None:
        self.source, self.seed, self.uses = source, seed, uses
        self._kept: OrderedDict[int, Sample] = OrderedDict()
        self._masks: dict[int, tuple[np.ndarray, tuple[int, ...]]] = {}  # bits and shape

    def load(self, number: int) -> Sample:
        """The frame of number n, before augmentation."""
        frame, turn = divmod(number, self.uses)
        if turn:
            rng = np.random.default_rng((self.seed, 2, number))
            frame -= int(rng.integers(min(self.WINDOW, frame + 1)))
        index = frame % len(self.source)
        if index not in self._kept:
            self._keep(index, self.source[index])
        sample = self._kept[index]
        if index not in self._masks:
            return sample
        bits, shape = self._masks[index]
        masks = np.unpackbits(bits, count=math.prod(shape)).reshape(shape)
        return dataclasses.replace(sample, masks=masks)

    def _keep(self, index: int, sample: Sample) -> None:
        if sample.masks is not None:
            self._masks[index] = np.packbits(sample.masks), sample.masks.shape
            sample = dataclasses.replace(sample, masks=None)
        self._kept[index] = sample
        if len(self._kept) > self.WINDOW:
            oldest, _ = self._kept.popitem(last=False)
            self._masks.pop(oldest, None)


class NumberedSamples(Dataset[Sample]):
    """Augmented samples by their number in the run.

    Args:
        source: drawn from by epochs, or streamed where `uses` is given.
        size_hw: of the network input.
        augment: its mosaic is off from sample `mosaic_end` on.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        source: Source,
        size_hw: tuple[int, int],
        augment: Augment,
        *,
        mosaic_end: int,
        seed: int,
        uses: int | None = None,
    ) -> None:
        self.order = StreamedOrder(source, seed, uses) if uses else EpochOrder(source, seed)
        self.source = source
        self.size_hw = size_hw
        self.augment = augment
        self.mosaic_end = mosaic_end
        self.seed = seed

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng((self.seed, 1, number))
        augment = self.augment if number < self.mosaic_end else self.augment.without_mosaic()

        def draw_other() -> Sample:
            return self.order.load(int(rng.integers(max(1, number))))

        make = getattr(self.source, "augmented", augmented)  # crops are made in their own way
        return make(self.order.load(number), draw_other, self.size_hw, augment, rng)


class NumberedBatches(Sampler[list[int]]):
    """The numbers of one rank's batches, from a step on."""

    def __init__(self, start: int, steps: int, batch: int, rank: int, world: int) -> None:
        self.start, self.steps, self.batch = start, steps, batch
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            first = (step * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))

    def __len__(self) -> int:
        return self.steps - self.start


def _start_worker(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process decides when to stop
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def make_feed(
    samples: Dataset[Any],
    batches: NumberedBatches,
    *,
    collate: Callable[[list[Any]], tuple[torch.Tensor, Any]],
    workers: int,
) -> DataLoader[tuple[torch.Tensor, Any]]:
    """A loader of what `collate` makes: (images (B, H, W, 3) uint8 BGR, targets).

    Masks that come from workers are bits until `Targets.to`.
    """
    options: dict[str, Any] = {}
    if workers:
        collate = PackingCollate(collate)
        options = {"prefetch_factor": 4, "worker_init_fn": _start_worker}
        cv2.setNumThreads(1)  # a process forked beside OpenCV's threads waits for them for ever
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        **options,
    )
