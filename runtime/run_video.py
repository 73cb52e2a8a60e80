"""Run a bundle on a video or a camera.

python runtime/run_video.py runs/retinanet --source street.mp4 --out annotated.mp4
python runtime/run_video.py runs/retinanet --source 0 --json detections.jsonl
python runtime/run_video.py runs/retinanet --pose runs/hourglass --smooth --source street.mp4
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from runtime.contract.errors import EXIT_DONE, SourceError, run_script
from runtime.keyframes import SCHEDULES
from runtime.pipeline.sinks import Sink, check_target
from runtime.pipeline.sinks.json_lines import STDOUT, JsonLinesSink
from runtime.pipeline.sinks.progress import ProgressSink
from runtime.pipeline.sinks.video_file import SUFFIXES, open_video_sink
from runtime.pipeline.sources import Source, open_source, scheme_of
from runtime.pipeline.sources.looping import LoopingSource
from runtime.pipeline.stages import Infers, Pipeline, RunSummary
from runtime.pipeline.stopping import StopSignal
from runtime.pipeline.timing import StageTimes

if TYPE_CHECKING:
    from runtime.predictor import Predictor

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


def main(argv: list[str] | None = None) -> int:
    """Run; print one line at the end. Exit status 0, or 2 where something was not usable."""
    args = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _check_targets(args)
    from runtime.predictor import load
    from runtime.tasks import load_task

    asked = args.inference_precision
    options = {} if asked is None else {"inference_precision": asked}
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_open_source(args.source, args.loops))
        predictor = stack.enter_context(
            load(
                args.bundle,
                args.backend,
                args.precision,
                allow_unverified=args.allow_unverified,
                schedule=args.schedule,
                key_interval=args.key_interval,
                max_key_age_ms=args.max_key_age_ms,
                **options,
            )
        )
        thresholds = args.score_threshold, args.iou_threshold
        load_task(predictor.manifest.task).thresholds(predictor.manifest, 1, *thresholds)
        predictor.warm_up()
        infers = _with_joints(predictor, args, options, stack)
        stop = stack.enter_context(StopSignal())
        pipeline = Pipeline(
            source,
            infers,
            _open_sinks(args, source),
            score_threshold=args.score_threshold,
            iou_threshold=args.iou_threshold,
            max_frames=args.max_frames,
            is_sequential=args.sequential,
            caption=lambda run: (f"{run.rate.fps:.1f} fps",),
            stop=stop,
        )
        summary = pipeline.run()
    where = " and ".join(sink.target for sink in pipeline.sinks if sink.target != "terminal")
    line = describe_run(summary, pipeline.times, is_whole=args.max_frames is None)
    if not args.sequential:
        line += " (waits of the overlap included)"
    if predictor.keyframes is not None:
        line += f"; {predictor.keyframes}"
    print(line, f"-> {where}" if where else "", file=_place_for_words(args))
    return EXIT_DONE


def _with_joints(
    predictor: Predictor,
    args: argparse.Namespace,
    options: dict[str, Any],
    stack: contextlib.ExitStack,
) -> Infers:
    """The predictor, with the joints of --pose, the smoothing of --smooth, the bundles of --also.

    Raises:
        ValueError: smoothing without joints.
    """
    infers: Infers = predictor
    if args.pose is not None:
        from runtime.topdown import TopDown

        infers = TopDown(predictor, _load_more(args.pose, args, options, stack))
    if args.smooth:
        from runtime.smoothing import SmoothedPredictor

        if args.pose is None and predictor.manifest.joints is None:
            raise ValueError(
                f"--smooth is for joints; {args.bundle} gives none. Leave it out, or add --pose."
            )
        infers = SmoothedPredictor(infers)
    if args.also:
        from runtime.several import Several

        infers = Several(
            infers, {Path(each).name: _load_more(each, args, options, stack) for each in args.also}
        )
    return infers


def _load_more(
    bundle: str, args: argparse.Namespace, options: dict[str, Any], stack: contextlib.ExitStack
) -> Predictor:
    """One more bundle, loaded and warmed up as the first."""
    from runtime.predictor import load

    allowed = {"allow_unverified": args.allow_unverified, **options}
    more = stack.enter_context(load(bundle, args.backend, args.precision, **allowed))
    more.warm_up()
    return more


def _open_source(uri: str, loops: int) -> Source:
    """The source, played `loops` times.

    Raises:
        SourceError: a camera cannot be played again.
    """
    if loops == 1:
        return open_source(uri)
    source = LoopingSource(lambda: open_source(uri), loops)
    if source.is_live:
        source.close()
        raise SourceError(
            f"source {uri} is a camera, which cannot be played {loops} times. Leave --loops out."
        )
    return source


def describe_run(summary: RunSummary, times: StageTimes, *, is_whole: bool) -> str:
    """The run in one line.

    Args:
        summary: of the pipeline.
        times: of every frame.
        is_whole: the source was to be read to its end, so missing frames are worth a word.
    """
    parts = [
        f"{summary.num_frames} frames in {summary.seconds:.1f} s ({summary.fps:.1f} fps)",
        f"decoded {summary.num_decoded}, dropped {summary.num_dropped}",
    ]
    if summary.num_corrupt:
        parts.append(f"corrupt {summary.num_corrupt}")
    missing = (summary.num_promised or 0) - summary.num_decoded - summary.num_corrupt
    if is_whole and not summary.was_stopped and missing > max(1, 0.01 * summary.num_decoded):
        parts.append(f"the header promised {summary.num_promised}: the file ends early")
    engine = times.spread("engine")
    if engine is not None:
        parts.append(f"engine p50 {engine.p50:.2f} ms, p99 {engine.p99:.2f} ms")
    if summary.was_stopped:
        parts.append("stopped by signal")
    return "; ".join(parts)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a bundle on a video or a camera.")
    parser.add_argument("bundle", help="a bundle's folder, or one .onnx file")
    parser.add_argument(
        "--source", required=True, help="video file, camera number, or folder or pattern of images"
    )
    parser.add_argument("--out", type=Path, help=f"annotated video ({', '.join(SUFFIXES)})")
    parser.add_argument("--pose", help="bundle that finds the joints of the people that are found")
    parser.add_argument("--also", action="append", help="one more bundle on the same frames")
    parser.add_argument("--smooth", action="store_true", help="smooth joints from frame to frame")
    parser.add_argument("--json", help="results as JSON lines; '-' for standard output")
    parser.add_argument("--backend", default="auto", help="default: the first that works")
    parser.add_argument("--precision", help="fp32, fp16, int8 or mixed, as the bundle has them")
    parser.add_argument(
        "--inference-precision",
        choices=("f32", "bf16", "auto"),
        help="of float layers in OpenVINO; auto: bf16 where the CPU has it; default: f32",
    )
    parser.add_argument("--score-threshold", type=float, help="default: the bundle's")
    parser.add_argument("--iou-threshold", type=float, help="default: the bundle's")
    parser.add_argument("--max-frames", type=int, help="stop after so many frames")
    parser.add_argument("--loops", type=int, default=1, help="play a file so often; default 1")
    parser.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="key frames of a temporal model: when the picture has moved, at a fixed interval, or "
        "all; default: adaptive",
    )
    parser.add_argument("--key-interval", type=int, help="frames from key to key frame; default 5")
    parser.add_argument(
        "--max-key-age-ms", type=float, help="a key frame is renewed after this; default 1000"
    )
    parser.add_argument(
        "--sequential", action="store_true", help="one stage after the other, no overlap"
    )
    parser.add_argument(
        "--allow-unverified", action="store_true", help="run what failed its verification"
    )
    args = parser.parse_args(argv)
    if args.max_frames is not None and args.max_frames < 1:
        parser.error(f"--max-frames is {args.max_frames}; expected 1 or more")
    if args.loops < 1:
        parser.error(f"--loops is {args.loops}; expected 1 or more")
    return args


def _check_targets(args: argparse.Namespace) -> None:
    """Refuse outputs that cannot be, before the bundle is loaded."""
    bundle = Path(args.bundle)
    taken = [Path(args.source), Path(scheme_of(args.source)[1]), bundle]
    taken += bundle.iterdir() if bundle.is_dir() else ()
    if args.out is not None:
        check_target(args.out, suffixes=SUFFIXES, taken=taken)
        taken.append(args.out)
    if args.json is not None and args.json != STDOUT:
        check_target(Path(args.json), suffixes=JSON_SUFFIXES, taken=taken)


def _open_sinks(args: argparse.Namespace, source: Source) -> list[Sink]:
    """Open all outputs; where one cannot be opened, those opened before it are removed."""
    sinks: list[Sink] = []
    was_there = args.out is not None and args.out.exists()
    try:
        if args.json is not None:
            sinks.append(JsonLinesSink(args.json))
        if args.out is not None:
            sinks.append(open_video_sink(args.out, size_wh=source.size_wh, fps=source.fps))
    except ValueError:
        for sink in sinks:
            sink.close()
            if args.json != STDOUT:
                Path(sink.target).unlink(missing_ok=True)
        if args.out is not None and not was_there:
            args.out.unlink(missing_ok=True)
        raise
    if sys.stderr.isatty():
        sinks.append(ProgressSink(sys.stderr, source.num_promised))
    return sinks


def _place_for_words(args: argparse.Namespace) -> TextIO:
    """Standard output, unless results go there."""
    return sys.stderr if args.json == STDOUT else sys.stdout


if __name__ == "__main__":
    sys.exit(run_script(main))
