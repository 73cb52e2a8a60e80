"""Prove the live pipeline's promises on synthetic cameras and an engine that sleeps.

Everything is the runtime's own - reader threads, letterbox, batching, drawing, sinks - but for the
camera and the network.

Examples:
  python benchmarks/live.py age --seconds 600
      A camera of 30 fps, 100 ms an engine call: ages, and where each frame went.
  python benchmarks/live.py stalls --seconds 60
      8 cameras, of which one stalls 5 s at a time.
  python benchmarks/live.py soak --frames 200000
      Memory, descriptors and threads stay what they are.
  python benchmarks/live.py overhead --frames 1500
      A frame's period over the engine's own.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure.fingerprint import describe_libraries, describe_machine
from benchmarks.measure.live_runs import run_age, run_overhead, run_stalls
from benchmarks.measure.soak import run_soak
from runtime.contract.errors import EXIT_DONE, EXIT_VERDICT_FAIL, run_script
from runtime.contract.files import write_json
from runtime.contract.manual import ScriptParser
from runtime.pipeline.sinks.base import check_target

SCHEMA = 1
LEAST_SECONDS = 1.0


def main(argv: list[str] | None = None) -> int:
    """Run one proof and report. Exit status 0, 1 where it failed, 2 for bad input."""
    args = _parse(argv)
    if args.out is not None:
        check_target(args.out, suffixes=(".json",))
    machine = describe_machine()  # before we make it busy
    if args.proof == "age":
        found = run_age(seconds=args.seconds)
    elif args.proof == "stalls":
        found = run_stalls(seconds=args.seconds)
    elif args.proof == "soak":
        found = run_soak(num_frames=args.frames)
    else:
        found = run_overhead(num_frames=args.frames)
    notices = []
    if machine["is_shared"]:
        notices.append(
            f"Shared machine: a load of {machine['load_average'][0]} on {machine['cores']} cores "
            "before the measurement began."
        )
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": f"live {args.proof}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/live.py", *(argv or sys.argv[1:])]),
        "notices": notices,
        **found,
        "verdict": "pass" if all(found["passes"].values()) else "fail",
        "machine": machine,
        "libraries": describe_libraries(),
    }
    if args.out is not None:
        write_json(args.out, document)
    print(json.dumps({name: document[name] for name in (*found, "verdict")}, indent=2))
    return EXIT_DONE if document["verdict"] == "pass" else EXIT_VERDICT_FAIL


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__, statuses={1: "a promise was not kept"})
    proofs = parser.add_subparsers(dest="proof", required=True)
    for name, unit, default, words in (
        ("age", "seconds", 60.0, "how old the results of a camera are that outruns the engine"),
        ("stalls", "seconds", 60.0, "what seven cameras lose when the eighth stalls"),
        ("soak", "frames", 200_000, "memory, descriptors and threads over many frames"),
        ("overhead", "frames", 1500, "a frame's period over the engine's own"),
    ):
        proof = proofs.add_parser(name, help=words, description=words)
        kind = float if unit == "seconds" else int
        proof.add_argument(f"--{unit}", type=kind, default=default, help=f"default {default:g}")
        proof.add_argument("--out", type=Path, help="JSON record")
    args = parser.parse_args(argv)
    if getattr(args, "seconds", LEAST_SECONDS) < LEAST_SECONDS:
        parser.error(f"--seconds is {args.seconds}; expected {LEAST_SECONDS:g} or more")
    if getattr(args, "frames", 1) < 1:
        parser.error(f"--frames is {args.frames}; expected 1 or more")
    return args


if __name__ == "__main__":
    sys.exit(run_script(main))
