r"""What each part of the small network for video is worth: trained alike with and without it.

Every row begins at the same checkpoint, learns the video lesson for the same few steps and is
scored on the same clips. Rows are written as they are done; what is written already is kept.

Examples:
  python training/ablate_video.py --init weights/yolact_edge_small.safetensors --out ablation.json
      All rows, 300 steps each: a quarter of an hour a row on one core.
  python training/ablate_video.py --init weights/yolact_edge_small.safetensors --out ablation.json \
      --rows whole unmended --steps 20 --clips 1
      Two rows, too short to mean anything: does it run?
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.errors import TrainingError, run_script
from training.manual import ScriptParser

MODEL, VARIANT, DATA = "yolact_edge", "small", "street"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("the shipped network", {}),
    "unmended": ("prototypes moved, not mended", {"mending": 0}),
    "blended": ("heads' maps fetched bilinearly, not by whole cells", {"is_blended": True}),
    "unrefined": ("flow as it was matched, not refined", {"flow_hidden": 0}),
    "undetailed": ("detail of stride 2 moved, not drawn", {"detail": 0}),
    "corrected": ("heads' maps corrected as well", {"correction": (80, 2)}),
}
KINDS = ("plain", "fast")
SCORES = ("mask_AP", "AP", "mask_consistency")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--init", type=Path, required=True, help="what every row begins at")
    parser.add_argument("--out", type=Path, required=True, help="the table, as JSON")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--steps", type=int, default=300, help="of the video lesson, each row")
    parser.add_argument("--clips", type=int, default=10, help="of each kind, to score on")
    parser.add_argument("--seed", type=int, default=0, help="of every row's samples")
    args = parser.parse_args()
    for name in ("steps", "clips"):
        if getattr(args, name) < 1:
            raise TrainingError(f"--{name} {getattr(args, name)} is below 1. Give 1 or more.")
    return args


def main() -> int:
    """Train and score row by row; print the table."""
    args = parse_args()
    document: dict[str, Any] = {"rows": {}}
    if args.out.is_file():
        document = json.loads(args.out.read_text(encoding="utf-8"))
    document |= {
        "schema": 1,
        "kind": "ablation",
        "command": "python training/ablate_video.py " + shlex.join(sys.argv[1:]),
        "steps": args.steps,
        "clips": args.clips,
    }
    for name in args.rows:
        if name not in document["rows"]:
            document["rows"][name] = run_row(name, args)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        print_row(name, document["rows"][name])
    return 0


def run_row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Teach the network of one row the video lesson, and score what it learnt last."""
    import torch

    from training.data.clips import open_clips
    from training.loop.checkpoint import load_matching
    from training.loop.precision import choose_precision
    from training.loop.trainer import RunOptions, Trainer
    from training.models import build_model, model_variant
    from training.models.base import TemporalModel
    from training.train import STREET_USES
    from training.video.lessons import VideoLesson
    from training.video.scoring import score_clips
    from training.video.stages import KIND, TRAIN_FRAMES

    title, changes = ROWS[name]
    variant = model_variant(MODEL, VARIANT)
    train = open_clips(DATA, "train", kind=KIND, num_frames=TRAIN_FRAMES)
    data = {"classes": tuple(train.classes), "category_ids": tuple(train.category_ids)}
    torch.manual_seed(args.seed)
    model = build_model(MODEL, dataclasses.replace(variant.spec, **data, **changes))
    assert isinstance(model, TemporalModel)
    fresh = load_matching(model, args.init)
    recipe = dataclasses.replace(
        variant.stages["video"],
        steps=args.steps,
        warm_up=min(50, args.steps // 2),
        ema_decay=0.99,  # a short run: the mean of its end
        validate_every=args.steps + 1,
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(
            name=MODEL,
            out=Path(folder),
            seed=args.seed,
            precision=choose_precision("auto"),
            workers=1,
            uses=STREET_USES,
        )
        lesson = VideoLesson(model.task, train, None)
        trainer = Trainer(model, recipe, None, None, options, {"data": DATA}, lesson)
        if not trainer.run():
            raise TrainingError(f"row {name} was stopped at step {trainer.step}. Run it again.")
        load_matching(model, trainer.best_path)
    row: dict[str, Any] = {
        "title": title,
        "changes": changes,
        "fresh_tensors": len(fresh),
        "train_s": round(time.perf_counter() - began),
        **count_costs(model),
        "kinds": {},
    }
    for kind in KINDS:
        clips = open_clips(DATA, "val", kind=kind, num_frames=10)
        scored = score_clips(
            model, (clips[i] for i in range(args.clips)), clips.category_ids, interval=5
        )
        row["kinds"][kind] = {score: round(scored.scores[score], 4) for score in SCORES}
        row["kinds"][kind]["by_distance"] = {
            str(distance): round(ap, 4) for distance, ap in scored.by_distance.items()
        }
    return row


def count_costs(model: Any) -> dict[str, float]:
    """Multiply-adds, in millions, of a key frame and of one between key frames."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    images = torch.zeros(1, 3, *model.spec.size_hw)
    with torch.no_grad():
        with FlopCounterMode(display=False) as key:
            _, state = model.key(images)
        with FlopCounterMode(display=False) as nonkey:
            model.nonkey(images, state)
    return {
        "key_mmacs": round(key.get_total_flops() / 2e6),
        "nonkey_mmacs": round(nonkey.get_total_flops() / 2e6),
    }


def print_row(name: str, row: dict[str, Any]) -> None:
    """One line of the table."""
    scores = "   ".join(
        f"{kind}: mask AP {found['mask_AP']:.3f}, AP {found['AP']:.3f}"
        for kind, found in row["kinds"].items()
    )
    share = row["nonkey_mmacs"] / row["key_mmacs"]
    print(f"{name:12}{share:6.3f} of a key frame   {scores}   {row['title']}", flush=True)


if __name__ == "__main__":
    sys.exit(run_script(main))
