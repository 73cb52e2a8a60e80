r"""Train a model on a data set, and keep its best weights as a checkpoint.

The run's folder holds best.safetensors (the checkpoint), a state to resume from, and TensorBoard's
events. Small data sets start from the shipped weights; Ctrl-C saves.

Examples:
  python training/train.py --model retinanet --data data/mine
      Boxes of your classes: a COCO, Pascal VOC or YOLO folder with train and val.
  python training/train.py --model yolact --data data/mine --size 640x384 --epochs 40
      Masks, for frames of 16:9.
  python training/train.py --model retinanet --data data/mine --out runs/train/mine --resume
      Goes on exactly where a stopped or killed run was.
  python training/train.py --model retinanet --init weights/retinanet_small.safetensors \
      --quantise-aware
      Adapts a checkpoint to int8.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.errors import TrainingError, run_script
from training.manual import ScriptParser

if TYPE_CHECKING:
    from training.data.sample import Source
    from training.models.base import Recipe, Spec

STREET_USES = 4  # of each rendered frame, augmented anew: rendering costs more than a training step
MOST_EPOCHS = 120  # of the default length; --steps and --epochs go beyond
QUANTISE_AWARE_STEPS = 0.1  # of the recipe's, to adapt trained weights to int8
QUANTISE_AWARE_LR = 0.1


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = ScriptParser(
        __doc__,
        statuses={130: "stopped by Ctrl-C after saving; --resume goes on from there"},
    )
    parser.add_argument("--model", required=True, help="a registered model, such as retinanet")
    parser.add_argument("--variant", help="default: the model's first")
    parser.add_argument("--data", default="street", help="street, or a COCO, VOC or YOLO folder")
    parser.add_argument("--out", type=Path, help="default: runs/train/MODEL_VARIANT_DATA")
    parser.add_argument("--size", help="network input as WIDTHxHEIGHT; default: the variant's")
    parser.add_argument("--steps", type=int, help="optimiser steps; default: the recipe's")
    parser.add_argument("--epochs", type=float, help="in place of --steps")
    parser.add_argument("--batch", type=int, help="images a step; default: the recipe's")
    parser.add_argument("--lr", type=float, help="peak learning rate; default: the recipe's")
    parser.add_argument(
        "--init",
        default="auto",
        help="auto (our shipped weights for other data than street, else the recipe's pretrained "
        "backbone), scratch (no weights at all), or a checkpoint",
    )
    parser.add_argument(
        "--quantise-aware",
        action="store_true",
        help="adapt the checkpoint of --init to int8: a short run at a low learning rate",
    )
    parser.add_argument(
        "--freeze",
        nargs="*",
        default=[],
        metavar="MODULE",
        help="modules that keep the weights of --init, such as backbone.conv1: a step costs less",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp16", "fp32"),
        default="auto",
        help="of products; auto: the best that the device has",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(8, max(1, (os.cpu_count() or 2) - 1)),
        help="processes that make samples",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and samples")
    parser.add_argument("--save-every", type=int, default=500, help="steps between saved states")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    return parser.parse_args()


def parse_size(text: str) -> tuple[int, int]:
    """Read "640x384" as (384, 640): height and width, each 32 to 4096."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdigit() and 32 <= int(p) <= 4096 for p in parts):
        raise TrainingError(
            f"--size {text!r} is no size; expected WIDTHxHEIGHT from 32 to 4096, such as 640x384."
        )
    return int(parts[1]), int(parts[0])


def main() -> int:
    """Train; exit status 0, or 130 when stopped early."""
    args = parse_args()
    from training.models import model_class, model_variant

    variant = model_variant(args.model, args.variant)  # a wrong name fails before slow imports
    check_numbers(args)

    from training.models.base import CropSpec
    from training.tasks import open_source

    task, spec = model_class(args.model).task, variant.spec
    if args.size:
        spec = dataclasses.replace(spec, size_hw=parse_size(args.size))
    train = open_source(task, spec, args.data, "train", is_training=True)
    val = open_source(task, spec, args.data, "val")
    check_same_classes(train, val)
    if args.quantise_aware:
        spec = trained_spec(args, train)
        recipe = shortened(model_variant(args.model, spec.variant).recipe)
        return fit(args, spec, {"image": recipe}, train, val)
    size_hw = spec.size_hw
    if not args.size and args.data != "street" and not isinstance(spec, CropSpec):
        size_hw = fitted_size(size_hw, [train[i].image_hw for i in range(min(16, len(train)))])
        print(f"network input {size_hw[1]}x{size_hw[0]}, to fit the images; --size overrides")
    spec = dataclasses.replace(
        spec,
        size_hw=size_hw,
        classes=tuple(train.classes),
        category_ids=tuple(train.category_ids),
        **joints_for(spec, train),
    )
    return fit(args, spec, {"image": variant.recipe, **variant.stages}, train, val)


