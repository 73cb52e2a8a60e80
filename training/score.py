r"""Score a checkpoint on a data set, in PyTorch: AP of boxes, masks or joints, as its task has.

Examples:
  python training/score.py --checkpoint weights/retinanet_small.safetensors
      The shipped detector on the street's validation split.
  python training/score.py --checkpoint weights/yolact_small.safetensors --images 200 \
      --out scores.json
      Masks on the first 200 frames, written as JSON.
  python training/score.py --checkpoint runs/train/mine/best.safetensors --data data/mine \
      --split test
      Your own checkpoint on your own test split.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.errors import TrainingError, run_script
from training.manual import ScriptParser


def main() -> int:
    """Print the scores, one line each; write them as JSON where asked."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="ours, or a published .pth")
    parser.add_argument("--model", help="refuse checkpoints of other models")
    parser.add_argument("--data", default="street", help="street, or a COCO, VOC or YOLO folder")
    parser.add_argument("--split", default="val", help="train, val or test")
    parser.add_argument("--images", type=int, help="only the first N; default: all")
    parser.add_argument("--out", type=Path, help="write the scores as JSON")
    parser.add_argument(
        "--record", action="store_true", help="put the scores into the checkpoint's own header"
    )
    args = parser.parse_args()

    from training.data import each_once
    from training.loop.checkpoint import load_release, save_release
    from training.tasks import open_source, task_module

    model, header = load_release(args.checkpoint, args.model)
    if args.record and header["training"].get("source") == "published":
        raise TrainingError(
            f"{args.checkpoint} is a published file, which has no header. Leave --record out, or "
            "make a checkpoint of it with training/import_published.py."
        )
    source = open_source(model.task, model.spec, args.data, args.split)
    if tuple(source.classes) != model.spec.classes:
        raise TrainingError(
            f"{args.data} has the classes {', '.join(source.classes)}; the checkpoint knows "
            f"{', '.join(model.spec.classes)}. Score it on data of its own classes."
        )
    count = len(source) if args.images is None else min(args.images, len(source))
    samples = itertools.islice(each_once(source), count)
    scores = task_module(model.task).evaluate(model, samples, source.category_ids)
    for name, value in scores.items():
        print(f"{name:28} {value:.4f}")
    print(f"{count} images of {args.data} {args.split}")
    if args.record:
        finite = {k: v for k, v in scores.items() if math.isfinite(v)}
        scored_on = f"{count} images of {args.data} {args.split}"
        training = {**header["training"], "scored_on": scored_on}
        save_release(args.checkpoint, header["model"], model, training=training, scores=finite)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        known = {k: v if math.isfinite(v) else None for k, v in scores.items()}  # JSON has no NaN
        document = {"images": count, "data": args.data, "split": args.split, "scores": known}
        args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
