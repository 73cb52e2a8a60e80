"""Attack the web page of a run, and say what came of it and what it cost the run.

A fuzzer (schemathesis) asks what the OpenAPI description allows and what it does not; files of
others are asked for, tokens are missing or wrong, other sites ask, and 100 clients want the stream
and hardly read it. Rounds without an attack, with one on this run, and with one on another run
beside it follow one another: the second over the first is what attacks cost, over the third what
they cost but for the attackers' being on the same machine; that is judged. The engine sleeps, as
the host does while a GPU computes, or is a bundle's; a camera gives the pictures. Findings: an
answer of 500 and more (503 only where the server is full), a file that is none of the page's, a
traceback, an answer that is not as described, a lost rate.

Examples:
  python benchmarks/web_abuse.py --rounds 2 --seconds 2
      A short look.
  python benchmarks/web_abuse.py --rounds 10 --out web_abuse.json
      The record.
  python benchmarks/web_abuse.py --rounds 2 --seconds 2 --fps 0
      Pictures come as fast as the engine takes them, so that every delay is seen in the rate.
  python benchmarks/web_abuse.py --bundle runs/retinanet --rounds 2 --seconds 2
      The same of a network that computes on this machine; the attackers take cores from it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure.fingerprint import describe_libraries, describe_machine
from benchmarks.measure.web_attacks import (
    Fuzzer,
    SlowClients,
    Tally,
    Target,
    ask_from_elsewhere,
    ask_without_token,
    traverse,
)
from benchmarks.measure.web_host import SLEEPING, WebHost
from runtime.contract.errors import EXIT_DONE, EXIT_VERDICT_FAIL, run_script
from runtime.contract.files import write_json
from runtime.contract.manual import ScriptParser
from runtime.pipeline.sinks.base import check_target
from runtime.web.handlers import MOST_VIEWERS

SCHEMA = 1
TOKEN = "a-token-that-is-long-enough"
LEAST_RATIO = 0.95  # of the rate of inference while it is attacked, over that of its neighbour
LEAST_CASES = 200
ENGINE_MS = 30.0
FPS = 10.0
LEAST_FPS = 1e-3  # a short round on a busy machine may see no frame
KINDS = ("quiet", "attacked", "other attacked")
SETTLE_S = 1.0  # after a round, for what it left to end


def main(argv: list[str] | None = None) -> int:
    """Attack and report. Exit status 0, 1 where there are findings, 2 for bad input."""
    args = _parse(argv)
    if args.out is not None:
        check_target(args.out, suffixes=(".json",))
    machine = describe_machine()  # before we make it busy
    found = attack(
        bundle=args.bundle,
        engine_ms=args.engine_ms,
        fps=args.fps,
        num_rounds=args.rounds,
        round_s=args.seconds,
        num_slow=args.slow,
        requests_a_second=args.requests_a_second,
    )
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "web abuse",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/web_abuse.py", *(argv or sys.argv[1:])]),
        **found,
        "verdict": "pass" if all(found["passes"].values()) else "fail",
        "machine": machine,
        "libraries": describe_libraries(),
    }
    if args.out is not None:
        write_json(args.out, document)
    print(json.dumps({name: document[name] for name in (*found, "verdict")}, indent=2))
    return EXIT_DONE if document["verdict"] == "pass" else EXIT_VERDICT_FAIL


def attack(
    *,
    bundle: str = SLEEPING,
    engine_ms: float = ENGINE_MS,
    fps: float = FPS,
    num_rounds: int,
    round_s: float,
    num_slow: int,
    requests_a_second: float,
    num_each: int = 12,
    least_cases: int = LEAST_CASES,
) -> dict[str, Any]:
    """Attack a run in a process of its own.

    Args:
        bundle, engine_ms, fps: as of `WebHost`.
        num_rounds: of each kind, in turn.
        round_s: seconds of each.
        num_slow: clients that hardly read.
        requests_a_second: of the fuzzer.
        num_each: of its cases, of either kind, of each operation.
        least_cases: that it sends in all.

    Returns:
        Requests by status, findings, rates and `passes`.
    """
    tally = Tally()
    fuzzer = Fuzzer(num_each)
    turns: dict[str, list[_Turn]] = {kind: [] for kind in KINDS}
    run = (bundle, engine_ms, fps, TOKEN)
    with WebHost(*run) as host, WebHost(*run) as other:
        target, beside = (Target(each.host, each.port, TOKEN) for each in (host, other))
        traverse(target, tally)
        ask_without_token(target, tally)
        ask_from_elsewhere(target, tally)
        sends = {
            "attacked": fuzzer.attack(target, tally, requests_a_second=requests_a_second),
            "other attacked": fuzzer.attack(beside, Tally(), requests_a_second=requests_a_second),
        }
        before = host.figures()
        num_served = num_refused = 0
        for number in range(num_rounds):
            for place in range(len(KINDS)):  # each kind comes first in its turn
                kind = KINDS[(number + place) % len(KINDS)]
                time.sleep(SETTLE_S)
                with contextlib.ExitStack() as stack:
                    if kind != "quiet":
                        asked = target if kind == "attacked" else beside
                        slow = stack.enter_context(SlowClients(asked, num_slow))
                        stack.enter_context(_Sending(sends[kind]))
                        if kind == "attacked":
                            num_served, num_refused = slow.num_served, slow.num_refused
                    turns[kind].append(_Turn.of(host, round_s))
        num_sent = sum(tally.statuses["fuzzer"].values())
        for _ in range(max(len(fuzzer.cases), least_cases) - num_sent):
            next(sends["attacked"])
        time.sleep(SETTLE_S)
        after = host.figures()
        status, _ = target.ask("GET", "/healthz", {})
        is_alive = host.is_alive and status == 200
    ratios = {
        f"over {kind}": [
            attacked.fps / max(turn.fps, LEAST_FPS)
            for attacked, turn in zip(turns["attacked"], turns[kind], strict=True)
        ]
        for kind in ("quiet", "other attacked")
    }
    ratio = statistics.median(ratios[f"over {KINDS[-1]}"])
    num_server_errors = sum(
        count
        for counter in tally.statuses.values()
        for code, count in counter.items()
        if code >= 500 and code != 503
    )
    return {
        "engine": bundle if bundle != SLEEPING else f"sleeps {engine_ms:g} ms",
        "num_requests": tally.num_requests,
        "num_rounds_of_each": num_rounds,
        "statuses": {
            kind: {str(code): counter[code] for code in sorted(counter)}
            for kind, counter in tally.statuses.items()
        },
        "slow_clients": {"asked": num_slow, "served": num_served, "refused": num_refused},
        "findings": tally.findings,
        "fps": {kind: [round(each.fps, 2) for each in found] for kind, found in turns.items()},
        "cpu_share_of_a_core": {
            kind: round(statistics.median(each.cpu_share for each in found), 4)
            for kind, found in turns.items()
        },
        "fps_of_camera": fps,
        "fps_ratio": {
            name: {
                "median": round(statistics.median(found), 4),
                "least": round(min(found), 4),
                "most": round(max(found), 4),
            }
            for name, found in ratios.items()
        },
        "server": {
            "before": _shorten(before),
            "after": _shorten(after),
        },
        "passes": {
            "no finding": not tally.findings,
            "no 5xx but of a full server": num_server_errors == 0,
            f"the fuzzer sent {least_cases} requests and more": sum(
                tally.statuses["fuzzer"].values()
            )
            >= least_cases,
            "viewers are bounded": num_served <= MOST_VIEWERS,
            f"rate at least {LEAST_RATIO} of that while another run is attacked": ratio
            >= LEAST_RATIO,
            "the server answers at the end": is_alive,
        },
    }


class _Sending:
    """Goes on with the fuzzer on a thread of its own; a context manager."""

    def __init__(self, sends: Any) -> None:
        self._sends = sends
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            next(self._sends)


@dataclass(frozen=True)
class _Turn:
    """A round of one kind.

    Attributes:
        fps: frames a second. cpu_share: processor time of the run's process, of one core.
    """

    fps: float
    cpu_share: float

    @classmethod
    def of(cls, host: WebHost, seconds: float) -> _Turn:
        first = host.figures()
        time.sleep(seconds)
        last = host.figures()
        passed_s = last["at_s"] - first["at_s"]
        num_frames = last["num_delivered"] - first["num_delivered"]
        return cls(num_frames / passed_s, (last["cpu_s"] - first["cpu_s"]) / passed_s)


def _shorten(figures: dict[str, Any]) -> dict[str, Any]:
    names = ("rss_mib", "num_threads", "num_descriptors")
    return {name: round(figures[name], 1) for name in names}


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__, statuses={1: "there are findings"})
    parser.add_argument("--bundle", default=SLEEPING, help="a bundle's folder, or sleeping")
    parser.add_argument(
        "--engine-ms", type=float, default=ENGINE_MS, help="that the sleeping engine takes"
    )
    parser.add_argument(
        "--fps", type=float, default=FPS, help="of the camera; 0: as fast as the engine is"
    )
    parser.add_argument("--rounds", type=int, default=10, help="of each kind")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a round")
    parser.add_argument("--slow", type=int, default=100, help="clients that hardly read")
    parser.add_argument(
        "--requests-a-second", type=float, default=20.0, help="that the fuzzer sends"
    )
    parser.add_argument("--out", type=Path, help="JSON record")
    args = parser.parse_args(argv)
    for name, least in (("rounds", 1), ("seconds", 1), ("slow", 0), ("fps", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}; expected {least} or more")
    for name in ("engine_ms", "requests_a_second"):
        if not getattr(args, name) > 0:
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} is {getattr(args, name)}; expected more than 0")
    return args


if __name__ == "__main__":
    sys.exit(run_script(main))
