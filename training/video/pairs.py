"""Pairs of a key frame and a later one: what a network for video learns from.

Pair number n of a run is a function of the seed and n alone, as images are (`training.loop.feed`).
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.data.augment import Augment, draw_affine, recoloured
from training.data.clips import Clip, ClipSource, Flow
from training.data.geometry import warp
from training.data.sample import Sample
from training.models.base import Targets
from training.tasks import task_module

MAX_DISTANCE = 5  # frames from the key frame to the later one
PAIRS_A_CLIP = 3  # with one key frame


@dataclass(slots=True)
class Pair:
    """A later frame with its labels, its key frame, and the way from one to the other.

    Attributes:
        key: (H, W, 3) uint8, BGR.
        later: of the same size.
        flow: from the later frame to the key frame; None where the data set has none.
    """

    key: np.ndarray
    later: Sample
    flow: Flow | None


@dataclass(slots=True)
class PairTargets:
    """Ground truth of a batch of pairs.

    Attributes:
        later: of the later frames.
        flow: (B, 2, H, W) float32, pixels of the network input: the point seen at p in the later
            frame lay at p + flow in its key frame; None where the data set has none.
        is_seen: (B, 1, H, W) bool: the point is seen in the key frame; flow is true there.
    """

    later: Targets
    flow: Tensor | None = None
    is_seen: Tensor | None = None

    def to(self, device: torch.device) -> PairTargets:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return PairTargets(*(None if value is None else value.to(device) for value in values))


class NumberedPairs(Dataset[Pair]):
    """Augmented pairs by their number in the run; both frames are moved and coloured alike.

    Args:
        source: of the clips.
        size_hw: of the network input.
        augment: what may happen; mosaics and noise do not: noise that is the same in both frames
            would show a frame that stands still.
        seed: of order and augmentation.
        uses: of each pair; the pairs drawn again come from the last WINDOW, which stay in memory.
    """

    WINDOW = 160  # pairs, about 3 MB each

    def __init__(
        self,
        source: ClipSource,
        size_hw: tuple[int, int],
        augment: Augment,
        *,
        seed: int,
        uses: int = 1,
    ) -> None:
        self.source, self.size_hw, self.seed, self.uses = source, size_hw, seed, uses
        self.augment = dataclasses.replace(augment, mosaic=0.0, noise=0.0)
        self._kept: OrderedDict[int, _Packed] = OrderedDict()
        self._clip: tuple[int, Clip] | None = None
        self._epoch: tuple[int, np.ndarray] | None = None

    def __getitem__(self, number: int) -> Pair:
        rng = np.random.default_rng((self.seed, 1, number))
        pair = self._load(number)
        matrix = draw_affine(pair.later.image_hw, self.size_hw, self.augment, rng)
        return moved_pair(pair, matrix, self.size_hw, self.augment, int(rng.integers(2**32)))

    def _load(self, number: int) -> Pair:
        """The pair of number n, before augmentation."""
        fresh, turn = divmod(number, self.uses)
        if turn:
            rng = np.random.default_rng((self.seed, 2, number))
            fresh -= int(rng.integers(min(self.WINDOW, fresh + 1)))
        if self.uses == 1:
            return self.draw(fresh)
        if fresh not in self._kept:
            self._kept[fresh] = _Packed(self.draw(fresh))
            if len(self._kept) > self.WINDOW:
                self._kept.popitem(last=False)
        return self._kept[fresh].unpacked()

    def draw(self, number: int) -> Pair:
        """Pair `number` of the clips: each gives `PAIRS_A_CLIP`, of one key frame."""
        turn, place = divmod(number, PAIRS_A_CLIP)
        clip = self._clip_of(turn)
        rng = np.random.default_rng((self.seed, 3, turn))
        first = int(rng.integers(max(1, len(clip) - MAX_DISTANCE)))
        distances = 1 + rng.permutation(min(MAX_DISTANCE, len(clip) - 1 - first))
        later = first + int(distances[place % len(distances)])
        flow = clip.flow(later, first)
        return Pair(clip.frame(first).image, clip.frame(later), flow)

    def _clip_of(self, turn: int) -> Clip:
        if self._clip is None or self._clip[0] != turn:
            epoch, offset = divmod(turn, len(self.source))
            if self._epoch is None or self._epoch[0] != epoch:
                order = np.random.default_rng((self.seed, epoch)).permutation(len(self.source))
                self._epoch = (epoch, order)
            self._clip = turn, self.source[int(self._epoch[1][offset])]
        return self._clip[1]


class _Packed:
    """A pair as it waits to be used again: masks as bits, flow as float16 (1/16 px at 64 px)."""

    def __init__(self, pair: Pair) -> None:
        assert pair.later.masks is not None
        self.shape = pair.later.masks.shape
        self.masks = np.packbits(pair.later.masks)
        self.pair = dataclasses.replace(pair, later=dataclasses.replace(pair.later, masks=None))
        if pair.flow is not None:
            self.pair.flow = Flow(pair.flow.offsets_xy.astype(np.float16), pair.flow.is_seen)

    def unpacked(self) -> Pair:
        masks = np.unpackbits(self.masks, count=math.prod(self.shape)).reshape(self.shape)
        flow = self.pair.flow
        if flow is not None:
            flow = Flow(flow.offsets_xy.astype(np.float32), flow.is_seen)
        return Pair(self.pair.key, dataclasses.replace(self.pair.later, masks=masks), flow)


def moved_pair(
    pair: Pair, matrix: np.ndarray, size_hw: tuple[int, int], augment: Augment, colour_seed: int
) -> Pair:
    """Both frames of a pair, and the way between them, under one map.

    Args:
        pair: any size.
        matrix: (2, 3) from pixels of the frames to pixels of the result; scales, flips, shifts.
        size_hw: of the result.
        augment: of the colours.
        colour_seed: decides the colours of both frames.
    """
    bare = _without_objects(pair.later, pair.key)
    frames = [warp(sample, matrix, size_hw) for sample in (bare, pair.later)]
    for frame in frames:
        frame.image = recoloured(frame.image, augment, np.random.default_rng(colour_seed))
    flow = None if pair.flow is None else warp_flow(pair.flow, matrix, size_hw)
    return Pair(frames[0].image, frames[1], flow)


def _without_objects(like: Sample, image: np.ndarray) -> Sample:
    return Sample(
        image=image,
        boxes_xyxy=np.zeros((0, 4), np.float32),
        classes=np.zeros(0, np.int64),
        is_crowd=np.zeros(0, bool),
        image_id=like.image_id,
        file_name=like.file_name,
    )


def warp_flow(flow: Flow, matrix: np.ndarray, size_hw: tuple[int, int]) -> Flow:
    """A flow between two frames that both are moved by one map.

    Args:
        flow: of any size.
        matrix: (2, 3) from pixels of the frames to pixels of the result; scales, flips, shifts.
        size_hw: of the result.
    """
    local = matrix.copy()
    local[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5  # pixel centres
    width_height = size_hw[1], size_hw[0]
    offsets = cv2.warpAffine(flow.offsets_xy, local, width_height, flags=cv2.INTER_NEAREST)
    offsets = offsets * np.array([matrix[0, 0], matrix[1, 1]], np.float32)
    is_seen = flow.is_seen.astype(np.uint8)
    is_seen = cv2.warpAffine(is_seen, local, width_height, flags=cv2.INTER_NEAREST) > 0
    columns = offsets[..., 0] + np.arange(size_hw[1], dtype=np.float32) + 0.5
    rows = offsets[..., 1] + np.arange(size_hw[0], dtype=np.float32)[:, None] + 0.5
    is_seen &= (columns >= 0) & (columns < size_hw[1]) & (rows >= 0) & (rows < size_hw[0])
    return Flow(offsets, is_seen)


def collate_pairs(pairs: list[Pair], task: str) -> tuple[Tensor, PairTargets]:
    """Pairs of one size to images (2B, H, W, 3) uint8 BGR, the key frames first, and targets."""
    later, targets = task_module(task).collate([pair.later for pair in pairs])
    images = torch.cat([torch.from_numpy(np.stack([pair.key for pair in pairs])), later])
    flows = [pair.flow for pair in pairs if pair.flow is not None]
    if len(flows) < len(pairs):
        return images, PairTargets(targets)
    offsets = torch.from_numpy(np.stack([flow.offsets_xy for flow in flows])).permute(0, 3, 1, 2)
    is_seen = torch.from_numpy(np.stack([flow.is_seen for flow in flows]))[:, None]
    return images, PairTargets(targets, offsets.contiguous(), is_seen)
