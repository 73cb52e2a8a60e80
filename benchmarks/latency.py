"""Measure how long a frame takes, stage by stage: a table, latency.json and latency.html.

Examples:
  python benchmarks/latency.py runs/retinanet --source street.mp4
      p50, p90, p99 and the longest of each stage over 500 frames; the page is in out/latency.
  python benchmarks/latency.py runs/retinanet --source street.mp4 --backend onnxruntime --threads 1
      One backend with one thread.
  python benchmarks/latency.py runs/retinanet --source 0 --frames 1000 --out runs/retinanet/latency
      With this machine's camera.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.measure.closed_loop import Measurement, run_closed_loop
from benchmarks.measure.fingerprint import describe_bundle, describe_libraries, describe_machine
from benchmarks.measure.looping import open_looping
from benchmarks.measure.process import Usage, read_usage
from benchmarks.report.latency import format_latency_table, render_latency_page
from runtime.contract.errors import EXIT_DONE, SourceError, run_script
from runtime.contract.files import write_text
from runtime.contract.manual import ScriptParser
from runtime.pipeline.sinks.base import check_target, make_folder
from runtime.pipeline.sources import Source
from runtime.pipeline.stopping import StopSignal
from runtime.pipeline.timing import Spread

SCHEMA = 1
MOST_SAMPLES = 20_000  # frames whose times are written out; percentiles are always over all
NAMES = ("latency.json", "latency.html")


def main(argv: list[str] | None = None) -> int:
    """Measure and report. Exit status 0, or 2 where something was not usable."""
    args = _parse(argv)
    for name in NAMES:
        check_target(args.out / name, suffixes=())
    machine = describe_machine()  # before we make it busy
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_looping(args.source))
        idle = read_usage()
        predictor, cold_start = _start_cold(args, source)
        stack.enter_context(predictor)
        loaded = read_usage()
        bundle = describe_bundle(predictor, args.bundle)
        make_folder(args.out / NAMES[0])
        stop = stack.enter_context(StopSignal())
        measurement = run_closed_loop(
            source, predictor, num_frames=args.frames, num_warm_up=args.warm_up, stop=stop
        )
    if measurement.times.num_frames == 0:
        raise SourceError(
            f"source {args.source} gave no frame after {args.warm_up} of warm-up; "
            "nothing was measured. Take a longer source, or a smaller --warm-up."
        )
    settings = {
        "method": "closed loop: the next frame is read when the last is drawn; one thread "
        "of ours, nothing encoded",
        "source": args.source,
        "frame_wh": list(source.size_wh),
        "rounds": source.round_number,
        "warm_up_frames": args.warm_up,
        "measured_frames": measurement.times.num_frames,
        "draws": True,
    }
    document = {
        "schema": SCHEMA,
        "kind": "latency",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "notices": _notices(machine, args, measurement),
        "stages": _describe_stages(measurement),
        "frames": _describe_frames(measurement),
        "process": _describe_process(idle, loaded, measurement),
        "cold_start": cold_start,
        "settings": settings,
        "bundle": bundle,
        "machine": machine,
        "libraries": describe_libraries(),
    }
    _report(document, measurement, args.out)
    return EXIT_DONE


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("bundle", help="a bundle's folder, or one .onnx file")
    parser.add_argument(
        "--source",
        required=True,
        help="video file (played again as needed), camera, images, or street",
    )
    parser.add_argument("--backend", default="auto", help="default: the first that works")
    parser.add_argument("--precision", help="fp32, fp16, int8 or mixed, as the bundle has them")
    parser.add_argument(
        "--inference-precision",
        choices=("f32", "bf16", "auto"),
        help="of float layers in OpenVINO; auto: bf16 where the CPU has it; default: f32",
    )
    parser.add_argument("--frames", type=int, default=500, help="measured frames; default 500")
    parser.add_argument("--warm-up", type=int, default=30, help="frames before them; default 30")
    parser.add_argument(
        "--out", type=Path, default=Path("out/latency"), help="folder of the report"
    )
    parser.add_argument("--threads", type=int, help="of a CPU backend; default: its own choice")
    parser.add_argument(
        "--allow-unverified", action="store_true", help="run what failed its verification"
    )
    args = parser.parse_args(argv)
    if args.frames < 1 or args.warm_up < 0:
        parser.error("expected --frames of 1 or more and --warm-up of 0 or more")
    return args


def _start_cold(args: argparse.Namespace, source: Source) -> tuple[Any, dict[str, float]]:
    """Load the bundle and get one result, as a program that has just been started does."""
    from runtime.predictor import load

    asked = {"threads": args.threads, "inference_precision": args.inference_precision}
    options = {name: value for name, value in asked.items() if value is not None}
    begun = perf_counter()
    predictor = load(
        args.bundle,
        args.backend,
        args.precision,
        allow_unverified=args.allow_unverified,
        **options,
    )
    loaded = perf_counter()
    width, height = source.size_wh
    predictor(np.full((height, width, 3), 114, np.uint8))
    done = perf_counter()
    return predictor, {
        "load_ms": round((loaded - begun) * 1e3, 3),
        "first_result_ms": round((done - loaded) * 1e3, 3),
    }


def _notices(
    machine: dict[str, Any], args: argparse.Namespace, measurement: Measurement
) -> list[str]:
    notices = []
    if machine["is_shared"]:
        notices.append(
            f"Shared machine: a load of {machine['load_average'][0]} on {machine['cores']} cores "
            "before the measurement began. The times hold other programs' work, too."
        )
    if measurement.summary.was_stopped:
        notices.append(
            f"Stopped by a signal after {measurement.times.num_frames} of {args.frames} frames."
        )
    if not measurement.times.is_exact:
        notices.append("Percentiles are over a uniform sample of a million frames.")
    return notices


def _describe_stages(measurement: Measurement) -> dict[str, dict[str, float]]:
    """Each stage's spread, and that of all that is not the engine."""
    spreads = measurement.times.spreads()
    spreads.pop("sink", None)  # nothing is written in this measurement
    stages = {name: dataclasses.asdict(spread) for name, spread in spreads.items()}
    around = measurement.times.samples("total") - measurement.times.samples("engine")
    p50, p90, p99 = np.percentile(around, (50, 90, 99)).tolist()
    mean, slowest = float(around.mean()), float(around.max())
    stages["around"] = dataclasses.asdict(Spread(len(around), mean, p50, p90, p99, slowest))
    return {
        name: {key: value if key == "count" else round(value, 4) for key, value in spread.items()}
        for name, spread in stages.items()
    }


