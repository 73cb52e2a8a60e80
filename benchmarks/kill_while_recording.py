"""Kill recordings at random moments (kill -9) and look at what they leave.

Cameras (MP4, MKV, AVI) and a film are recorded in turn: annotated video and JSON lines, through the
runtime's own pipeline, with an engine that sleeps. Every video must open, with its frames whole, in
order and at their times; every JSON line must parse; and at most the last second may be lost.

Examples:
  python benchmarks/kill_while_recording.py --kills 50 --out record.json
      Fifty kills, and a record.
  python benchmarks/kill_while_recording.py --kills 4 --seed 7
      A few, at other moments.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure.fingerprint import describe_libraries, describe_machine
from benchmarks.measure.recording import ENGINE_MS, FPS, KINDS, MOST_LOST_S, SIZE_WH, kill_once
from runtime.contract.errors import EXIT_DONE, EXIT_VERDICT_FAIL, run_script
from runtime.contract.files import write_json
from runtime.contract.manual import ScriptParser
from runtime.pipeline.sinks.base import check_target

SCHEMA = 1
AFTER_S = (0.5, 4.0)  # of recording


def main(argv: list[str] | None = None) -> int:
    """Run and report. Exit status 0, 1 where a promise was not kept, 2 for bad input."""
    args = _parse(argv)
    if args.out is not None:
        check_target(args.out, suffixes=(".json",))
    machine = describe_machine()
    moments = random.Random(args.seed)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.kills):
            kind = KINDS[number % len(KINDS)]
            loss = kill_once(kind, Path(folder) / str(number), moments.uniform(*AFTER_S))
            losses.append(loss)
            print(f"{number + 1}/{args.kills} {json.dumps(loss.to_json())}", flush=True)
    lost_s = {
        name: max(value for each in losses if (value := getattr(each, name)) is not None)
        for name in ("lines_lost_s", "video_lost_s")
    }
    num_good = sum(loss.is_good for loss in losses)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "kill while recording",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(
            ["python", "benchmarks/kill_while_recording.py", *(argv or sys.argv[1:])]
        ),
        "settings": {
            "kills": args.kills,
            "seed": args.seed,
            "after_s": list(AFTER_S),
            "kinds": list(KINDS),
            "fps": FPS,
            "frame_wh": list(SIZE_WH),
            "engine_ms": ENGINE_MS,
        },
        "limits": {"lost_s": MOST_LOST_S},
        "num_good": num_good,
        "most_lines_lost_s": round(lost_s["lines_lost_s"], 3),
        "most_video_lost_s": round(lost_s["video_lost_s"], 3),
        "verdict": "pass" if num_good == len(losses) else "fail",
        "kills": [loss.to_json() for loss in losses],
        "machine": machine,
        "libraries": describe_libraries(),
    }
    if args.out is not None:
        write_json(args.out, document)
    print(
        f"{document['verdict']}: {num_good} of {len(losses)} kills cost at most {MOST_LOST_S:g} s; "
        f"most lost: video {lost_s['video_lost_s']:.2f} s, lines {lost_s['lines_lost_s']:.2f} s"
    )
    return EXIT_DONE if document["verdict"] == "pass" else EXIT_VERDICT_FAIL


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__, statuses={1: "one of that failed"})
    parser.add_argument("--kills", type=int, default=50, help="how many; default 50")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default 0")
    parser.add_argument("--out", type=Path, help="JSON record")
    args = parser.parse_args(argv)
    if args.kills < 1:
        parser.error(f"--kills is {args.kills}; expected 1 or more")
    return args


if __name__ == "__main__":
    sys.exit(run_script(main))
