r"""Score a network for video on clips, against every frame in full and against no warping.

Examples:
  python training/score_video.py --checkpoint weights/yolact_edge_small.safetensors
      Mask AP by distance from the key frame on the street's clips, plain and fast ones.
  python training/score_video.py --checkpoint weights/yolact_edge_small.safetensors --kinds fast \
      --clips 4 --interval 8
      Fast clips alone, a key frame every eight.
  python training/score_video.py --checkpoint weights/yolact_edge_small.safetensors \
      --modes warped keys --out clips.json
      The network and key frames alone, written as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.errors import TrainingError, run_script
from training.manual import ScriptParser

if TYPE_CHECKING:
    from training.data.clips import ClipSource
    from training.video.scoring import VideoScores

SHOWN = ("mask_AP", "mask_AP50", "AP", "mask_consistency", "tracks_kept")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a network for video")
    parser.add_argument("--data", default="street", help="street, or a COCO folder of video")
    parser.add_argument("--split", default="val", help="train, val or test")
    parser.add_argument(
        "--kinds", nargs="+", default=["plain", "fast"], help="of the street's clips"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=("warped", "copied", "keys"),
        default=["warped", "copied", "keys"],
        help="warped is the network; the others are what it has to beat or to reach",
    )
    parser.add_argument("--clips", type=int, default=16, help="of each kind")
    parser.add_argument("--frames", type=int, default=10, help="of each of the street's clips")
    parser.add_argument("--interval", type=int, default=5, help="frames between key frames")
    parser.add_argument("--out", type=Path, help="write the scores as JSON")
    parser.add_argument(
        "--record", action="store_true", help="put the scores into the checkpoint's own header"
    )
    args = parser.parse_args()
    for name in ("clips", "interval"):
        if getattr(args, name) < 1:
            raise TrainingError(f"--{name} {getattr(args, name)} is below 1. Give 1 or more.")
    return args


def main() -> int:
    """Print a table for each kind of clips; write the scores where asked."""
    args = parse_args()
    from training.data.clips import open_clips
    from training.loop.checkpoint import load_release, save_release
    from training.models.base import TemporalModel
    from training.video.scoring import score_clips

    model, header = load_release(args.checkpoint)
    if not isinstance(model, TemporalModel):
        raise TrainingError(
            f"{args.checkpoint} is of {header['model']!r}, which takes images one by one; expected "
            "a network for video. Score it with training/score.py."
        )
    document: dict[str, Any] = {
        "data": args.data, "split": args.split, "interval": args.interval, "kinds": {},
    }  # fmt: skip
    recorded: dict[str, float] = {}
    for kind in args.kinds if args.data == "street" else ["video"]:
        options = {"kind": kind, "num_frames": args.frames} if args.data == "street" else {}
        source = open_clips(args.data, args.split, **options)
        check_classes(source, model.spec.classes, args.data)
        rows = {}
        for mode in args.modes:
            clips = (source[index] for index in range(min(args.clips, len(source))))
            rows[mode] = score_clips(
                model, clips, source.category_ids, interval=args.interval, mode=mode
            )
        print_table(kind, rows, args.interval)
        document["kinds"][kind] = {mode: as_json(row) for mode, row in rows.items()}
        for mode, name in itertools.product(args.modes, SHOWN):
            recorded[f"{kind}/{mode}/{name}"] = rows[mode].scores[name]
    if args.record:
        finite = {k: v for k, v in recorded.items() if math.isfinite(v)}
        scores = {**header["scores"], **finite}
        save_release(
            args.checkpoint, header["model"], model, training=header["training"], scores=scores
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def check_classes(source: ClipSource, classes: tuple[str, ...], data: str) -> None:
    """Refuse clips of other classes than the checkpoint's."""
    if tuple(source.classes) != classes:
        raise TrainingError(
            f"{data} has the classes {', '.join(source.classes)}; the checkpoint knows "
            f"{', '.join(classes)}. Score it on data of its own classes."
        )


def print_table(kind: str, rows: dict[str, VideoScores], interval: int) -> None:
    """One line for each way to run the clips, then the frames by their distance."""
    frames = next(iter(rows.values())).num_frames
    print(f"\n{kind} clips: {frames} frames, a key frame every {interval}")
    print(f"{'':10}" + "".join(f"{name:>18}" for name in SHOWN))
    for mode, row in rows.items():
        print(f"{mode:10}" + "".join(f"{row.scores[name]:18.4f}" for name in SHOWN))
    print("mask AP of frames so far behind their key frame (mean change, px):")
    for mode, row in rows.items():
        cells = (f"{d}: {ap:.3f} ({row.change_px[d]:.1f})" for d, ap in row.by_distance.items())
        print(f"{mode:10}" + "   ".join(cells))


def as_json(row: VideoScores) -> dict[str, Any]:
    """A row without what JSON has no number for."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): known(v) for k, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: known(value) for name, value in dataclasses.asdict(row).items()}


if __name__ == "__main__":
    sys.exit(run_script(main))
