r"""Run a bundle on videos, cameras and streams; write annotated videos, results and counts.

What a source can be, and each output, is told in README.md: "Live video".

Examples:
  python runtime/run_video.py runs/retinanet --source street.mp4 --out annotated.mp4 \
      --json found.jsonl
      A file to an annotated video, and its results as JSON lines.
  python runtime/run_video.py runs/retinanet --source 0 --web 8080 --max-age-ms 200
      This machine's camera, with a page on http://127.0.0.1:8080; no frame waits over 200 ms.
  python runtime/run_video.py runs/retinanet --source rtsp://127.0.0.1:8554/live \
      --source street.mp4 --out "annotated_{source}.mp4"
      Two sources on one engine, a video for each.
  python runtime/run_video.py runs/retinanet --pose runs/hourglass --smooth --source street.mp4 \
      --out poses.mp4
      People with their joints.
  python runtime/run_video.py runs/retinanet --source street.mp4 --line 300,400,300,100:gate \
      --json -
      Counts who crosses a line; results go to standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from runtime.contract.errors import EXIT_BAD_INPUT, EXIT_DONE, SourceError, one_line, run_script
from runtime.pipeline.accounting import RunSummary
from runtime.pipeline.describing import describe_run, describe_sink, describe_source, sink_to_json
from runtime.pipeline.logs import start_logging
from runtime.pipeline.sinks.json_lines import STDOUT
from runtime.pipeline.sources import Source
from runtime.pipeline.stages import Pipeline
from runtime.pipeline.stopping import StopSignal
from runtime.threads_left import end_process
from runtime.tracking.counts import Counts
from runtime.video_options import check_targets, parse
from runtime.video_outputs import Outputs, open_outputs
from runtime.video_parts import Networks, open_networks, open_sources

if TYPE_CHECKING:
    from runtime.web.opening import WebPage
    from runtime.web.server import WebServer

_log = logging.getLogger("kestrel.run_video")


def main(argv: list[str] | None = None) -> int:
    """Run; print a summary at the end.

    Exit status 0, or 2 where something was not usable: at the start, or a source or an output that
    was lost on the way while the others went on, or an output took nothing of what it was given.
    """
    args = parse(argv, __doc__)
    start_logging(args.log)
    if args.log == "text":
        return _run(args)
    try:
        return _run(args)
    except (ValueError, OSError) as error:
        _log.error("%s", one_line(error), extra={"event": "error"})
        return EXIT_BAD_INPUT


def _run(args: argparse.Namespace) -> int:
    check_targets(args)
    with contextlib.ExitStack() as stack:
        sources = open_sources(args, stack)
        server = _take_port(args, stack)
        engines = stack.enter_context(contextlib.ExitStack())
        networks = open_networks(args, len(sources), engines)
        page = _open_web(args, server, sources, networks, engines, stack)
        stop = stack.enter_context(StopSignal())
        outputs = open_outputs(args, sources, networks.first.manifest.category_ids, stop)
        if page is not None:
            outputs.add(page.sink)
        pipeline = Pipeline(
            sources,
            networks.infers if page is None else page.switch.infers,
            outputs.sinks,
            score_threshold=args.score_threshold,
            iou_threshold=args.iou_threshold,
            max_frames=args.max_frames,
            max_age_ms=args.max_age_ms,
            batchers=networks.batchers if page is None else (page.switch,),
            is_sequential=args.sequential,
            caption=lambda lane: (f"{lane.rate.fps:.1f} fps",),
            stop=stop,
            is_wanted=lambda: outputs.is_wanted,
            times=None if page is None else page.times,
        )
        if page is not None:
            page.start(pipeline)
        failure: Exception | None = None
        try:
            summary = pipeline.run()
        except Exception as error:
            if pipeline.summary is None or not _is_worth_telling(pipeline.summary):
                raise
            failure, summary = error, pipeline.summary
        if page is not None:
            networks = page.networks
    if args.log == "json":
        _log_summary(summary, pipeline, networks, outputs)
    else:
        _print_summary(summary, pipeline, networks, outputs, args)
    if failure is not None:
        raise failure
    lost = [f"{each.name}: {each.error}" for each in summary.sources if each.error]
    if lost:
        raise SourceError(f"{len(lost)} of {len(summary.sources)} sources failed: {lost[0]}")
    if outputs.errors:
        raise outputs.errors[0]
    outputs.check_use(summary.num_frames)
    return EXIT_DONE


def _take_port(args: argparse.Namespace, stack: contextlib.ExitStack) -> WebServer | None:
    """The server of --web; a run without one does not load it."""
    if args.web is None:
        return None
    from runtime.web.opening import take_port

    return take_port(args, stack)


def _open_web(
    args: argparse.Namespace,
    server: WebServer | None,
    sources: Sequence[Source],
    networks: Networks,
    engines: contextlib.ExitStack,
    stack: contextlib.ExitStack,
) -> WebPage | None:
    """The page of --web."""
    if server is None:
        return None
    from runtime.web.opening import open_web

    return open_web(args, server, sources, networks, engines, stack)


def _is_worth_telling(summary: RunSummary) -> bool:
    """Of a run that ended with an error: whether every source was lost, and after frames."""
    return summary.num_decoded > 0 and all(each.error for each in summary.sources)


def _print_summary(
    summary: RunSummary,
    pipeline: Pipeline,
    networks: Networks,
    outputs: Outputs,
    args: argparse.Namespace,
) -> None:
    """A line for all, after one for each source where there are several."""
    place = _place_for_words(args)
    if place is None:  # closed, and `print` would take standard output for it
        return
    if len(summary.sources) > 1:
        for source in summary.sources:
            print(describe_source(source), file=place)
    line = describe_run(summary, pipeline.times, is_whole=args.max_frames is None)
    if not args.sequential:
        line += " (waits of the overlap included)"
    for stream in networks.streams:
        line += f"; {stream.keyframes}"
    for name, counts in _counts_of(summary, networks):
        prefix = f"{name}: " if len(summary.sources) > 1 else ""
        print(f"{prefix}{counts}", file=place)
    where = " and ".join(describe_sink(sink) for sink in outputs.asked)
    print(line, f"-> {where}" if where else "", file=place)


def _log_summary(
    summary: RunSummary, pipeline: Pipeline, networks: Networks, outputs: Outputs
) -> None:
    """The same for machines: an object for each source, and one for all."""
    for name, counts in _counts_of(summary, networks):
        figures = {"event": "counts", "source": name, **counts.to_json()}
        _log.info("%s: %s", name, counts, extra=figures)
    for source in summary.sources:
        _log.info(
            "%s",
            describe_source(source),
            extra={"event": "source_summary", **source.to_json()},
        )
    _log.info(
        "%s",
        describe_run(summary, pipeline.times, is_whole=False),
        extra={
            "event": "summary",
            **summary.to_json(),
            "sinks": [sink_to_json(sink) for sink in outputs.asked],
        },
    )


def _counts_of(summary: RunSummary, networks: Networks) -> list[tuple[str, Counts]]:
    """What was counted: each source's name and figures."""
    rows = zip(summary.sources, networks.tracked, strict=False)  # nothing may be tracked
    return [(source.name, each.counts) for source, each in rows if each.counts is not None]


def _place_for_words(args: argparse.Namespace) -> TextIO | None:
    """Standard output, unless results go there; None where it is closed."""
    return sys.stderr if args.json == STDOUT else sys.stdout


if __name__ == "__main__":
    sys.exit(end_process(run_script(main)))
