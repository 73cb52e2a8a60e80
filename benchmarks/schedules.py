r"""Compare key-frame schedules of a video bundle: what share of key frames buys what mask AP.

Every schedule runs the same labelled clips through the runtime's own path; "mixed" clips of the
street stand still and move fast in turn. One frame is under way at a time, and whether frames
between key frames pay is not asked, so the same bundle gives the same choices everywhere.

Examples:
  python benchmarks/schedules.py runs/yolact_edge
      All schedules on 12 clips of the street.
  python benchmarks/schedules.py runs/yolact_edge --clips 4 --intervals 5 --changes-px 0.5 1 \
      --out schedules.json
      A few of them, and a record.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure.fingerprint import describe_bundle, describe_libraries, describe_machine
from runtime.contract.errors import EXIT_DONE, KestrelError, run_script
from runtime.contract.files import write_json
from runtime.contract.manual import ScriptParser
from runtime.keyframes import KeyframeOptions

SCHEMA = 1
SCORE_FLOOR = 0.02  # results below it hardly enter AP
FRAMES_PER_S = 25
KEY_INTERVAL = 5  # of "adaptive": LONGEST times it is the longest way without a key frame


@dataclass(slots=True)
class Tally:
    """What a schedule has come to so far.

    Attributes:
        keyframes: its options.
        results: COCO's entries of all frames.
        num_key: frames that were key frames. reasons: why they came.
    """

    keyframes: KeyframeOptions
    results: list[dict[str, Any]] = field(default_factory=list)
    num_key: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def main(argv: list[str] | None = None) -> int:
    """Run all schedules, print a table, write the record."""
    args = _parse(argv)
    machine = describe_machine()  # before we make it busy
    from runtime.contract.bundle import Bundle
    from runtime.predictor import Predictor
    from runtime.sessions import open_session

    bundle = Bundle.open(args.bundle, allow_unverified=args.allow_unverified)
    if not bundle.manifest.state:
        raise KestrelError(
            f"{args.bundle} is of a network for images, which has no key frames; expected one for "
            "video. Export one that has key frames."
        )
    options = {"inference_precision": "f32"} if args.backend == "openvino" else {}
    session = open_session(bundle, args.backend, args.precision, **options)
    with contextlib.closing(session):
        rows = _run(_schedules(args), session, bundle.manifest, args)
        what_ran = describe_bundle(
            Predictor(session, bundle.manifest, owns_session=False), args.bundle
        )
    _print(rows)
    document = {
        "schema": SCHEMA,
        "kind": "schedules",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *(sys.argv if argv is None else [sys.argv[0], *argv])]),
        "data": {"name": args.data, "split": args.split, "kind": args.kind, "clips": args.clips,
                 "frames": args.frames},
        "rows": rows,
        "bundle": what_ran,
        "machine": machine,
        "libraries": describe_libraries(),
    }  # fmt: skip
    if args.out:
        write_json(args.out, document)
        print(f"-> {args.out}")
    return EXIT_DONE


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("bundle", help="folder of a bundle for video")
    parser.add_argument("--data", default="street", help="street, or a COCO folder of video")
    parser.add_argument("--split", default="val", help="train, val or test")
    parser.add_argument("--kind", default="mixed", help="of the street's clips")
    parser.add_argument("--clips", type=int, default=12, help="how many")
    parser.add_argument("--frames", type=int, default=40, help="of each of the street's clips")
    parser.add_argument(
        "--intervals", type=int, nargs="*", default=[2, 3, 4, 5, 8], help="of fixed schedules"
    )
    parser.add_argument(
        "--changes-px", type=float, nargs="*", default=[0.2, 0.4, 0.8, 1.6],
        help="max_change_px of adaptive schedules",
    )  # fmt: skip
    parser.add_argument("--no-key", action="store_true", help="leave out key frames alone")
    parser.add_argument("--backend", default="auto", help="default: the first that works")
    parser.add_argument("--precision", help="default: as of the runtime")
    parser.add_argument(
        "--allow-unverified", action="store_true", help="run what failed its verification"
    )
    parser.add_argument("--out", type=Path, help="write the record as JSON")
    args = parser.parse_args(argv)
    for name in ("clips", "frames"):
        if getattr(args, name) < 1:
            raise KestrelError(f"--{name} {getattr(args, name)} is below 1. Give 1 or more.")
    return args


def _schedules(args: argparse.Namespace) -> dict[str, Tally]:
    never = float("inf")
    common: dict[str, Any] = {"worst_share": never, "max_key_age_ms": never}
    schedules = {} if args.no_key else {"key": KeyframeOptions("key", **common)}
    for interval in args.intervals:
        schedules[f"fixed {interval}"] = KeyframeOptions("fixed", interval, **common)
    for change in args.changes_px:
        schedules[f"adaptive {change:g} px"] = KeyframeOptions(
            "adaptive", KEY_INTERVAL, max_change_px=change, **common
        )
    return {name: Tally(options) for name, options in schedules.items()}


def _run(
    schedules: dict[str, Tally], session: Any, manifest: Any, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Each clip on every schedule in turn; a row of the record for each schedule."""
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
    num_clips, num_frames = min(args.clips, len(source)), 0
    for index in range(num_clips):
        clip = source[index]
        samples = [clip.frame(place) for place in range(len(clip))]
        num_frames += len(samples)
        for sample in samples:
            truth.add(sample)
        for tally in schedules.values():
            _run_clip(tally, samples, session, manifest, source.category_ids)
        print(f"clip {index + 1} of {num_clips}", file=sys.stderr)
    coco, rows = truth.as_coco(), []
    for name, tally in schedules.items():
        scores = score_masks(coco, tally.results) | score_boxes(coco, tally.results)
        rows.append(
            {
                "name": name,
                "key_share": tally.num_key / num_frames,
                "scores": {key: value for key, value in scores.items() if value == value},
                "reasons": dict(tally.reasons.most_common()),
            }
        )
    return rows


def _run_clip(
    tally: Tally, samples: list[Any], session: Any, manifest: Any, category_ids: tuple[int, ...]
) -> None:
    from runtime.predictor import Predictor

    with contextlib.closing(
        Predictor(session, manifest, owns_session=False, keyframes=tally.keyframes)
    ) as predictor:
        for place, sample in enumerate(samples):
            found = predictor(sample.image, SCORE_FLOOR, time_s=place / FRAMES_PER_S)
            tally.results += found.to_coco(sample.image_id, category_ids)
        summary = predictor.keyframes
    assert summary is not None
    tally.num_key += summary.num_key
    tally.reasons.update(summary.reasons)


def _print(rows: list[dict[str, Any]]) -> None:
    print(f"{'schedule':18}{'key frames':>12}{'mask AP':>10}{'AP':>10}  why key frames came")
    for row in rows:
        why = ", ".join(f"{reason} {count}" for reason, count in row["reasons"].items())
        print(
            f"{row['name']:18}{100 * row['key_share']:>10.1f} %"
            f"{row['scores']['mask_AP']:>10.4f}{row['scores']['AP']:>10.4f}  {why}"
        )


if __name__ == "__main__":
    sys.exit(run_script(main))
