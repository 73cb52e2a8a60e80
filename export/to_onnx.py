r"""Export a checkpoint to a bundle: a folder of ONNX graphs that are proven against PyTorch.

Examples:
  python export/to_onnx.py --model retinanet
      The shipped detector to runs/retinanet, in fp32 and fp16.
  python export/to_onnx.py --model retinanet --precision fp32 fp16 int8 --out runs/street
      With int8, calibrated on frames of the training split.
  python export/to_onnx.py --model retinanet --checkpoint runs/train/mine/best.safetensors \
      --data data/mine --out runs/mine
      A checkpoint of your own, proven on your own data.
  python export/to_onnx.py --model hourglass --verify none
      Without the proof; the runtime then takes it with --allow-unverified alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export.quantize import add_search_arguments, search_options
from export.verify import MAX_AP_DROP, QUICK_IMAGES, check_ap_drop, verify_bundle
from runtime.contract.errors import EXIT_DONE, EXIT_VERDICT_FAIL, KestrelError, run_script
from runtime.contract.manual import ScriptParser

PRECISIONS = ("fp32", "fp16", "int8")
DEFAULT_PRECISIONS = ("fp32", "fp16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that both export scripts share."""
    group = parser.add_argument_group("model and bundle")
    group.add_argument("--model", required=True, help="a registered model, such as retinanet")
    group.add_argument("--variant", help="default: the model's first")
    group.add_argument(
        "--checkpoint",
        type=Path,
        help="ours, or a published one (.pth); default: the one shipped in weights/",
    )
    group.add_argument("--size", help="network input as WIDTHxHEIGHT; default: the checkpoint's")
    group.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=DEFAULT_PRECISIONS,
        help=f"default: {' '.join(DEFAULT_PRECISIONS)}",
    )
    group.add_argument("--out", type=Path, help="default: runs/MODEL")
    group = parser.add_argument_group("data and proof")
    group.add_argument(
        "--calibration-data",
        help="frames for int8: a data set, a folder of pictures or a video; default: the training "
        "split of --data",
    )
    group.add_argument(
        "--data", default="street", help="labelled frames for the proof: street, or a folder"
    )
    group.add_argument(
        "--verify",
        choices=("quick", "full", "none"),
        default="quick",
        help=f"{QUICK_IMAGES} images, the whole split, or no proof",
    )
    group.add_argument("--max-ap-drop", type=float, default=MAX_AP_DROP, help="of 0..1; else: fail")
    add_search_arguments(parser)


def export(args: argparse.Namespace) -> tuple[Path, int]:
    """Write the bundle and verify it; give its folder and the exit status."""
    if args.size:
        parse_size(args.size)  # a wrong size fails before slow imports
    check_ap_drop(args.max_ap_drop)
    search = search_options(args, args.data)
    if search is not None:
        from export.mixing import refuse_temporal

        refuse_temporal(args.model)
    from export.bundling import ExportOptions, write_bundle

    out = args.out or Path("runs") / args.model
    options = ExportOptions(
        model=args.model,
        variant=args.variant,
        checkpoint=args.checkpoint,
        size_hw=parse_size(args.size) if args.size else None,
        out=out,
        data=args.data,
        precisions=tuple(dict.fromkeys((*args.precision, *(("int8",) if search else ())))),
        calibration_data=args.calibration_data,
    )
    write_bundle(options, report=print)
    print(f"bundle {out}")
    if search is not None:
        from export.mixing import add_mixed_by_stored

        add_mixed_by_stored(out, search, report=print)
    if args.verify == "none":
        return out, EXIT_DONE
    is_passed = verify_bundle(
        out,
        checkpoint=args.checkpoint,
        data=args.data,
        num_images=QUICK_IMAGES if args.verify == "quick" else None,
        max_ap_drop=args.max_ap_drop,
    )
    return out, EXIT_DONE if is_passed else EXIT_VERDICT_FAIL


def parse_size(text: str) -> tuple[int, int]:
    """Read "640x384" as (384, 640): height and width, each 64 to 4096."""
    parts = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text.lower())
    if parts:
        width, height = int(parts[1]), int(parts[2])
        if all(64 <= side <= 4096 for side in (width, height)):
            return height, width
    raise KestrelError(
        f"--size {text!r} is no size; expected WIDTHxHEIGHT from 64 to 4096, such as 640x384."
    )


def main() -> int:
    """Export; exit status 1 where the verdict is "fail"."""
    parser = ScriptParser(__doc__, statuses={1: 'the bundle is there, but its verdict is "fail"'})
    add_arguments(parser)
    return export(parser.parse_args())[1]


if __name__ == "__main__":
    sys.exit(run_script(main))
