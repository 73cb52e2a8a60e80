"""Check and time our CUDA kernels on this machine's GPU, beside PyTorch and the floors.

On inputs that are made for the run: results against NumPy in float64, the same input many times
over for races, times within a CUDA graph that goes through more memory than the caches hold, and
the same work in PyTorch, as a compiled definition and as torchvision does it. Boxes are decoded
before. What cannot be done here, without a GPU above all, is skipped and says why.

Examples:
  python benchmarks/kernels.py
      All heads that are known.
  python benchmarks/kernels.py --head coco-640 --out kernels.json
      One of them, and a record.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.measure.fingerprint import describe_libraries, describe_machine
from benchmarks.measure.kernel_bench import WORK, InputSet, KernelBench, find_fault
from benchmarks.measure.selection import (
    HEADS,
    Arrays,
    Gpu,
    Head,
    find_floors_us,
    find_letterbox_floor_us,
    keep,
    make_feeds,
)
from runtime.contract.errors import (
    EXIT_DONE,
    EXIT_VERDICT_FAIL,
    EngineError,
    SessionError,
    run_script,
)
from runtime.contract.files import write_json
from runtime.contract.manifest import InputGeometry
from runtime.contract.manual import ScriptParser
from runtime.engines.kernels.launching import Driver
from runtime.engines.kernels.shipped import NMS, SELECT, code_sha256
from runtime.pipeline.sinks.base import check_target
from runtime.preprocess import Letterbox
from runtime.sessions.buffers import Cuda
from runtime.sessions.gpu import why_no_gpu

SCHEMA = 1
ROTATED_NBYTES = 256 << 20  # of logits: several times the largest cache
MOST_SETS = 32
FRAME_HW, NETWORK_HW = (1080, 1920), (640, 640)
LETTERBOX_FRAMES = 40  # 250 MB of them
PEER_SETS = 4
PEER = Path(__file__).resolve().parents[1] / "training" / "time_selection.py"
PEER_TIMEOUT_S = 900.0
DEFAULT_CLOCK_HZ = 1.98e9  # of an H200 and H100; --clock-mhz for others


def main(argv: list[str] | None = None) -> int:
    """Measure; exit status 1 where a kernel was wrong."""
    parser = ScriptParser(__doc__, statuses={1: "a kernel gave a wrong result, or another one"})
    parser.add_argument("--head", nargs="+", choices=HEADS, default=list(HEADS), help="which sizes")
    parser.add_argument("--inputs", type=int, default=20, help="to check; default 20")
    parser.add_argument("--repeats", type=int, default=200, help="of one input; default 200")
    parser.add_argument("--replays", type=int, default=20, help="of a graph; default 20")
    parser.add_argument("--clock-mhz", type=float, help="of a multiprocessor; default 1980")
    parser.add_argument("--no-peers", action="store_true", help="leave PyTorch out")
    parser.add_argument("--out", type=Path, help="JSON record")
    args = parser.parse_args(argv)
    if args.clock_mhz is not None and not args.clock_mhz > 0:
        parser.error(f"--clock-mhz {args.clock_mhz:g} is no clock; expected more than 0")
    if min(args.inputs, args.repeats, args.replays) < 1:
        parser.error("expected --inputs, --repeats and --replays of 1 or more")
    if args.out is not None:
        check_target(args.out, suffixes=(".json",))
    clock_hz = args.clock_mhz * 1e6 if args.clock_mhz else DEFAULT_CLOCK_HZ
    skipped: dict[str, str] = {}
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "kernels",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kernels_sha256": code_sha256(SELECT, NMS),
        "heads": {name: {"sizes": asdict(HEADS[name])} for name in args.head},
        "skipped": skipped,
        "machine": describe_machine(),
        "libraries": describe_libraries(),
    }
    bench = open_bench(skipped)
    is_right = True
    if bench is not None:
        with bench:
            gpu = bench.measure_gpu(clock_hz)
            document["gpu"] = {"name": str(bench.device), **asdict(gpu)}
            document["letterbox"] = measure_letterbox(bench, gpu, args.replays, skipped)
            for name in args.head:
                found = measure(bench, HEADS[name], gpu, args)
                document["heads"][name] |= found
                is_right &= not found["faults"]
    if not args.no_peers:
        for name in args.head:
            document["heads"][name] |= ask_peer(HEADS[name], name, skipped)
    for line in report(document):
        print(line)
    if args.out is not None:
        write_json(args.out, document)
    return EXIT_DONE if is_right else EXIT_VERDICT_FAIL


def open_bench(skipped: dict[str, str]) -> KernelBench | None:
    """The kernels in this machine's GPU; None, with the reason noted, where that cannot be."""
    reason = why_no_gpu()
    if not reason:
        try:
            return KernelBench(Cuda.load(), Driver.load())
        except (SessionError, EngineError) as error:
            reason = str(error)
    for step in ("correctness", "races", "times", "letterbox"):
        skipped[step] = reason
    return None


def measure(bench: KernelBench, head: Head, gpu: Gpu, args: Any) -> dict[str, Any]:
    """Results, repetition and times of one head."""
    faults = []
    for seed in range(args.inputs):
        feeds = make_feeds(head, seed)
        with bench.place(head, feeds) as placed:
            fault = find_fault(head, feeds, bench.run(head, placed))
        if fault:
            faults.append(f"seed {seed}: {fault}")
    with contextlib.ExitStack() as stack:
        made = [make_feeds(head, seed) for seed in range(num_sets(head))]
        sets = [stack.enter_context(bench.place(head, feeds)) for feeds in made]
        faults += find_race(bench, head, sets[0], args.repeats)
        for placed in sets:
            bench.run(head, placed)
        times = {work: bench.time_us(work, head, sets, args.replays) for work in WORK}
    pairs = most_pairs(head, made)
    return {
        "faults": faults,
        "inputs": args.inputs,
        "repeats": args.repeats,
        "sets": len(sets),
        "pairs": pairs,
        "times_us": {work: round(time, 3) for work, time in times.items()},
        "floors_us": {n: round(v, 3) for n, v in find_floors_us(head, pairs, gpu).items()},
    }


