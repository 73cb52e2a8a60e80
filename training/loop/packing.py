"""Masks of a batch as bits, for their way from a worker to the trainer.

Workers hand batches over through shared memory, which is scarce (64 MB in a container by default):
a hundred masks at 512x288 take 15 MB as bytes and 2 MB as bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedMasks:
    """Stands for a tensor of masks in `Targets` until `Targets.to` asks for it.

    Attributes:
        bits: (B, N, H, ceil(W / 8)) uint8, eight pixels each, the first in the highest bit.
        width: W.
    """

    bits: Tensor
    width: int

    @classmethod
    def pack(cls, masks: Tensor) -> PackedMasks:
        """Of masks (B, N, H, W) uint8, 0 or 1."""
        return cls(torch.from_numpy(np.packbits(masks.numpy(), axis=-1)), masks.shape[-1])

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        """The masks (B, N, H, W) uint8 again."""
        masks = np.unpackbits(self.bits.numpy(), axis=-1, count=self.width)
        return torch.from_numpy(masks).to(device, non_blocking=non_blocking)


@dataclass(frozen=True)
class PackingCollate:
    """A task's `collate` whose targets carry their masks as `PackedMasks`."""

    collate: Callable[[list[Any]], tuple[Any, Any]]

    def __call__(self, samples: list[Any]) -> tuple[Any, Any]:
        images, targets = self.collate(samples)
        if isinstance(getattr(targets, "masks", None), Tensor):
            targets.masks = PackedMasks.pack(targets.masks)
        return images, targets
