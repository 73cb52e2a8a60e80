"""Batches in a fixed order: sample number n of a run is the same whenever and wherever it is drawn.

That is what lets `--resume` continue where a killed run stood, and several ranks share one order.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from training.data.augment import Augment, augmented
from training.data.sample import Sample, Source
from training.models.base import Targets
from training.tasks import task_module


class NumberedSamples(Dataset[Sample]):
    """Augmented samples by their number in the run.

    Args:
        source: drawn from in a fresh order each epoch.
        size_hw: of the network input.
        augment: its mosaic is off from sample `mosaic_end` on.
        seed: of order and augmentation.
    """

    def __init__(
        self, source: Source, size_hw: tuple[int, int], augment: Augment, mosaic_end: int, seed: int
    ) -> None:
        self.source = source
        self.size_hw = size_hw
        self.augment = augment
        self.plain = dataclasses.replace(augment, mosaic=0.0)
        self.mosaic_end = mosaic_end
        self.seed = seed
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, number: int) -> Sample:
        epoch, offset = divmod(number, len(self.source))
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.source))
            self._order = (epoch, order)
        rng = np.random.default_rng((self.seed, 1, number))
        augment = self.augment if number < self.mosaic_end else self.plain

        def draw_other() -> Sample:
            return self.source[int(rng.integers(len(self.source)))]

        sample = self.source[int(self._order[1][offset])]
        return augmented(sample, draw_other, self.size_hw, augment, rng)


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides when to stop
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def make_feed(
    samples: NumberedSamples, batches: NumberedBatches, *, task: str, workers: int
) -> DataLoader[tuple[torch.Tensor, Targets]]:
    """A loader of (images (B, H, W, 3) uint8 BGR, Targets)."""
    options: dict[str, Any] = {}
    if workers:
        options = {"prefetch_factor": 4, "worker_init_fn": _start_worker}
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=task_module(task).collate,
        **options,
    )
