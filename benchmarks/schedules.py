"""Compare key-frame schedules of a video bundle: what share of key frames buys what mask AP.

python benchmarks/schedules.py runs/mine --kind mixed --clips 12

Every schedule runs the same labelled clips through the runtime's own path; "mixed" clips of the
street stand still and move fast in turn. One frame is under way at a time, and whether frames
between key frames pay is not asked, so the same bundle gives the same choices everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure.fingerprint import describe_libraries, describe_machine
from runtime.contract.errors import EXIT_DONE, KestrelError, run_script
from runtime.contract.files import write_json
from runtime.keyframes import KeyframeOptions

SCHEMA = 1
SCORE_FLOOR = 0.02  # results below it hardly enter AP
FRAMES_PER_S = 25
KEY_INTERVAL = 5  # of "adaptive": LONGEST times it is the longest way without a key frame


@dataclass(frozen=True, slots=True)
class Row:
    """What a schedule came to on all clips.

    Attributes:
        name: "fixed 5", "adaptive 0.4 px" or "key".
        key_share: of the frames that are key frames, 0..1.
        scores: mask_AP, AP ... over all frames, 0..1.
        reasons: why key frames came.
    """

    name: str
    key_share: float
    scores: dict[str, float]
    reasons: dict[str, int]


def main(argv: list[str] | None = None) -> int:
    """Run all schedules, print a table, write the record."""
    args = _parse(argv)
    machine = describe_machine()  # before we make it busy
    from runtime.contract.bundle import Bundle
    from runtime.sessions import open_session

    bundle = Bundle.open(args.bundle, allow_unverified=args.allow_unverified)
    if not bundle.manifest.state:
        raise KestrelError(
            f"{args.bundle} is of a network for images, which has no key frames; expected one for "
            "video. Export one that has key frames."
        )
    options = {"inference_precision": "f32"} if args.backend == "openvino" else {}
    session = open_session(bundle, args.backend, args.precision, **options)
    rows = []
    with contextlib.closing(session):
        for name, keyframes in _schedules(args).items():
            rows.append(_run(name, keyframes, session, bundle.manifest, args))
            _print(rows[-1], is_first=len(rows) == 1)
    document = {
        "schema": SCHEMA,
        "kind": "schedules",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *(sys.argv if argv is None else [sys.argv[0], *argv])]),
        "data": {"name": args.data, "split": args.split, "kind": args.kind, "clips": args.clips,
                 "frames": args.frames},
        "rows": [
            {"name": r.name, "key_share": r.key_share, "scores": r.scores, "reasons": r.reasons}
            for r in rows
        ],
        "bundle": {"model": bundle.manifest.model, "variant": bundle.manifest.variant,
                   "backend": session.backend, "precision": session.precision},
        "machine": machine,
        "libraries": describe_libraries(),
    }  # fmt: skip
    if args.out:
        write_json(args.out, document)
        print(f"-> {args.out}")
    return EXIT_DONE


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What do key-frame schedules buy?")
    parser.add_argument("bundle", help="folder of a bundle for video")
    parser.add_argument("--data", default="street", help="street, or a COCO folder of video")
    parser.add_argument("--split", default="val")
    parser.add_argument("--kind", default="mixed", help="of the street's clips")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--frames", type=int, default=40, help="of each of the street's clips")
    parser.add_argument("--intervals", type=int, nargs="*", default=[2, 3, 4, 5, 8])
    parser.add_argument(
        "--changes-px", type=float, nargs="*", default=[0.2, 0.4, 0.8, 1.6],
        help="max_change_px of adaptive schedules",
    )  # fmt: skip
    parser.add_argument("--no-key", action="store_true", help="leave out key frames alone")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision")
    parser.add_argument("--allow-unverified", action="store_true")
    parser.add_argument("--out", type=Path, help="write the record as JSON")
    args = parser.parse_args(argv)
    for name in ("clips", "frames"):
        if getattr(args, name) < 1:
            raise KestrelError(f"--{name} {getattr(args, name)} is below 1. Give 1 or more.")
    return args


def _schedules(args: argparse.Namespace) -> dict[str, KeyframeOptions]:
    never = float("inf")
    common: dict[str, Any] = {"worst_share": never, "max_key_age_ms": never}
    schedules = {} if args.no_key else {"key": KeyframeOptions("key", **common)}
    for interval in args.intervals:
        schedules[f"fixed {interval}"] = KeyframeOptions("fixed", interval, **common)
    for change in args.changes_px:
        schedules[f"adaptive {change:g} px"] = KeyframeOptions(
            "adaptive", KEY_INTERVAL, max_change_px=change, **common
        )
    return schedules


def _run(
    name: str, keyframes: KeyframeOptions, session: Any, manifest: Any, args: argparse.Namespace
) -> Row:
    from runtime.predictor import Predictor
    from training.data.clips import open_clips
    from training.metrics.detection import GroundTruth, score_boxes
    from training.metrics.instance import score_masks

    options = {"kind": args.kind, "num_frames": args.frames} if args.data == "street" else {}
    source = open_clips(args.data, args.split, **options)
    if tuple(source.classes) != tuple(manifest.classes):
        raise KestrelError(
            f"{args.data} has the classes {', '.join(source.classes)}; the bundle knows "
            f"{', '.join(manifest.classes)}. Give clips of its own classes."
        )
    truth = GroundTruth(source.classes, source.category_ids)
    results: list[dict[str, Any]] = []
    num_key, num_frames = 0, 0
    reasons: Counter[str] = Counter()
    for index in range(min(args.clips, len(source))):
        clip = source[index]
        with contextlib.closing(
            Predictor(session, manifest, owns_session=False, keyframes=keyframes)
        ) as predictor:
            for place in range(len(clip)):
                sample = clip.frame(place)
                truth.add(sample)
                found = predictor(sample.image, SCORE_FLOOR, time_s=place / FRAMES_PER_S)
                results += found.to_coco(sample.image_id, source.category_ids)
            summary = predictor.keyframes
        assert summary is not None
        num_key += summary.num_key
        num_frames += len(clip)
        reasons.update(summary.reasons)
    coco = truth.as_coco()
    scores = score_masks(coco, results) | score_boxes(coco, results)
    known = {key: value for key, value in scores.items() if value == value}
    return Row(name, num_key / num_frames, known, dict(reasons.most_common()))


def _print(row: Row, *, is_first: bool) -> None:
    if is_first:
        print(f"{'schedule':18}{'key frames':>12}{'mask AP':>10}{'AP':>10}  why key frames came")
    why = ", ".join(f"{reason} {count}" for reason, count in row.reasons.items())
    print(
        f"{row.name:18}{100 * row.key_share:>10.1f} %{row.scores['mask_AP']:>10.4f}"
        f"{row.scores['AP']:>10.4f}  {why}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
