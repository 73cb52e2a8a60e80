"""Kill an RTSP server and start it again, many times, under a source that is being read.

The server is a process of Debian's packages whose pictures carry the time as a number, so that a
picture delivered twice, or from before the restart, would show. It stays away for a time drawn
anew each time. The verdict: a frame within --within seconds after the server listens again, each
time; numbers that only rise; as many threads and descriptors at the end as after the first frame.

Examples:
  python benchmarks/reconnect.py --times 20 --out reconnect.json
      Twenty restarts, and a record.
  python benchmarks/reconnect.py --times 5 --seconds 0.7 --longest-away 3 --transport udp
      A shorter run, over UDP.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure.fingerprint import describe_libraries, describe_machine
from benchmarks.measure.numbered_pictures import read_number
from benchmarks.measure.rtsp_process import PACKAGES, RtspServer, has_rtsp_server
from runtime.contract.errors import EXIT_DONE, EXIT_VERDICT_FAIL, KestrelError, run_script
from runtime.contract.files import write_json
from runtime.contract.manual import ScriptParser
from runtime.pipeline.sources import Source, open_source
from runtime.pipeline.sources.base import NoFrameYet

SCHEMA = 1
FPS = 25
LONGEST_WAIT_S = 60.0  # for the first picture after a death; then it counts as lost
SETTLING_S = 3.0  # threads of a closed connection may take so long to end


@dataclass(frozen=True)
class Round:
    """One death of the server.

    Attributes:
        away_s: from the kill until it listened again.
        back_s: from then until the first picture that it made after its return was delivered.
        threads, descriptors: of this process, when pictures came again.
    """

    away_s: float
    back_s: float
    threads: int
    descriptors: int


class Reader:
    """Reads a source as a pipeline does, and looks at the numbers in its pictures.

    Attributes:
        num_frames: delivered. num_repeated: of these, not newer than the one before.
        delays_ms: from the making of each picture until its delivery.
    """

    def __init__(self, source: Source) -> None:
        self.num_frames = 0
        self.num_repeated = 0
        self.delays_ms: list[float] = []
        self._source = source
        self._last = -1

    def read(self) -> int:
        """The number of the next picture; -1 where none came for a while."""
        try:
            frame = self._source.read()
        except NoFrameYet:
            return -1
        assert frame is not None
        number = read_number(frame.image_bgr)
        self.num_frames += 1
        self.num_repeated += number <= self._last
        self._last = number
        self.delays_ms.append((_number_of_now(fraction=True) - number) / FPS * 1000.0)
        self._source.recycle(frame)
        return number

    def read_for(self, seconds: float) -> None:
        """Read on for so long."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            self.read()

    def read_until(self, number: int) -> float:
        """Read until a picture above `number` comes; the time of the clock then.

        Raises:
            KestrelError: none came.
        """
        until = time.perf_counter() + LONGEST_WAIT_S
        while time.perf_counter() < until:
            if self.read() > number:
                return time.time()
        raise KestrelError(f"no picture for {LONGEST_WAIT_S:.0f} s; expected the server's return.")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write the record; exit status 1 where the verdict is no."""
    args = _parse(argv)
    if not has_rtsp_server():
        raise KestrelError(f"no RTSP server here; expected it by 'apt-get install {PACKAGES}'.")
    logging.basicConfig(level=logging.INFO, format="    %(message)s", stream=sys.stderr)
    machine = describe_machine()
    server = RtspServer("--fps", str(FPS))
    try:
        with open_source(f"{server.url}#transport={args.transport}") as source:
            reader = Reader(source)
            reader.read_for(args.seconds)
            start = _held()
            rounds = _run(args, server, reader)
            reader.read_for(SETTLING_S)
            end = _held()
            counts = {
                "reconnects": source.num_reconnects,
                "corrupt": source.num_corrupt,
                "overtaken": source.num_overtaken,
            }
    finally:
        server.kill()
    backs = [each.back_s for each in rounds]
    checks = {
        "in_time": max(backs) <= args.within,
        "none_twice": reader.num_repeated == 0,
        "threads": start[0] == end[0],
        "descriptors": start[1] == end[1],
        "every_reconnect_counted": counts["reconnects"] == args.times,
    }
    document = {
        "schema": SCHEMA,
        "kind": "reconnect",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *(sys.argv if argv is None else [sys.argv[0], *argv])]),
        "verdict": "pass" if all(checks.values()) else "fail",
        "checks": checks,
        "within_s": args.within,
        "back_s": {"max": max(backs), "median": statistics.median(backs)},
        "frames": reader.num_frames,
        "repeated": reader.num_repeated,
        **counts,
        "delay_ms": {"median": round(statistics.median(reader.delays_ms), 1)},
        "threads": [start[0], end[0]],
        "descriptors": [start[1], end[1]],
        "rounds": [asdict(each) for each in rounds],
        "machine": machine,
        "libraries": describe_libraries(),
    }
    print(
        f"{len(rounds)} deaths: pictures again after {max(backs):.2f} s at most (median "
        f"{statistics.median(backs):.2f} s); {reader.num_frames} frames, {reader.num_repeated} "
        f"twice; threads {start[0]} -> {end[0]}, descriptors {start[1]} -> {end[1]}: "
        f"{document['verdict']}"
    )
    if args.out:
        write_json(args.out, document)
        print(f"-> {args.out}")
    return EXIT_DONE if document["verdict"] == "pass" else EXIT_VERDICT_FAIL


def _run(args: argparse.Namespace, server: RtspServer, reader: Reader) -> list[Round]:
    """All deaths; the source is read all the while."""
    generator = random.Random(args.seed)
    rounds: list[Round] = []
    for number in range(1, args.times + 1):
        server.kill()
        killed_at, last = time.time(), _number_of_now()
        returned: list[float] = []
        helper = threading.Thread(
            target=_come_back, args=(server, generator.uniform(0.1, args.longest_away), returned)
        )
        helper.start()
        back_at = reader.read_until(last)
        helper.join()
        back_s = max(back_at - returned[0], 0.0)  # it may be connected to before it says "ready"
        reader.read_for(args.seconds)
        rounds.append(Round(round(returned[0] - killed_at, 3), round(back_s, 3), *_held()))
        print(f"{number:3}: away {rounds[-1].away_s:.2f} s, pictures again after {back_s:.2f} s")
    return rounds


def _come_back(server: RtspServer, away_s: float, returned: list[float]) -> None:
    time.sleep(away_s)
    server.start()
    returned.append(time.time())


def _number_of_now(*, fraction: bool = False) -> float:
    """What the server would draw now."""
    number = (time.time() * FPS) % 2**32
    return number if fraction else int(number)


def _held() -> tuple[int, int]:
    """Threads of this process, those of its libraries too, and descriptors."""
    return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__, statuses={1: "a promise was not kept"})
    parser.add_argument("--times", type=int, default=20, help="that it is killed; default 20")
    parser.add_argument("--within", type=float, default=2.0, help="seconds allowed; default 2")
    parser.add_argument("--seconds", type=float, default=2.0, help="of reading between; default 2")
    parser.add_argument(
        "--longest-away", type=float, default=6.0, help="seconds that it stays away; default 6"
    )
    parser.add_argument("--transport", choices=("tcp", "udp"), default="tcp", help="of RTSP")
    parser.add_argument("--seed", type=int, default=0, help="of the times that it stays away")
    parser.add_argument("--out", type=Path, help="the record, as JSON")
    args = parser.parse_args(argv)
    if args.times < 1:
        parser.error(f"--times is {args.times}; expected 1 or more")
    return args


if __name__ == "__main__":
    sys.exit(run_script(main))
