"""Say how much AP a precision costs, and how sure that is: a paired bootstrap over images.

Both precisions run on the same labelled images through the runtime's own path, and boxes are scored
as COCO does; of bundles with joints the joints, by object keypoint similarity. The verdict is on
the upper bound of the drop, not on the drop itself.

Examples:
  python benchmarks/accuracy_drop.py runs/retinanet --images 2000
      int8 against fp32 on the street's test split.
  python benchmarks/accuracy_drop.py runs/mine --precision int8 --data data/mine --max-drop 0.005
      On your own data; the verdict fails where AP may have fallen by more than 0.005.
  python benchmarks/accuracy_drop.py runs/mine --precision mixed --data data/mine --out drop.json
      Of the mix of int8 and fp16, with a record.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.measure.average_precision import MAX_DETECTIONS, Matches
from benchmarks.measure.bootstrap import Drop, bootstrap_drop
from benchmarks.measure.fingerprint import describe_bundle, describe_libraries, describe_machine
from benchmarks.measure.joint_overlap import joint_overlap
from runtime.contract.errors import EXIT_DONE, EXIT_VERDICT_FAIL, KestrelError, run_script
from runtime.contract.files import write_json
from runtime.contract.joint_matching import OTHER_SIGMA
from runtime.contract.manual import ScriptParser

SCHEMA = 1
SCORE_FLOOR = 0.001  # results below it hardly enter AP
MAX_POSES = 20  # of an image that COCO counts


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write the record; exit status 1 where the bound exceeds --max-drop."""
    args = _parse(argv)
    machine = describe_machine()  # before we make it busy
    with contextlib.ExitStack() as stack:
        predictors = {
            name: stack.enter_context(_load(args, name)) for name in (args.against, args.precision)
        }
        matches = _run(args, predictors)
        bundles = {name: describe_bundle(each, args.bundle) for name, each in predictors.items()}
        classes = predictors[args.against].manifest.classes
    reference, candidate = matches[args.against], matches[args.precision]
    drop = bootstrap_drop(
        reference, candidate, resamples=args.resamples, seed=args.seed, report=_show(args.resamples)
    )
    document = {
        "schema": SCHEMA,
        "kind": "accuracy drop",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *(sys.argv if argv is None else [sys.argv[0], *argv])]),
        "data": {
            "name": args.data,
            "split": args.split,
            "images": reference.num_images,
            "min_side": args.min_side,
        },
        "AP": {name: each.average_precision() for name, each in matches.items()},
        "class_AP": {name: _by_class(each, classes) for name, each in matches.items()},
        **dataclasses.asdict(drop),
        "max_drop": args.max_drop,
        "bundles": bundles,
        "machine": machine,
        "libraries": describe_libraries(),
    }
    is_met = args.max_drop is None or drop.upper_95 <= args.max_drop
    _print(document, drop, args)
    if args.out:
        write_json(args.out, document)
        print(f"-> {args.out}")
    return EXIT_DONE if is_met else EXIT_VERDICT_FAIL


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__, statuses={1: "the upper bound is over --max-drop"})
    parser.add_argument("bundle", help="a bundle's folder")
    parser.add_argument("--precision", default="int8", help="what is judged; default int8")
    parser.add_argument("--against", default="fp32", help="what it is held against; default fp32")
    parser.add_argument("--backend", default="auto", help="of both; default: the first that works")
    parser.add_argument("--data", default="street", help="street, or a COCO, VOC or YOLO folder")
    parser.add_argument("--split", default="test", help="train, val or test")
    parser.add_argument("--images", type=int, help="the first N of the split; default: all")
    parser.add_argument(
        "--min-side", type=float, default=0.0, help="leave out objects with a shorter box, px"
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--max-drop", type=float, help="of AP, 0..1, for the upper bound of 95 %%")
    parser.add_argument("--out", type=Path, help="write the record as JSON")
    args = parser.parse_args(argv)
    if args.precision == args.against:
        raise KestrelError(f"--precision and --against are both {args.against}. Name two.")
    for name, least in (("images", 1), ("resamples", 100)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise KestrelError(f"--{name} {value} is too few. Give {least} or more.")
    return args


def _load(args: argparse.Namespace, precision: str) -> Any:
    from runtime.predictor import load

    return load(args.bundle, args.backend, precision, allow_unverified=True)


def _run(args: argparse.Namespace, predictors: dict[str, Any]) -> dict[str, Matches]:
    """Both precisions on every image, read once."""
    source = _open(args, predictors[args.against].manifest)
    joints = predictors[args.against].manifest.joints
    limit = MAX_DETECTIONS if joints is None else MAX_POSES
    matches = {name: Matches(len(source.classes), limit) for name in predictors}
    count = min(len(source), args.images or len(source))
    show = _show(count)
    for number, sample in enumerate(_samples(source, args.images), start=1):
        is_ignored = _ignored(sample, args.min_side, has_joints=joints is not None)
        truth = sample.boxes_xyxy, sample.classes, is_ignored
        for name, predictor in predictors.items():
            found = predictor(sample.image, score_threshold=SCORE_FLOOR)
            overlaps = None if joints is None else _joint_overlaps(found, sample, joints)
            matches[name].add(found.boxes_xyxy, found.scores, found.classes, *truth, overlaps)
        show(number)
    return matches


def _open(args: argparse.Namespace, manifest: Any) -> Any:
    from training.data import open_data
    from training.data.jointed import Jointed
    from training.data.joints import FACE_LANDMARKS

    if manifest.task == "pose_crop":
        raise KestrelError(
            f"{args.bundle} takes crops of people, which are no images of a data set; expected a "
            "bundle that finds objects. export/verify.py scores it on crops."
        )
    if manifest.joints is None:
        source = open_data(args.data, args.split)
    else:
        is_faces = manifest.joints.names == FACE_LANDMARKS.joints
        labels = ("landmarks" if is_faces else "keypoints",)
        source = Jointed(open_data(args.data, args.split, labels))
    if tuple(source.classes) != tuple(manifest.classes):
        raise KestrelError(
            f"{args.data} has the classes {', '.join(source.classes)}; the bundle has "
            f"{', '.join(manifest.classes)}. Give data of the bundle's classes."
        )
    return source


def _ignored(sample: Any, min_side: float, *, has_joints: bool) -> Any:
    """(G,) bool: crowds, objects too small, and with joints those that have none labelled."""
    sides = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).max(axis=1, initial=0)
    is_ignored = sample.is_crowd | (sides < min_side)
    if has_joints:
        is_ignored = is_ignored | ~(sample.keypoints_xyv[..., 2] > 0).any(axis=1)
    return is_ignored


def _joint_overlaps(found: Any, sample: Any, joints: Any) -> Any:
    """(N, G) object keypoint similarity of results and objects."""
    from training.metrics.keypoints import BODY_SHARE

    boxes, sigmas = sample.boxes_xyxy, joints.sigmas or (OTHER_SIGMA,) * len(joints.names)
    areas = BODY_SHARE * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    if sample.masks is not None:
        areas = sample.masks.sum(axis=(1, 2))
    return joint_overlap(found.keypoints_xyc, sample.keypoints_xyv, boxes, areas, sigmas)


def _samples(source: Any, count: int | None) -> Iterator[Any]:
    from training.data import each_once

    return itertools.islice(each_once(source), count)


def _by_class(matches: Matches, classes: tuple[str, ...]) -> dict[str, float]:
    """AP of each class that has objects."""
    found = zip(classes, matches.class_precisions().tolist(), strict=True)
    return {name: value for name, value in found if not np.isnan(value)}


def _show(total: int) -> Any:
    """A line on the terminal that counts up; nothing where the output is a file."""

    def show(done: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{done}/{total}", end=end, file=sys.stderr, flush=True)

    return show


def _print(document: dict[str, Any], drop: Drop, args: argparse.Namespace) -> None:
    scores, data = document["AP"], document["data"]
    backend = document["bundles"][args.precision]["backend"]
    print(f"{data['images']} images of {data['name']} {data['split']}, {backend}")
    for name, score in scores.items():
        print(f"  {name:6} AP {score:.4f}")
    low, high = drop.interval_95
    print(
        f"  drop {drop.drop:.4f}, 95 % interval {low:.4f} to {high:.4f}, upper bound (95 %) "
        f"{drop.upper_95:.4f} ({drop.resamples} resamples of the images, paired)"
    )
    if args.max_drop is not None:
        verdict = "met" if drop.upper_95 <= args.max_drop else "exceeded"
        print(f"  limit {args.max_drop:.4f} for the upper bound: {verdict}")


if __name__ == "__main__":
    sys.exit(run_script(main))
