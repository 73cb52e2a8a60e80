r"""Write weights that nobody trained, to measure the speed of a variant that ships none.

They detect nothing. The same seed gives the same weights; activations have the spread of a trained
network's, so that int8 ranges mean something, and every frame of the street gives as many rows
as the results can hold, so that selection and suppression have their full work.

Examples:
  python training/seed_weights.py --model retinanet --variant r50 \
      --out out/retinanet_r50.safetensors
      ResNet-50, to be exported and measured.
  python training/seed_weights.py --model yolact --variant resnet50 --out out/yolact_r50.safetensors
      The published network's size, with masks.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor, nn

from training.data import open_data
from training.data.coco_names import CATEGORY_IDS, CLASSES
from training.errors import TrainingError, run_script
from training.loop.checkpoint import save_release
from training.manual import ScriptParser
from training.models import build_model, model_variant
from training.models.base import Model, Spec
from training.tasks.detection import SCORE_FLOOR, fit_input, run_network, select_rows

NUM_FRAMES = 8  # that activations are measured on
NOTE = "none: seeded weights for measuring speed, they detect nothing"


def main() -> int:
    """Make the weights and write them."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--model", required=True, help="a registered model, such as retinanet")
    parser.add_argument("--variant", help="default: the model's first")
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--seed", type=int, default=0, help="the same gives the same weights")
    args = parser.parse_args()
    if args.out.suffix != ".safetensors":
        raise TrainingError(f"--out {args.out} is no .safetensors file. Give it that suffix.")
    model = seed_weights(args.model, args.variant, args.seed)
    training = {"data": NOTE, "seed": args.seed}
    save_release(args.out, args.model, model, training=training, scores={})
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{args.out}: {args.model} {model.spec.variant}, {millions:.1f} M parameters, "
        f"score threshold {model.spec.score_threshold}; for speed only, detects nothing"
    )
    return 0


def seed_weights(name: str, variant: str | None, seed: int) -> Model:
    """A model of COCO's classes with full result rows on the street's frames; in eval mode.

    Its spec's score threshold is lowered where that takes it.
    """
    spec = model_variant(name, variant).spec
    spec = dataclasses.replace(spec, classes=CLASSES, category_ids=CATEGORY_IDS)
    torch.manual_seed(seed)
    model = build_model(name, spec)
    frames = street_frames(spec)
    spread_activations(model, frames)
    # as the file will hold them: matrices in half
    model.load_state_dict({k: _as_stored(v) for k, v in model.state_dict().items()})
    model.spec = dataclasses.replace(
        spec, score_threshold=min(spec.score_threshold, full_threshold(model, frames))
    )
    return model


def street_frames(spec: Spec) -> Tensor:
    """(N, H, W, 3) uint8 BGR of the street, fitted into the network's input."""
    source = open_data("street", "train")
    return torch.from_numpy(
        np.stack([fit_input(source[index], spec).image for index in range(NUM_FRAMES)])
    )


@torch.no_grad()
def spread_activations(model: Model, frames: Tensor) -> None:
    """Scale every convolution to outputs of variance 1 and measure the batch statistics.

    The first is layer-sequential unit variance (Mishkin and Matas, arXiv:1511.06422).
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean over the passes
            if module.affine:  # residual branches that begin at zero would have no range
                nn.init.uniform_(module.weight, 0.7, 1.3)
                nn.init.normal_(module.bias, 0.0, 0.2)
    model.train()
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(_OnFirstCall()) for conv in convs]
    model(model.prepare(frames))
    for hook in hooks:
        hook.remove()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    model(model.prepare(frames))
    model.eval()


class _OnFirstCall:
    """Scales a convolution when it is first called, and answers as the scaled one would."""

    def __init__(self) -> None:
        self._is_done = False

    def __call__(self, conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> Any:
        if self._is_done:  # a head that all levels share
            return None
        self._is_done = True
        constant = 0.0 if conv.bias is None else conv.bias.reshape(1, -1, 1, 1)
        scale = 1 / (output - constant).std().clamp(min=1e-6)
        conv.weight *= scale
        return (output - constant) * scale + constant


@torch.no_grad()
def full_threshold(model: Model, frames: Tensor) -> float:
    """The highest round threshold over which every frame has all its rows filled.

    Raises:
        TrainingError: the network does not give that many.
    """
    wanted = model.spec.max_detections
    lowest = 1.0
    for row in range(len(frames)):
        candidates = run_network(model, frames[row : row + 1])
        found = next(select_rows(model, candidates, SCORE_FLOOR, None))
        if len(found.scores) < wanted:
            raise TrainingError(
                f"a frame gives {len(found.scores)} rows; expected {wanted}. Try another --seed."
            )
        lowest = min(lowest, float(found.scores[-1]))
    digit = 10.0 ** (math.floor(math.log10(lowest)) - 1)
    return round(math.floor(lowest / digit - 1e-3) * digit, 8)


def _as_stored(value: Tensor) -> Tensor:
    is_matrix = value.is_floating_point() and value.ndim >= 2
    return value.half().to(value.dtype) if is_matrix else value


if __name__ == "__main__":
    sys.exit(run_script(main))