def measure_letterbox(
    bench: KernelBench, gpu: Gpu, num_replays: int, skipped: dict[str, str]
) -> dict[str, Any]:
    """The letterbox kernel's time and floor; {} where it does not prove itself."""
    letterbox = Letterbox.fit(FRAME_HW, InputGeometry(height=NETWORK_HW[0], width=NETWORK_HW[1]))
    try:
        time_us = bench.time_letterbox_us(letterbox, LETTERBOX_FRAMES, num_replays)
    except SessionError as error:
        skipped["letterbox"] = str(error)
        return {}
    return {
        "frame_hw": list(FRAME_HW),
        "network_hw": list(NETWORK_HW),
        "time_us": round(time_us, 3),
        "floor_us": round(find_letterbox_floor_us(letterbox, gpu), 3),
    }


def find_race(bench: KernelBench, head: Head, placed: InputSet, num_repeats: int) -> list[str]:
    """Where one of many runs of an input gave other bytes than the first; [] where none did."""
    first = bench.run(head, placed)
    for repeat in range(num_repeats):
        again = bench.run(head, placed)
        differing = [name for name in first if first[name].tobytes() != again[name].tobytes()]
        if differing:
            return [f"repeat {repeat}: other {', '.join(differing)}"]
    return []


def num_sets(head: Head) -> int:
    """So many inputs that their logits do not stay in a cache."""
    return min(MOST_SETS, max(2, ROTATED_NBYTES // head.logits_nbytes))


def most_pairs(head: Head, feeds: Sequence[Arrays]) -> int:
    """The most of any image, on average over the inputs; at most four are looked at."""
    looked_at = feeds[:4]
    most = [max(keep(head, each, b).num_pairs for b in range(head.batch)) for each in looked_at]
    return round(sum(most) / len(most))


def ask_peer(head: Head, name: str, skipped: dict[str, str]) -> dict[str, Any]:
    """PyTorch's times, and whether it keeps what the reference keeps; {} where it cannot run."""
    reason = why_no_gpu()
    if reason:
        skipped["peers"] = reason
        return {}
    feeds = [make_feeds(head, seed) for seed in range(PEER_SETS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.npz"
        arrays: dict[str, Any] = {key: np.stack([each[key] for each in feeds]) for key in feeds[0]}
        np.savez(path, candidates=head.candidates, kept=head.kept, **arrays)
        command = [sys.executable, str(PEER), str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PEER_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            skipped[f"peers of {name}"] = f"PyTorch took over {PEER_TIMEOUT_S:.0f} s to compile"
            return {}
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        skipped[f"peers of {name}"] = said[-1]
        return {}
    answer = json.loads(done.stdout.splitlines()[-1])
    expected = [keep(head, feeds[0], image) for image in range(head.batch)]
    anchors = [(each.flat[each.rows] // head.classes).tolist() for each in expected]
    return {
        "peers": {
            "torch": answer["torch"],
            "torchvision": answer["torchvision"],
            "compiled_us": answer["fixed_us"],
            "torchvision_us": answer["torchvision_us"],
            "compiled_is_right": answer["fixed_anchors"] == anchors,
            "torchvision_is_right": answer["torchvision_anchors"] == anchors,
        }
    }


def report(document: dict[str, Any]) -> list[str]:
    """Lines to print."""
    lines = []
    if "gpu" in document:
        gpu = document["gpu"]
        lines.append(
            f"{gpu['name']}: {gpu['bytes_a_s'] / 1e9:.0f} GB/s, a launch {gpu['launch_us']:.1f} us"
        )
    if document.get("letterbox"):
        found = document["letterbox"]
        time, floor = found["time_us"], found["floor_us"]
        lines.append("letterbox of a 1920x1080 frame to 640x640:")
        lines.append(f"  1 launch{time:8.1f} us  floor {floor:7.1f} us  {time / floor:5.2f} x")
    for name, found in document["heads"].items():
        sizes = found["sizes"]
        lines.append(
            f"{name}: {sizes['batch']} x {sizes['anchors']} x {sizes['classes']}, "
            f"T {sizes['candidates']}, M {sizes['kept']}"
        )
        for work, time in found.get("times_us", {}).items():
            floor = found["floors_us"][work]
            lines.append(f"  {work:<7}{time:9.1f} us  floor {floor:7.1f} us  {time / floor:5.2f} x")
        if "faults" in found:
            verdict = "; ".join(found["faults"]) or "all as in float64, all repeats the same"
            lines.append(f"  {found['inputs']} inputs, {found['repeats']} repeats: {verdict}")
        for peer in ("compiled", "torchvision") if "peers" in found else ():
            time = found["peers"][f"{peer}_us"]
            ratio = (
                f"  {time / found['times_us']['both']:5.1f} x both" if "times_us" in found else ""
            )
            lines.append(f"  PyTorch, {peer:<12}{time:9.1f} us{ratio}")
    lines += [f"skipped {step}: {reason}" for step, reason in document["skipped"].items()]
    return lines


if __name__ == "__main__":
    sys.exit(run_script(main))
