"""Give the runtime damaged images and videos, and say what came of each.

Whole files of every codec at hand are cut, flipped, overwritten and spliced, headers more than
payload. A damaged file that reaches lines of our sources, or messages of the libraries, that none
reached before is damaged further. Each is read to its end in a process of its own kind that is
restarted when it dies. Allowed are frames, counted skips, and an error of one line; a crash, a
hang, another exception, memory or open files that are not given back are findings.

Examples:
  python benchmarks/malformed.py --out malformed.json
      1,000 files, and a record.
  python benchmarks/malformed.py --num-trials 100 --seed 7 --keep findings
      Fewer and other ones; files of findings are kept.
  python benchmarks/malformed.py --decoder opencv
      Videos by OpenCV, as where PyAV is not installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from random import Random
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure.damage import MAY_ADD_FRAMES, damage_file
from benchmarks.measure.fingerprint import describe_libraries, describe_machine
from benchmarks.measure.whole_files import WholeFile, make_whole_files
from runtime.contract.errors import EXIT_DONE, EXIT_VERDICT_FAIL, run_script
from runtime.contract.files import write_json
from runtime.contract.manual import ScriptParser
from runtime.pipeline.sinks.base import check_target

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
MOST_PARENTS = 64  # damaged files of a form that are damaged further
SPARE_FRAMES = 1  # beyond the whole file's: a cut may make two of one
START_S = 120.0  # to load a process's libraries on a busy machine
FINDINGS = ("crash", "hang", "exception", "memory", "descriptors", "made-up frames")


@dataclass
class Trial:
    """A damaged file and what came of it.

    Attributes:
        form: of the whole file. way: of damage. data: the bytes.
        verdict: "frames", "frames and skips" or "error", or one of FINDINGS.
        outcome: as `benchmarks.measure.file_trial.run_trial` gives it.
    """

    form: str
    way: str
    suffix: str
    data: bytes
    parent: WholeFile
    verdict: str = ""
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.suffix.encode() + self.data).hexdigest()


class Reader:
    """A process that reads files; restarted when it dies or is killed.

    Args:
        decoder: of videos: "pyav" or "opencv".
        limit_s: for one file.
    """

    def __init__(self, decoder: str = "pyav", limit_s: float = 10.0) -> None:
        code = f"from benchmarks.measure.file_trial import serve; serve({decoder!r})"
        self._command = [sys.executable, "-c", code]
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._is_new = True

    def read(self, path: Path) -> dict[str, Any]:
        """Read one file; "kind" is "crash" or "hang" where no answer comes."""
        process = self._process
        if process is None:
            process = self._process = subprocess.Popen(
                self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self._is_new = True
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            answers = bool(selector.select(self._limit_s + (START_S if self._is_new else 0.0)))
        line = process.stdout.readline() if answers else b""
        if line:
            self._is_new = False
            outcome: dict[str, Any] = json.loads(line)
            return outcome
        self._end(process)
        status = process.returncode
        text = f"no answer in {self._limit_s} s" if not answers else _describe_status(status)
        return {"kind": "crash" if answers else "hang", "text": text, "reached": [text]}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._end(self._process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        if process.stdin is not None and process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def judge(outcome: dict[str, Any], trial: Trial, most_mib: float) -> str:
    """What an outcome counts as: one of the allowed, or of FINDINGS."""
    if outcome["kind"] in ("crash", "hang", "exception"):
        return str(outcome["kind"])
    if outcome["grown_mib"] > most_mib:
        return "memory"
    if outcome["num_descriptors"] > 0:
        return "descriptors"
    most_frames = trial.parent.num_frames + SPARE_FRAMES
    if outcome["num_frames"] > most_frames and trial.way not in MAY_ADD_FRAMES:
        return "made-up frames"
    if outcome["kind"] == "frames" and outcome["num_corrupt"]:
        return "frames and skips"
    return str(outcome["kind"])


class Search:
    """Makes trials, and prefers to damage further what reached something new.

    Args:
        wholes: the whole files.
        seed: decides on every choice, given what came of the trials before.
    """

    def __init__(self, wholes: list[WholeFile], seed: int) -> None:
        self._random = Random(seed)
        self._wholes = wholes
        self._parents = {
            whole.form: [Trial(whole.form, "", whole.suffix, whole.data, whole)] for whole in wholes
        }
        self._reached: dict[str, set[str]] = defaultdict(set)
        self._seen = {trial[0].digest for trial in self._parents.values()}
        self._plain = self._make_plain()

    @property
    def num_reached(self) -> int:
        """Distinct (form, line or message) pairs."""
        return sum(len(each) for each in self._reached.values())

    def next(self) -> Trial:
        """A file that none before was."""
        while True:
            trial = self._plain.pop() if self._plain else self._damage()
            if trial.digest not in self._seen:
                self._seen.add(trial.digest)
                return trial

    def learn(self, trial: Trial) -> None:
        """Keep a trial as a parent where it reached something new."""
        new = set(trial.outcome["reached"]) - self._reached[trial.form]
        parents = self._parents[trial.form]
        if new and trial.data and trial.verdict not in ("hang", "crash"):
            self._reached[trial.form] |= new
            # A splice or a repetition may hold more frames than the whole file; so may its heirs.
            if trial.way not in MAY_ADD_FRAMES and len(parents) < MOST_PARENTS:
                parents.append(trial)

    def _damage(self) -> Trial:
        whole = self._random.choice(self._wholes)
        parents = self._parents[whole.form]
        parent = self._random.choice(parents[-8:] if self._random.random() < 0.5 else parents)
        other = self._random.choice(parents).data
        data, way = damage_file(parent.data, self._random, other)
        return Trial(whole.form, way, whole.suffix, data, whole)

    def _make_plain(self) -> list[Trial]:
        """What everybody has: empty files, the first bytes, a wrong suffix."""
        trials = []
        for whole in self._wholes:
            for length in (0, 1, 8, 32, len(whole.data) // 2, len(whole.data) - 1):
                data = whole.data[:length]
                trials.append(Trial(whole.form, "cut", whole.suffix, data, whole))
            other = ".mp4" if whole.num_frames == 1 else ".jpg"
            trials.append(Trial(whole.form, "wrong suffix", other, whole.data, whole))
        return trials


def run_trials(
    search: Search, reader: Reader, num_trials: int, *, most_mib: float, keep: Path | None = None
) -> list[Trial]:
    """Read damaged files, one after the other; keep those of findings."""
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_trials):
            trial = search.next()
            path = Path(folder) / f"trial{trial.suffix}"
            path.write_bytes(trial.data)
            trial.outcome = reader.read(path)
            trial.verdict = judge(trial.outcome, trial, most_mib)
            search.learn(trial)
            trials.append(trial)
            if trial.verdict in FINDINGS:
                _tell(trial, number, keep)
    return trials


def main(argv: list[str] | None = None) -> int:
    """Run; print a table. Exit status 0, 1 where there are findings, 2 for bad input."""
    args = _parse(argv)
    if args.out is not None:
        check_target(args.out, suffixes=(".json",))
    wholes = make_whole_files()
    search = Search(wholes, args.seed)
    reader = Reader(args.decoder, args.limit_s)
    started = time.perf_counter()
    try:
        trials = run_trials(search, reader, args.num_trials, most_mib=args.most_mib, keep=args.keep)
    finally:
        reader.close()
    record = _summarise(trials, search, args, time.perf_counter() - started)
    _print_table(record)
    if args.out is not None:
        write_json(args.out, record)
    return EXIT_VERDICT_FAIL if record["findings"] else EXIT_DONE


def _tell(trial: Trial, number: int, keep: Path | None) -> None:
    print(f"{trial.verdict}: {trial.form}, {trial.way}: {trial.outcome}", file=sys.stderr)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{number}_{trial.verdict.split()[0]}{trial.suffix}").write_bytes(trial.data)


def _summarise(
    trials: list[Trial], search: Search, args: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    by_form: dict[str, Counter[str]] = defaultdict(Counter)
    for trial in trials:
        by_form[trial.form][trial.verdict] += 1
    answered = [trial.outcome for trial in trials if "ms" in trial.outcome]
    digests = sorted(trial.digest for trial in trials)
    return {
        "schema": SCHEMA,
        "command": shlex.join(["benchmarks/malformed.py", *sys.argv[1:]]),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "libraries": describe_libraries(),
        "decoder": args.decoder,
        "seed": args.seed,
        "num_trials": len(trials),
        "num_distinct": len(set(digests)),
        "trials_sha256": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "verdicts": dict(Counter(trial.verdict for trial in trials)),
        "by_form": {form: dict(count) for form, count in sorted(by_form.items())},
        "by_way": dict(Counter(trial.way for trial in trials)),
        "num_reached": search.num_reached,
        "limits": {"seconds": args.limit_s, "grown_mib": args.most_mib},
        "slowest_ms": max((each["ms"] for each in answered), default=None),
        "most_grown_mib": max((each["grown_mib"] for each in answered), default=None),
        "seconds": round(seconds, 1),
        "findings": [
            {"form": each.form, "way": each.way, "verdict": each.verdict, "sha256": each.digest}
            | {"text": each.outcome["text"]}
            for each in trials
            if each.verdict in FINDINGS
        ],
    }


def _print_table(record: dict[str, Any]) -> None:
    allowed = ("frames", "frames and skips", "error")
    print(f"{'form':<20}" + "".join(f"{name:>18}" for name in (*allowed, "finding")))
    for form, count in (*record["by_form"].items(), ("all", record["verdicts"])):
        bad = sum(number for verdict, number in count.items() if verdict in FINDINGS)
        cells = [*(count.get(name, 0) for name in allowed), bad]
        print(f"{form:<20}" + "".join(f"{cell:>18}" for cell in cells))
    print(
        f"{record['num_distinct']} distinct files in {record['seconds']} s; slowest "
        f"{record['slowest_ms']} ms, most memory {record['most_grown_mib']} MiB, "
        f"{record['num_reached']} lines and messages reached"
    )


def _describe_status(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__, statuses={1: "there are findings"})
    parser.add_argument("--num-trials", type=int, default=1000, help="damaged files; default 1000")
    parser.add_argument("--seed", type=int, default=0, help="the same damages the same")
    parser.add_argument("--decoder", choices=("pyav", "opencv"), default="pyav", help="of videos")
    parser.add_argument("--limit-s", type=float, default=30.0, help="for one file; default 30")
    parser.add_argument(
        "--most-mib", type=float, default=700.0, help="that one file may take; default 700"
    )
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    parser.add_argument("--out", type=Path, help="JSON record")
    args = parser.parse_args(argv)
    if args.num_trials < 1:
        parser.error(f"--num-trials is {args.num_trials}; expected 1 or more")
    return args


if __name__ == "__main__":
    sys.exit(run_script(main))
