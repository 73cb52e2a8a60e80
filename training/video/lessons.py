"""The two lessons of a network for video, after images: the flow alone, then everything it is for.

YolactEdge trains so (arXiv:2012.12259, section 4.4): the trunk stands still, with its batch
statistics, so that key frames go on as images have taught them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from training.data.clips import ClipSource
from training.loop.lessons import augment_of
from training.losses.flow import end_point_error, flow_loss
from training.models.base import Losses, Model, NonkeyRaw, Raw, Recipe, TemporalModel
from training.video.pairs import NumberedPairs, PairTargets, collate_pairs
from training.video.scoring import score_clips

FLOW_WEIGHT = 0.5  # of the flow's error, in cells, beside the losses of what is detected
OUTLIER_PX, OUTLIER_SHARE = 3.0, 0.05  # an outlier is off by more than both (KITTI 2015)
INTERVAL = 5  # frames from one key frame to the next, where weights are chosen


class PairNetwork(nn.Module):
    """A temporal model on key frames and the frames that lean on them."""

    def __init__(self, model: TemporalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[NonkeyRaw, Raw]:
        """Run (2B, 3, H, W) float32, normalised: B key frames, then B later ones.

        Returns:
            Of the later frames; and their raw output, were they key frames, which learns nothing.
        """
        keys, later = images.chunk(2)
        _, state = self.model.key(keys)  # gradients reach what of it is for video
        with torch.no_grad():
            wanted = self.model(later)
        return self.model.nonkey_raw(later, state), wanted


class FlowNetwork(nn.Module):
    """The flow of a temporal model, from frames to their key frames."""

    def __init__(self, model: TemporalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """Run (2B, 3, H, W) float32, normalised: B key frames, then B later ones."""
        keys, later = images.chunk(2)
        return self.model.find_flows(keys, later)


class PairLesson:
    """What the lessons from pairs of frames share; see `training.loop.lessons.Lesson`.

    Args:
        task: of the model.
        train: clips. val: clips to validate on, or None.
    """

    name: ClassVar[str]
    unit: ClassVar[str]

    def __init__(self, task: str, train: ClipSource, val: ClipSource | None) -> None:
        self.task, self.train, self.val = task, train, val

    def samples(
        self, model: Model, recipe: Recipe, *, seed: int, uses: int | None, world: int
    ) -> NumberedPairs:
        augment, size_hw = augment_of(recipe), model.spec.size_hw
        return NumberedPairs(self.train, size_hw, augment, seed=seed, uses=uses or 1)

    def collate(self, samples: list[Any]) -> tuple[Tensor, PairTargets]:
        return collate_pairs(samples, self.task)

    def network(self, model: Model) -> nn.Module:
        assert isinstance(model, TemporalModel)
        return PairNetwork(model)

    def learning(self, model: Model) -> Iterator[nn.Parameter]:
        assert isinstance(model, TemporalModel)
        return (parameter for _, parameter in model.video_parameters())

    def begin(self, model: Model) -> None:
        assert isinstance(model, TemporalModel)
        model.eval()
        for name in model.video_modules:
            getattr(model, name).train()


class FlowLesson(PairLesson):
    """The flow alone, from the true one; see `training.loop.lessons.Lesson`."""

    name = "flow"
    main_score = "flow_inliers"
    unit = "pairs"
    num_val = 0

    def __init__(self, task: str, train: ClipSource, val: ClipSource | None) -> None:
        super().__init__(task, train, val)
        self.num_val = 0 if val is None else 3 * len(val)

    def network(self, model: Model) -> nn.Module:
        assert isinstance(model, TemporalModel)
        return FlowNetwork(model)

    def loss(self, model: Model, made: list[Tensor], targets: PairTargets) -> Losses:
        assert targets.flow is not None
        assert targets.is_seen is not None
        return {"flow": flow_loss(made, targets.flow, targets.is_seen)}

    @torch.no_grad()
    def evaluate(self, model: Model, count: int) -> dict[str, float]:
        """Flow of pairs as they are, at its finest level.

        Returns:
            {"flow_inliers": 0..1, the share of cells off by at most 3 px or 5 %,
            "flow_error_px": mean error in pixels of the network input}.
        """
        assert isinstance(model, TemporalModel)
        assert self.val is not None
        model.eval()
        pairs = NumberedPairs(self.val, model.spec.size_hw, augment_of(_PLAIN), seed=0)
        network, errors, lengths = FlowNetwork(model), [], []
        for number in range(count):
            images, targets = self.collate([pairs[number]])
            targets = targets.to(model.mean.device)
            assert targets.flow is not None
            assert targets.is_seen is not None
            found = network(model.prepare(images.to(model.mean.device)))[0]
            pixels = model.spec.size_hw[1] / found.shape[-1]
            error, counts = end_point_error(found, targets.flow, targets.is_seen)
            still = torch.zeros_like(found)
            length, _ = end_point_error(still, targets.flow, targets.is_seen)
            errors.append(error[counts] * pixels)
            lengths.append(length[counts] * pixels)
        error, length = torch.cat(errors), torch.cat(lengths)
        is_outlier = (error > OUTLIER_PX) & (error > OUTLIER_SHARE * length)
        return {
            "flow_inliers": 1 - float(is_outlier.float().mean()),
            "flow_error_px": float(error.mean()),
            "flow_length_px": float(length.mean()),
        }


class VideoLesson(PairLesson):
    """Later frames' objects, on what their key frames left; see `training.loop.lessons.Lesson`.

    They learn from the labels and from what the network would say of them were they key frames;
    where the clips have it, the true flow is learnt on.
    """

    name = "video"
    main_score = "mask_AP"
    unit = "frames"

    def __init__(self, task: str, train: ClipSource, val: ClipSource | None) -> None:
        super().__init__(task, train, val)
        self.num_val = 0 if val is None else sum(1 for _ in self._frames())

    def _frames(self) -> Iterator[int]:
        assert self.val is not None
        for index in range(len(self.val)):
            yield from range(len(self.val[index]))

    def loss(self, model: Model, made: tuple[NonkeyRaw, Raw], targets: PairTargets) -> Losses:
        assert isinstance(model, TemporalModel)
        later, wanted = made
        losses = {**model.loss(later.raw, targets.later), **model.imitation(later.raw, wanted)}
        if targets.flow is not None and targets.is_seen is not None:
            flow = flow_loss(later.flows, targets.flow, targets.is_seen)
            losses["flow"] = FLOW_WEIGHT * flow
        return losses

    def evaluate(self, model: Model, count: int) -> dict[str, float]:
        """AP of frames of whole clips, a key frame every `INTERVAL`; about `count` frames."""
        assert isinstance(model, TemporalModel)
        assert self.val is not None
        per_clip = max(1, len(self.val[0]))
        clips = [self.val[i] for i in range(min(len(self.val), max(1, count // per_clip)))]
        return score_clips(model, clips, self.val.category_ids, interval=INTERVAL).scores


_PLAIN = Recipe(flip=0.0, vertical_flip=0.0, scale=(1.0, 1.0), hsv=(0.0, 0.0, 0.0))
