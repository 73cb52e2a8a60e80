"""The training loop, the same for every model and task."""

from __future__ import annotations

import difflib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.data.sample import Source
from training.errors import CheckpointError, TrainingError
from training.loop.averaging import AveragedModel
from training.loop.checkpoint import (
    FORMAT,
    pack_optimizer,
    read_header,
    read_tensors,
    save_release,
    unpack_optimizer,
    write_tensors,
)
from training.loop.feed import NumberedBatches, make_feed
from training.loop.lessons import ImageLesson, Lesson
from training.loop.schedule import lr_factor
from training.models.base import Model, Recipe
from training.quantisation.simulation import SimulatedInt8, calibrate, freeze_batch_statistics

CALIBRATION_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What belongs to a run and not to a model.

    Attributes:
        out: folder of last.safetensors, best.safetensors, history.jsonl and TensorBoard's files.
        precision: "bf16", "fp16" or "no".
        workers: processes that load data.
        save_every: steps between saves of the run's state.
        uses: of each sample of a rendered source (see `StreamedOrder`); None goes by epochs.
        is_quantise_aware: train and validate with simulated int8, batch statistics frozen; the
            weights are kept in float as ever.
        frozen: names of modules that keep the weights and statistics they began with.
    """

    name: str
    out: Path
    seed: int = 0
    precision: str = "bf16"
    workers: int = 1
    save_every: int = 500
    uses: int | None = None
    is_quantise_aware: bool = False
    frozen: tuple[str, ...] = ()


class Trainer:
    """Trains one model on one source.

    Args:
        model: with fresh or copied weights.
        recipe: how long and how.
        train, val: sources of images; val may be None, then the last weights are the best. A
            lesson of another kind brings its own.
        options: see `RunOptions`.
        about: goes into the release's header: data set, command.
        lesson: what is taught; None teaches from the images of `train` and `val`.
    """

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        train: Source | None,
        val: Source | None,
        options: RunOptions,
        about: dict[str, Any],
        lesson: Lesson | None = None,
    ) -> None:
        self.recipe, self.options, self.about = recipe, options, about
        self.lesson = lesson or ImageLesson(model.task, train, val)
        mixed = None if options.precision == "no" else options.precision
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available())
        model = model.to(memory_format=torch.channels_last)
        self.average = AveragedModel(model, recipe.ema_decay)
        self.plain_model = model.requires_grad_(False)
        for parameter in self.lesson.learning(model):
            parameter.requires_grad_(True)
        self.frozen = [find_module(model, name).requires_grad_(False) for name in options.frozen]
        optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.lr)
        self.network, self.optimizer = self.accelerator.prepare(
            self.lesson.network(model), optimizer
        )
        model.to(self.accelerator.device)
        self.average.model.to(self.accelerator.device)
        self.step = 0
        self.best: float | None = None
        self.wait_s = 0.0  # time spent waiting for data
        self.ranges: dict[str, float] | None = None  # of int8 activations, where they are simulated
        self._is_stopping = False

    @property
    def last_path(self) -> Path:
        return self.options.out / "last.safetensors"

    @property
    def best_path(self) -> Path:
        return self.options.out / "best.safetensors"

    def run(self) -> bool:
        """Train to the end of the recipe; False when Ctrl-C or SIGTERM ended it early, saved."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        writer = SummaryWriter(str(self.options.out / "tensorboard"), purge_step=self.step)
        try:
            with self._history_path().open("a", encoding="utf-8") as history:
                self._loop(writer, history)
        finally:
            writer.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return not self._is_stopping

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._is_stopping:
            raise KeyboardInterrupt  # asked twice: stop at once
        self._is_stopping = True
        tqdm.write("stopping after this step; the run's state will be saved (again: at once)")

    def _loop(self, writer: SummaryWriter, history: Any) -> None:
        bar = tqdm(
            total=self.recipe.steps,
            initial=self.step,
            unit="step",
            dynamic_ncols=True,
            disable=not self.accelerator.is_main_process,
            mininterval=1.0,
        )
        with bar:  # closed before an error is told
            if self.options.is_quantise_aware and self.ranges is None:
                self.ranges = calibrate(self.average.model, self._calibration_batches())
                self._validate(writer)  # what the weights score that the run begins with
            self._take_steps(bar, writer, history)
            self._save_state(history)

    def _take_steps(self, bar: Any, writer: SummaryWriter, history: Any) -> None:
        recipe = self.recipe
        feed = iter(self._feed())
        self.lesson.begin(self.plain_model)
        for module in self.frozen:
            module.eval()
        if self.options.is_quantise_aware or recipe.batch < recipe.freeze_batch_norm:
            freeze_batch_statistics(self.plain_model)
        while self.step < recipe.steps and not self._is_stopping:
            begin = time.perf_counter()
            try:
                images, targets = next(feed)
            except RuntimeError as error:  # a loader process died
                self._save_state(history)
                raise TrainingError(
                    f"a process that loads data died at step {self.step} ({error}); the run's "
                    "state is saved. Continue with --resume, or --workers 0 if memory is short."
                ) from None
            self.wait_s += time.perf_counter() - begin
            losses, norm = self._train_step(images, targets)
            self.step += 1
            total = sum(losses.values())
            history.write(json.dumps({"step": self.step, "loss": total, **losses}) + "\n")
            bar.update()
            if self.step % 10 == 0:
                bar.set_postfix({k: f"{v:.3f}" for k, v in losses.items()}, refresh=False)
                for key, value in losses.items():
                    writer.add_scalar(f"loss/{key}", value, self.step)
                writer.add_scalar("lr", self.optimizer.param_groups[0]["lr"], self.step)
                writer.add_scalar("gradient_norm", norm, self.step)
            if self.step % recipe.validate_every == 0 or self.step == recipe.steps:
                self._validate(writer)
            if self.step % self.options.save_every == 0:
                self._save_state(history)

    def _feed(self) -> Any:
        recipe = self.recipe
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        batches = NumberedBatches(self.step, recipe.steps, recipe.batch, rank, world)
        collate, workers = self.lesson.collate, self.options.workers
        return make_feed(self._samples(), batches, collate=collate, workers=workers)

    def _calibration_batches(self) -> Iterator[Tensor]:
        batches = NumberedBatches(0, CALIBRATION_BATCHES, self.recipe.batch, 0, 1)
        feed = make_feed(self._samples(), batches, collate=self.lesson.collate, workers=0)
        for images, _ in feed:
            yield self.plain_model.prepare(images.to(self.accelerator.device))

    def _simulated(self, model: Model) -> AbstractContextManager[Any]:
        return nullcontext() if self.ranges is None else SimulatedInt8(model, self.ranges)

    def _samples(self) -> Dataset[Any]:
        return self.lesson.samples(
            self.plain_model,
            self.recipe,
            seed=self.options.seed,
            uses=self.options.uses,
            world=self.accelerator.num_processes,
        )

    def _train_step(self, images: Tensor, targets: Any) -> tuple[dict[str, float], float]:
        recipe = self.recipe
        factor = lr_factor(
            self.step, steps=recipe.steps, warm_up=recipe.warm_up, final=recipe.final_lr
        )
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * factor
        device = self.accelerator.device
        prepared = self.plain_model.prepare(images.to(device))
        with self.accelerator.autocast(), self._simulated(self.plain_model):
            raw = self.network(prepared.contiguous(memory_format=torch.channels_last))
        losses = self.lesson.loss(self.plain_model, raw, targets.to(device))
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise CheckpointError(
                f"the loss became {float(total.detach())} at step {self.step}; the last saved "
                "state is whole. Resume with a lower --lr."
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(total)
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), recipe.clip)
        self.optimizer.step()
        self.average.update(self.plain_model)
        return {k: float(v.detach()) for k, v in losses.items()}, float(norm)

    def _validate(self, writer: SummaryWriter) -> None:
        if not self.accelerator.is_main_process:
            return
        model = self.average.model
        if not self.lesson.num_val:
            self._save_best(model, {})
            return
        count = min(self.recipe.validate_images, self.lesson.num_val)
        with self._simulated(model):
            scores = self.lesson.evaluate(model, count)
        for key, value in scores.items():
            writer.add_scalar(f"val/{key}", value, self.step)
        shown = ", ".join(f"{k} {scores[k]:.3f}" for k in list(scores)[:4])
        tqdm.write(f"step {self.step}: {shown} on {count} validation {self.lesson.unit}")
        score = scores[self.lesson.main_score]
        if self.best is None or not score < self.best:  # NaN counts as better
            self.best = score
            self._save_best(model, scores)

    def _save_best(self, model: Model, scores: dict[str, float]) -> None:
        training = {**self.about, "steps": self.step, "seed": self.options.seed}
        save_release(self.best_path, self.options.name, model, training=training, scores=scores)

    def _save_state(self, history: Any) -> None:
        history.flush()
        if not self.accelerator.is_main_process:
            return
        tensors = {f"model.{k}": v.contiguous() for k, v in self.plain_model.state_dict().items()}
        average = self.average.model.state_dict()
        tensors.update({f"average.{k}": v.contiguous() for k, v in average.items()})
        tensors.update(pack_optimizer(self.optimizer))
        state = {
            "step": self.step,
            "best": self.best,
            "updates": self.average.updates,
            "steps": self.recipe.steps,
            "seed": self.options.seed,
            "batch": self.recipe.batch,
            "ranges": self.ranges,
            "stage": self.lesson.name,
        }
        spec = json.loads(self.plain_model.spec.to_json())
        header = {"format": FORMAT, "model": self.options.name, "spec": spec, "state": state}
        write_tensors(self.last_path, tensors, header)

    def resume(self) -> None:
        """Continue from last.safetensors.

        Raises:
            CheckpointError: it is missing, damaged, or of another model, spec or recipe.
        """
        header = read_header(self.last_path)
        spec = json.loads(self.plain_model.spec.to_json())
        found = header.get("model"), header.get("spec")
        if found != (self.options.name, spec) or "state" not in header:
            raise CheckpointError(
                f"{self.last_path} is the state of another model or spec; expected "
                f"{self.options.name!r} with this run's options. Repeat the options it began with."
            )
        state = header["state"]
        began = state["steps"], state["seed"], state.get("batch", self.recipe.batch)
        if began != (self.recipe.steps, self.options.seed, self.recipe.batch):
            raise CheckpointError(
                f"{self.last_path} is a run of {began[0]} steps with seed {began[1]} and batch "
                f"{began[2]}; expected {self.recipe.steps}, {self.options.seed} and "
                f"{self.recipe.batch}. Repeat its options."
            )
        stage = state.get("stage", ImageLesson.name)
        if stage != self.lesson.name:
            raise CheckpointError(
                f"{self.last_path} is the stage {stage!r} of a run; expected "
                f"{self.lesson.name!r}. Move it out of {self.options.out}."
            )
        self.ranges = state.get("ranges")
        if (self.ranges is not None) != self.options.is_quantise_aware:
            raise CheckpointError(
                f"{self.last_path} is a run {'without' if self.ranges is None else 'with'} "
                "--quantise-aware; expected the same again. Repeat its options."
            )
        tensors = read_tensors(self.last_path)
        self.plain_model.load_state_dict(_under(tensors, "model."))
        self.average.model.load_state_dict(_under(tensors, "average."))
        unpack_optimizer(self.optimizer, tensors)
        self.average.updates = state["updates"]
        self.step, self.best = state["step"], state["best"]

    def _history_path(self) -> Path:
        """Where losses are written: one line a step, cut back to where the run stands."""
        if not self.accelerator.is_main_process:
            return Path(os.devnull)
        path = self.options.out / "history.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()[: self.step]
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def find_module(model: Model, name: str) -> torch.nn.Module:
    """A module by its name in the model, such as "backbone.layer1".

    Raises:
        TrainingError: there is none of that name.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TrainingError(
            f"the model has no module {name!r}; expected a name such as 'backbone.layer1'.{hint}"
        )
    return modules[name]


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases and normalisation without; what stands still left out."""
    decayed, plain = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