def _describe_frames(measurement: Measurement) -> dict[str, Any]:
    summary, count = measurement.summary, measurement.times.num_frames
    seconds = measurement.after.wall_s - measurement.before.wall_s
    return {
        "measured": count,
        "warm_up": measurement.num_warm_up,
        "decoded": summary.num_decoded,
        "dropped": summary.num_dropped,
        "corrupt": summary.num_corrupt,
        "fps": round(count / seconds, 3) if seconds > 0 else 0.0,
        "objects_a_frame": round(measurement.num_objects / count, 3),
    }


def _describe_process(idle: Usage, loaded: Usage, measurement: Measurement) -> dict[str, float]:
    before, after = measurement.before, measurement.after
    cpu_s, wall_s = after.cpu_s - before.cpu_s, after.wall_s - before.wall_s
    return {
        "rss_before_load_mib": round(idle.rss_mib, 1),
        "rss_loaded_mib": round(loaded.rss_mib, 1),
        "rss_warm_mib": round(before.rss_mib, 1),
        "rss_end_mib": round(after.rss_mib, 1),
        "rss_peak_mib": round(after.peak_mib, 1),
        "cpu_a_frame_ms": round(cpu_s * 1e3 / measurement.times.num_frames, 3),
        "busy_cores": round(cpu_s / wall_s, 3) if wall_s > 0 else 0.0,
        "times_preempted": after.num_preempted - before.num_preempted,
    }


def _report(document: dict[str, Any], measurement: Measurement, out: Path) -> None:
    times = measurement.times
    samples = {name: times.samples(name) for name in document["stages"] if name in times.stages}
    text = render_latency_page(document, samples)
    is_short = times.num_frames <= MOST_SAMPLES
    stored = {name: [round(float(ms), 4) for ms in each] for name, each in samples.items()}
    document = {**document, "samples_ms": stored if is_short else None}
    write_text(out / NAMES[0], json.dumps(document, ensure_ascii=False) + "\n")
    write_text(out / NAMES[1], text)
    cold, frames, process = document["cold_start"], document["frames"], document["process"]
    for notice in document["notices"]:
        print(notice)
    print(format_latency_table(document))
    print(
        f"milliseconds over {frames['measured']} frames after {frames['warm_up']} of warm-up; "
        f"{frames['fps']:.1f} fps, dropped {frames['dropped']}"
    )
    print(
        f"load {cold['load_ms']:.0f} ms, first result {cold['first_result_ms']:.0f} ms; "
        f"memory {process['rss_end_mib']:.0f} MiB (peak {process['rss_peak_mib']:.0f}); "
        f"cpu {process['cpu_a_frame_ms']:.2f} ms a frame"
    )
    print(f"-> {out / NAMES[0]} and {out / NAMES[1]}")


if __name__ == "__main__":
    sys.exit(run_script(main))