def trained_spec(args: argparse.Namespace, train: Source) -> Spec:
    """The spec of the checkpoint that --quantise-aware adapts; size and classes stay its own."""
    from training.loop.checkpoint import load_release

    if args.init in ("auto", "scratch") or args.size or args.variant:
        raise TrainingError(
            f"--quantise-aware adapts a trained checkpoint as it is; got --init {args.init}, "
            f"--size {args.size}, --variant {args.variant}. Give --init a checkpoint, alone."
        )
    spec = load_release(Path(args.init), args.model)[0].spec
    if spec.classes != tuple(train.classes) or spec.category_ids != tuple(train.category_ids):
        raise TrainingError(
            f"{args.init} knows the classes {', '.join(spec.classes)} {spec.category_ids}; "
            f"{args.data} has {', '.join(train.classes)} {tuple(train.category_ids)}. Give the "
            "data that it was trained on."
        )
    return spec


def shortened(recipe: Recipe) -> Recipe:
    """The recipe that adapts trained weights to int8."""
    steps = max(1, round(recipe.steps * QUANTISE_AWARE_STEPS))
    return dataclasses.replace(
        recipe,
        steps=steps,
        lr=recipe.lr * QUANTISE_AWARE_LR,
        validate_every=max(1, steps // 4),
    )


def joints_for(spec: Spec, train: Source) -> dict[str, Any]:
    """The fields of a spec with joints that say which ones the data set has; else nothing."""
    from training.data.jointed import joints_of
    from training.models.base import KeypointSpec

    return joints_of(train).fields() if isinstance(spec, KeypointSpec) else {}


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse what cannot be a count or a rate, before anything slow."""
    for name in ("steps", "epochs", "batch", "lr", "save_every"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise TrainingError(
                f"--{name.replace('_', '-')} {value} is not positive. Give a number above 0."
            )
    if args.workers < 0:
        raise TrainingError(f"--workers {args.workers} is below 0. Give 0 or more processes.")


def check_same_classes(train: Source, val: Source) -> None:
    """Refuse splits whose class numbers mean different things."""
    ours, theirs = (list(zip(s.category_ids, s.classes, strict=True)) for s in (train, val))
    if ours != theirs:
        odd = sorted({str(name) for _, name in set(ours) ^ set(theirs)}) or ["their order"]
        raise TrainingError(
            f"the train split has {len(ours)} classes and the val split {len(theirs)}; they "
            f"differ in {', '.join(odd[:5])}. Give both the same list of categories."
        )


def fitted_size(budget_hw: tuple[int, int], images_hw: list[tuple[int, int]]) -> tuple[int, int]:
    """A network input of as many pixels as `budget_hw` with the images' median aspect.

    Both sides are multiples of 32, at least 64.
    """
    aspects = sorted(width / height for height, width in images_hw)
    aspect = aspects[len(aspects) // 2]
    area = budget_hw[0] * budget_hw[1]
    height = max(64, 32 * round((area / aspect) ** 0.5 / 32))
    width = max(64, 32 * round((area * aspect) ** 0.5 / 32))
    return height, width


def adjusted_recipe(  # noqa: ANN201
    recipe,  # noqa: ANN001
    args: argparse.Namespace,
    num_samples: int,
    share: float = 1.0,
):
    """The variant's recipe with the command line's changes; `share` of --steps are its own."""
    if args.batch:
        recipe = dataclasses.replace(recipe, batch=args.batch)
    if args.epochs:
        steps = max(1, round(args.epochs * num_samples / recipe.batch))
        recipe = dataclasses.replace(recipe, steps=steps)
    elif args.steps:
        recipe = dataclasses.replace(recipe, steps=max(1, round(args.steps * share)))
    else:  # a small data set is learnt sooner
        most = max(2000, round(MOST_EPOCHS * num_samples / recipe.batch))
        recipe = dataclasses.replace(recipe, steps=min(recipe.steps, most))
    if args.lr:
        recipe = dataclasses.replace(recipe, lr=args.lr)
    warm_up = min(recipe.warm_up, max(1, recipe.steps // 10))
    validate_every = min(recipe.validate_every, recipe.steps)
    return dataclasses.replace(recipe, warm_up=warm_up, validate_every=validate_every)


def fit(args, spec, recipes, train, val) -> int:  # noqa: ANN001
    """Build, train stage by stage, and say where the best checkpoint lies."""
    import torch

    from training.loop.checkpoint import load_matching, shipped_checkpoint
    from training.models import model_class
    from training.video.stages import plan_stages, run_folder

    torch.manual_seed(args.seed)
    data_name = Path(args.data).name
    run_name = f"{args.model}_{spec.variant}_{data_name}" + "_int8" * args.quantise_aware
    out = args.out or Path("runs/train") / run_name
    states = [out / "last.safetensors", *(out / s / "last.safetensors" for s in recipes)]
    if any(path.exists() for path in states) and not args.resume:
        raise TrainingError(
            f"{out} already holds a run; nothing was changed. "
            "Continue it with --resume, or choose another --out."
        )
    init = args.init
    if init == "auto":
        shipped = shipped_checkpoint(args.model, spec.variant)
        init = str(shipped) if args.data != "street" and shipped.is_file() else "scratch"
    is_fresh = args.init == "auto" and init == "scratch" and not args.resume
    options = {"is_backbone_pretrained": recipes["image"].is_backbone_pretrained and is_fresh}
    model = model_class(args.model)(spec, **options)
    if init != "scratch":
        left_out = load_matching(model, Path(init))
        fresh = Counter(name.split(".")[0] for name in left_out)
        shown = ", ".join(f"{count} of {part}" for part, count in fresh.items())
        print(f"starting from {init}; {len(left_out)} tensors start fresh: {shown or 'none'}")
    about = {
        "data": data_name,
        "command": "python training/train.py " + shlex.join(sys.argv[1:]),
        "init": Path(init).name,
    }
    path = None if init == "scratch" else Path(init)
    stages = plan_stages(model, recipes, args.data, train, val, path)
    total = sum(stage.recipe.steps for stage in stages)
    for stage in stages:
        recipe = adjusted_recipe(stage.recipe, args, len(train), stage.recipe.steps / total)
        folder = run_folder(out, stages, stage)
        best = teach(args, model, recipe, folder, stage.lesson, about, is_first=stage is stages[0])
        if best is None:
            return 130
        load_matching(model, best)
    if best != out / "best.safetensors":
        shutil.copyfile(best, out / "best.safetensors")
    print(f"best checkpoint: {out / 'best.safetensors'}")
    return 0


def teach(args, model, recipe, out, lesson, about, *, is_first) -> Path | None:  # noqa: ANN001
    """Run one stage, or what is left of it; its best checkpoint, or None where it was stopped."""
    from training.loop.precision import choose_precision
    from training.loop.trainer import RunOptions, Trainer

    options = RunOptions(
        name=args.model,
        out=out,
        seed=args.seed,
        precision=choose_precision(args.precision),
        workers=args.workers,
        save_every=args.save_every,
        uses=STREET_USES if args.data == "street" else None,
        is_quantise_aware=args.quantise_aware,
        frozen=tuple(args.freeze),
    )
    trainer = Trainer(model, recipe, None, None, options, about, lesson)
    if args.resume and (is_first or trainer.last_path.exists()):
        trainer.resume()
        print(f"resuming at step {trainer.step} of {recipe.steps}")
    if trainer.step == recipe.steps and trainer.best_path.exists():
        return trainer.best_path
    if not trainer.run():
        print(f"stopped at step {trainer.step}; continue with --resume (state in {out})")
        return None
    print(f"{lesson.name}: best in {trainer.best_path}; waited {trainer.wait_s:.0f} s for data")
    return trainer.best_path


if __name__ == "__main__":
    sys.exit(run_script(main))
