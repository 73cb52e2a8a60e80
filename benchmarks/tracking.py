"""Say how well ids follow objects, on the street's clips with their true tracks.

Tracked are the objects' own boxes, damaged (some missing, some of low score, all trembling), and
what the bundle finds; at the clips' 25 frames a second and with frames left out. Beside it stand
the same sure results with the id of the object that each is of: what is missing there is the
detector's.

Examples:
  python benchmarks/tracking.py runs/retinanet
      IDF1, MOTA and switches on 8 clips, at 25 frames a second and less.
  python benchmarks/tracking.py runs/retinanet --clips 2 --steps 1 5 --out tracking.json
      Fewer clips, two rates, and a record.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.fingerprint import describe_bundle, describe_libraries, describe_machine
from benchmarks.measure.identity import Boxes, IdentityScores, score_clip, true_ids
from benchmarks.report.text_table import format_table
from runtime.contract.errors import EXIT_DONE, KestrelError, run_script
from runtime.contract.files import write_json
from runtime.contract.manual import ScriptParser
from runtime.results import Detections
from runtime.tracking.byte_track import TrackerOptions
from runtime.tracking.tracked import TrackedPredictor

SCHEMA = 1
FPS = 25.0  # of the clips
MISSING, LOW, JITTER = 0.15, 0.15, 0.05  # shares of true boxes; of a box's sides
SURE_SCORE, LOW_SCORE = 0.9, 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledFrame:
    """A frame of a clip.

    Attributes:
        truth: its objects. ignored: (N, 4) boxes that do not count.
        results: kind of boxes ("true" or "found") -> results, low scores included.
    """

    truth: Boxes
    ignored: NDArray[np.float64]
    results: dict[str, Detections]


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write the record."""
    args = _parse(argv)
    machine = describe_machine()  # before we make it busy
    from runtime.predictor import load

    with load(args.bundle, args.backend, args.precision, allow_unverified=True) as predictor:
        scores: dict[tuple[str, str, int], IdentityScores] = {}
        spent_ms: list[float] = []
        for clip in _clips(args, predictor):
            for step in args.steps:
                for row, mine in _track(predictor, clip[::step], step, spent_ms).items():
                    key = (*row, step)
                    scores[key] = scores.get(key, IdentityScores()) + mine
        bundle = describe_bundle(predictor, args.bundle)
    rows = [
        {"boxes": boxes, "ids_by": giver, "step": step, **_figures(each)}
        for (boxes, giver, step), each in sorted(scores.items(), reverse=True)
    ]
    print(format_table(list(rows[0]), [[_short(v) for v in row.values()] for row in rows]))
    cost_ms = float(np.median(spent_ms))
    print(f"a frame's tracking takes {cost_ms:.2f} ms (median)")
    if args.out:
        document = {
            "schema": SCHEMA,
            "kind": "tracking",
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join(["python", *(sys.argv if argv is None else [sys.argv[0], *argv])]),
            "data": {"split": args.split, "clips": args.clips, "frames": args.frames, "fps": FPS},
            "damage": {"missing": MISSING, "low": LOW, "jitter": JITTER},
            "options": dataclasses.asdict(TrackerOptions()),
            "scores": rows,
            "median_ms": cost_ms,
            "bundle": bundle,
            "machine": machine,
            "libraries": describe_libraries(),
        }
        write_json(args.out, document)
        print(f"-> {args.out}")
    return EXIT_DONE


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("bundle", help="a bundle of the street's classes")
    parser.add_argument("--backend", default="auto", help="default: the first that works")
    parser.add_argument("--precision", help="default: as of the runtime")
    parser.add_argument("--split", default="test", help="of the street; default test")
    parser.add_argument("--clips", type=int, default=8, help="plain and fast ones in turn")
    parser.add_argument("--frames", type=int, default=60, help="of each clip")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 3, 5], help="every frame, every third ..."
    )
    parser.add_argument("--out", type=Path, help="write the record as JSON")
    args = parser.parse_args(argv)
    for name, value in (("clips", args.clips), ("steps", min(args.steps))):
        if value < 1:
            raise KestrelError(f"--{name} {value} is too few. Give 1 or more.")
    return args


