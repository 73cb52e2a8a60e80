"""Add int8 to a bundle, and prove it; with a budget of AP also a mix of int8 and fp16.

Ranges are found on frames like those the bundle will see: a folder of pictures, a video, a data
set's training split. The other precisions, their proof and their engines stay as they are.
With `--ap-budget 0.005` a search adds "mixed" as well: int8 as far as AP falls by no more than that
on the validation split of the labelled data, fp16 elsewhere.

Examples:
  python export/quantize.py runs/retinanet
      Calibrated on 128 frames of the street's training split.
  python export/quantize.py runs/mine --data data/mine --images 256 --method entropy
      On your own frames, with another way to choose ranges.
  python export/quantize.py runs/mine --data street.mp4 --verify none
      On a video of the camera; without a proof.
  python export/quantize.py runs/mine --data data/mine --proof-data data/mine --ap-budget 0.005
      Adds mixed, too: at most 0.005 of AP lost.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from runtime.contract.errors import EXIT_DONE, EXIT_VERDICT_FAIL, KestrelError, run_script
from runtime.contract.manual import ScriptParser

METHODS = ("mse", "percentile", "entropy", "max")
NUM_IMAGES = 128


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """How to search for the mix of int8 and fp16; shared with the export scripts."""
    group = parser.add_argument_group("mixed precision")
    group.add_argument(
        "--ap-budget", type=float, help="of 0..1; add mixed: int8 as far as AP falls by no more"
    )
    group.add_argument("--search-images", type=int, help="labelled frames; default 500")
    group.add_argument("--search-minutes", type=float, help="then the best found so far is taken")
    group.add_argument(
        "--search-state", type=Path, help="measurements, kept; default: BUNDLE.search.json"
    )


def search_options(args: argparse.Namespace, data: str) -> Any:
    """The search that the arguments ask for; None without one.

    Args:
        data: labelled frames.
    """
    names = ("images", "minutes", "state")
    given = {name: getattr(args, f"search_{name}") for name in names}
    if args.ap_budget is None:
        useless = [name for name, value in given.items() if value is not None]
        if useless:
            raise KestrelError(
                f"--search-{useless[0]} goes with --ap-budget. Give a budget, or leave it out."
            )
        return None
    from export.mixing import SEARCH_IMAGES, SearchOptions

    options = SearchOptions(
        budget=args.ap_budget,
        data=data,
        num_images=SEARCH_IMAGES if given["images"] is None else given["images"],
        minutes=given["minutes"],
        state=given["state"],
    )
    options.check()
    return options


def main() -> int:
    """Quantise and verify; exit status 1 where the verdict on int8 is "fail"."""
    parser = ScriptParser(__doc__, statuses={1: 'int8 is there, but its verdict is "fail"'})
    parser.add_argument("bundle", type=Path, help="its folder; it must hold fp32")
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--data", help="street, a data set, a folder of pictures or a video; default: street"
    )
    group.add_argument("--images", type=int, help=f"evenly spread; default {NUM_IMAGES}")
    group.add_argument("--method", choices=METHODS, help="of choosing ranges; default mse")
    group.add_argument(
        "--calibration", type=Path, help="a calibration.json, in place of finding ranges again"
    )
    group.add_argument(
        "--heads",
        choices=("float", "int8"),
        help="heads' last convolutions; default: as in --calibration, else float",
    )
    group = parser.add_argument_group("proof")
    group.add_argument("--checkpoint", type=Path, help="for the proof; default: the shipped one")
    group.add_argument("--proof-data", help="labelled frames; default: those of the last proof")
    group.add_argument(
        "--verify",
        choices=("quick", "full", "none"),
        default="quick",
        help="64 images, the whole split, or no proof",
    )
    group.add_argument("--max-ap-drop", type=float, default=0.01, help="of 0..1; else: fail")
    add_search_arguments(parser)
    args = parser.parse_args()
    if args.calibration and args.images is not None:
        raise KestrelError("--images goes with --data, not with --calibration. Leave one out.")

    from export.adding import ADDED, MIXED, add_int8, last_proof_data
    from export.verify import QUICK_IMAGES, check_ap_drop, check_sources, verify_bundle

    check_ap_drop(args.max_ap_drop)
    labelled = args.proof_data or last_proof_data(args.bundle)
    options = search_options(args, labelled)
    if args.verify != "none":
        check_sources(args.bundle, args.checkpoint, labelled)  # before anything is written
    how = {
        "data": args.data or ("" if args.calibration else "street"),
        "count": NUM_IMAGES if args.images is None else args.images,  # or that of --calibration
        "method": args.method,
        "stored": args.calibration,
        "heads": args.heads,
        "report": print,
    }
    if options is None:
        add_int8(args.bundle, **how)
    else:
        from export.mixing import add_mixed

        add_mixed(args.bundle, options, **how)
    if args.verify == "none":
        return EXIT_DONE
    is_passed = verify_bundle(
        args.bundle,
        checkpoint=args.checkpoint,
        data=labelled,
        num_images=QUICK_IMAGES if args.verify == "quick" else None,
        max_ap_drop=args.max_ap_drop,
        precisions=(ADDED,) if options is None else (ADDED, MIXED),
    )
    return EXIT_DONE if is_passed else EXIT_VERDICT_FAIL


if __name__ == "__main__":
    sys.exit(run_script(main))
