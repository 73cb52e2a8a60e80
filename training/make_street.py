"""Write the procedural street to files.

python training/make_street.py --split val --num-images 500 --out street_val
python training/make_street.py --clip-seed 7 --frames 150 --out clip.mp4
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NoReturn

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.data.sample import DataError
from training.errors import run_script


class _Parser(argparse.ArgumentParser):
    """Ends on one line, as all our errors do."""

    def error(self, message: str) -> NoReturn:
        raise DataError(f"{message}. See --help for what is expected.")


def _size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT to (height, width)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}; expected WIDTHxHEIGHT such as 768x432")
    return int(match[2]), int(match[1])


def main() -> int:
    """Write images with annotations, or a clip."""
    parser = _Parser(description="Write the procedural street as a COCO data set or as a clip.")
    parser.add_argument("--out", type=Path, required=True, help="folder, or clip.mp4")
    parser.add_argument("--size", type=_size, default=(432, 768), help="768x432 by default")
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