def _clips(args: argparse.Namespace, predictor: Any) -> Iterator[list[LabelledFrame]]:
    from training.data.street.clips import StreetClips

    source = StreetClips(args.split, args.clips, kind="plain+fast", num_frames=args.frames)
    if tuple(predictor.manifest.classes) != tuple(source.classes):
        raise KestrelError(
            f"{args.bundle} knows {', '.join(predictor.manifest.classes[:10])}; expected a bundle "
            f"of the street's classes ({', '.join(source.classes)})."
        )
    low_score = TrackerOptions().low_score
    for number in range(len(source)):
        clip, rng = source[number], np.random.default_rng(number)
        frames = []
        for index in range(len(clip)):
            sample = clip.frame(index)
            boxes = sample.boxes_xyxy.astype(np.float64)
            is_object = ~sample.is_crowd
            ids = np.asarray(clip.track_ids(index), np.int64)
            truth = Boxes(ids, sample.classes.astype(np.int32), boxes)[is_object]
            results = {
                "true": _damaged(truth, predictor.manifest.classes, rng),
                "found": predictor(np.ascontiguousarray(sample.image), low_score),
            }
            frames.append(LabelledFrame(truth, boxes[~is_object], results))
        print(f"clip {number + 1} of {len(source)}", file=sys.stderr)
        yield frames


def _damaged(truth: Boxes, names: tuple[str, ...], rng: np.random.Generator) -> Detections:
    """True boxes as a detector of some faults would give them."""
    sides = np.tile(truth.boxes_xyxy[:, 2:] - truth.boxes_xyxy[:, :2], 2)
    boxes = truth.boxes_xyxy + rng.normal(0, JITTER, sides.shape) * sides
    chance = rng.random(len(truth))
    scores = np.where(chance < MISSING + LOW, LOW_SCORE, SURE_SCORE)
    stays = np.flatnonzero(chance >= MISSING)
    return Detections(
        boxes[stays].astype(np.float32),
        scores[stays].astype(np.float32),
        truth.classes[stays],
        tuple(names),
    )


def _track(
    predictor: Any, frames: list[LabelledFrame], step: int, spent_ms: list[float]
) -> dict[tuple[str, str], IdentityScores]:
    """Scores of one clip: (kind of boxes, "tracker" or "truth") -> scores."""
    default = predictor.manifest.defaults.score_threshold
    limits = np.full(len(predictor.manifest.classes), default, np.float32)
    truth, ignored = [each.truth for each in frames], [each.ignored for each in frames]
    scores = {}
    for kind in frames[0].results:
        owner = TrackedPredictor(predictor)
        tracked, perfect = [], []
        for number, frame in enumerate(frames):
            found = frame.results[kind]
            begun = perf_counter()
            result = owner.finish(found, number * step / FPS, limits, begins_anew=False)
            spent_ms.append((perf_counter() - begun) * 1e3)
            assert result.track_ids is not None
            is_tracked = result.track_ids >= 0
            tracked.append(_boxes(result, result.track_ids)[is_tracked])
            sure = found[np.flatnonzero(found.scores > default)]
            perfect.append(true_ids(frame.truth, _boxes(sure, np.zeros(len(sure), np.int64))))
        scores[kind, "tracker"] = score_clip(truth, tracked, ignored)
        scores[kind, "truth"] = score_clip(truth, perfect, ignored)
    return scores


def _boxes(found: Detections, ids: NDArray[np.int64]) -> Boxes:
    return Boxes(ids, found.classes, found.boxes_xyxy.astype(np.float64))


def _figures(scores: IdentityScores) -> dict[str, float]:
    return {
        "idf1": scores.idf1,
        "mota": scores.mota,
        "switches": scores.num_switches,
        "tracks": scores.num_tracks,
        "ids": scores.num_ids,
        "recall": scores.num_covered / max(1, scores.num_true),
        "true_boxes": scores.num_true,
        "tracked_boxes": scores.num_found,
    }


def _short(value: object) -> object:
    return f"{value:.3f}" if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(run_script(main))
