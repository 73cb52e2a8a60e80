"""What a run teaches: which samples it draws, what is run on them, what learns, how it is scored.

`ImageLesson` is how every model learns from images; networks for video have more
(`training.video.lessons`). The loop itself is the same for all (`training.loop.trainer`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from training.data.augment import Augment
from training.data.records import each_once
from training.data.sample import Source
from training.loop.feed import NumberedSamples
from training.models.base import Losses, Model, Raw, Recipe
from training.tasks import main_score_of, task_module

Collate = Callable[[list[Any]], tuple[Tensor, Any]]


class Lesson(Protocol):
    """A way to teach a model.

    Attributes:
        name: stands in the run's state, which no other lesson continues.
        main_score: the one of `evaluate` by which the best weights are chosen; higher is better.
        num_val: samples that there are to validate on; 0: the last weights are the best.
        unit: what is counted when it validates.
    """

    name: str
    main_score: str
    num_val: int
    unit: str

    def samples(
        self, model: Model, recipe: Recipe, *, seed: int, uses: int | None, world: int
    ) -> Dataset[Any]:
        """The samples of a run by their number; see `NumberedSamples` for `uses`."""
        ...

    def collate(self, samples: list[Any]) -> tuple[Tensor, Any]:
        """Samples to frames (B', H, W, 3) uint8 BGR and targets that go to a device with `to`."""
        ...

    def network(self, model: Model) -> nn.Module:
        """What is called on the prepared frames."""
        ...

    def learning(self, model: Model) -> Iterator[nn.Parameter]:
        """The parameters that learn; the others stand still."""
        ...

    def begin(self, model: Model) -> None:
        """Put the model into training mode, what stands still excepted."""
        ...

    def loss(self, model: Model, made: Raw, targets: Any) -> Losses:
        """Losses by name of what the network made."""
        ...

    def evaluate(self, model: Model, count: int) -> dict[str, float]:
        """Scores of a model on the first `count` samples for validation."""
        ...


class ImageLesson:
    """Images of a data set, with the model's own loss and its task's scores; see `Lesson`."""

    name = "image"
    unit = "images"

    def __init__(self, task: str, train: Source, val: Source | None) -> None:
        self.task, self.train, self.val = task_module(task), train, val
        self.main_score = main_score_of(task, getattr(train, "joints", ()))
        self.num_val = 0 if val is None else len(val)

    def samples(
        self, model: Model, recipe: Recipe, *, seed: int, uses: int | None, world: int
    ) -> NumberedSamples:
        mosaic_end = int(recipe.steps * (1 - recipe.mosaic_off)) * recipe.batch * world
        flip_pairs = getattr(model.spec, "flip_pairs", ())
        augment, size_hw = replace(augment_of(recipe), flip_pairs=flip_pairs), model.spec.size_hw
        return NumberedSamples(
            self.train, size_hw, augment, mosaic_end=mosaic_end, seed=seed, uses=uses
        )

    def collate(self, samples: list[Any]) -> tuple[Tensor, Any]:
        batch: tuple[Tensor, Any] = self.task.collate(samples)
        return batch

    def network(self, model: Model) -> nn.Module:
        return model

    def learning(self, model: Model) -> Iterator[nn.Parameter]:
        return model.parameters()

    def begin(self, model: Model) -> None:
        model.train()

    def loss(self, model: Model, made: Raw, targets: Any) -> Losses:
        return model.loss(made, targets)

    def evaluate(self, model: Model, count: int) -> dict[str, float]:
        assert self.val is not None
        samples = itertools.islice(each_once(self.val), count)
        scores: dict[str, float] = self.task.evaluate(model, samples, self.val.category_ids)
        return scores


def augment_of(recipe: Recipe) -> Augment:
    """What a recipe lets happen to its samples."""
    return Augment(
        flip=recipe.flip,
        vertical_flip=recipe.vertical_flip,
        scale=recipe.scale,
        hsv=recipe.hsv,
        mosaic=recipe.mosaic,
        view_hw=recipe.view_hw,
        focus=recipe.focus,
        object_px=recipe.object_px,
    )
