"""Write the procedural street to files: images with annotations as a COCO folder, or a clip.

Examples:
  python training/make_street.py --split val --num-images 500 --out street_val
      500 frames of the validation split, with boxes, masks and joints.
  python training/make_street.py --split train --num-images 2000 --size 640x384 --out street_data
      Training frames of another size.
  python training/make_street.py --clip-seed 7 --frames 150 --out street.mp4
      A clip of six seconds.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.errors import run_script
from training.manual import ScriptParser


def _size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT to (height, width)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}; expected WIDTHxHEIGHT such as 768x432")
    return int(match[2]), int(match[1])


def main() -> int:
    """Write images with annotations, or a clip."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder, or clip.mp4")
    parser.add_argument(
        "--size", type=_size, default=(432, 768), help="WIDTHxHEIGHT; default: 768x432"
    )
    parser.add_argument("--split", choices=("train", "val", "test"), help="write images of it")
    parser.add_argument("--num-images", type=int, help="default: the whole split")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the images")
    parser.add_argument("--clip-seed", type=int, help="write a clip of this scene instead")
    parser.add_argument("--frames", type=int, default=150, help="of the clip")
    parser.add_argument("--fps", type=float, default=25.0, help="of the clip")
    args = parser.parse_args()
    if (args.split is None) == (args.clip_seed is None):
        came = "neither" if args.split is None else "both"
        parser.error(f"{came} --split and --clip-seed came; expected exactly one: give one of them")

    from training.data.street.write import write_clip, write_coco

    if args.split is not None:
        path = write_coco(
            args.split, args.num_images, args.out, size_hw=args.size, image_format=args.format
        )
    else:
        path = write_clip(args.clip_seed, args.frames, args.out, args.fps, size_hw=args.size)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
