"""What run_video.py is made of, opened as the command line asks: sources, networks, outputs."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.contract.errors import SourceError
from runtime.pipeline.sinks import BufferedSink, Sink
from runtime.pipeline.sinks.by_source import BySource
from runtime.pipeline.sinks.coco import images_path
from runtime.pipeline.sinks.json_lines import STDOUT, JsonLinesSink
from runtime.pipeline.sinks.opening import open_shared, open_streams
from runtime.pipeline.sinks.progress import ProgressSink
from runtime.pipeline.sinks.video_file import open_video_sink
from runtime.pipeline.sources import Source, open_source
from runtime.pipeline.sources.looping import LoopingSource
from runtime.pipeline.stages import Batches, Infers
from runtime.pipeline.stopping import StopSignal
from runtime.tracking.options import tracked
from runtime.tracking.tracked import TrackedPredictor
from runtime.video_options import videos_of

if TYPE_CHECKING:
    from runtime.predictor import Predictor


# --- sources


def open_sources(args: argparse.Namespace, stack: contextlib.ExitStack) -> list[Source]:
    """Open every source; closed with the stack.

    Raises:
        SourceError: one cannot be opened or played again; an age for files.
    """
    sources = [stack.enter_context(_open_source(uri, args.loops)) for uri in args.sources]
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise SourceError(
                f"source {name} is given twice in different words; expected different ones."
            )
    if args.max_age_ms is not None and not any(source.is_live for source in sources):
        raise SourceError(
            f"--max-age-ms is for cameras and streams; {names[0]} is a file, which loses no frame. "
            "Leave it out."
        )
    return sources


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


# --- networks


@dataclass(frozen=True)
class Networks:
    """The bundles of a run, on all its sources.

    Attributes:
        first: the bundle that was named first.
        infers: for each source what its frames are given to.
        batchers: of the bundles that take frames of several sources at once.
        streams: of the first bundle, those that have key frames of their own.
        tracked: of the first bundle, each source's tracks and counts, where they are asked for.
    """

    first: Predictor
    infers: list[Infers] = field(default_factory=list)
    batchers: list[Batches] = field(default_factory=list)
    streams: list[Predictor] = field(default_factory=list)
    tracked: list[TrackedPredictor] = field(default_factory=list)


def open_networks(
    args: argparse.Namespace, num_sources: int, stack: contextlib.ExitStack
) -> Networks:
    """Load and warm up the bundles; closed with the stack.

    Engines are shared by all sources; state, key frames, and what is remembered from frame to
    frame are each source's own.

    Raises:
        BundleError, SessionError: as `runtime.load`.
        ValueError: a wrong threshold; smoothing without joints.
    """
    first = _load(args.bundle, args, stack, is_first=True)
    networks = Networks(first)
    pose = None if args.pose is None else _load(args.pose, args, stack)
    others = {Path(each).name: _load(each, args, stack) for each in args.also or ()}
    firsts = _streams_of(first, num_sources, networks, stack)
    rest = {name: _streams_of(each, num_sources, networks, stack) for name, each in others.items()}
    for place in range(num_sources):
        also = {name: streams[place] for name, streams in rest.items()}
        stream, also = tracked(firsts[place], also, args)
        if isinstance(stream, TrackedPredictor):
            networks.tracked.append(stream)
        networks.infers.append(_for_one_source(stream, pose, also, args))
    return networks


def _for_one_source(
    first: Any, pose: Predictor | None, also: dict[str, Any], args: argparse.Namespace
) -> Infers:
    """The first bundle's stream, with the joints of --pose, smoothing, and bundles of --also.

    What is made here remembers frames of this source alone.
    """
    infers: Infers = first
    if pose is not None:
        from runtime.topdown import TopDown

        infers = TopDown(first, pose)
    if args.smooth:
        from runtime.smoothing import SmoothedPredictor

        if pose is None and first.manifest.joints is None:
            raise ValueError(
                f"--smooth is for joints; {args.bundle} gives none. Leave it out, or add --pose."
            )
        infers = SmoothedPredictor(infers)
    if also:
        from runtime.several import Several

        infers = Several(infers, also)
    return infers


def _load(
    bundle: str, args: argparse.Namespace, stack: contextlib.ExitStack, *, is_first: bool = False
) -> Predictor:
    """One bundle, loaded and warmed up; key frames and thresholds are the first one's."""
    from runtime.predictor import load
    from runtime.tasks import load_task

    options: dict[str, Any] = {}
    if args.inference_precision is not None:
        options["inference_precision"] = args.inference_precision
    if is_first:
        for name in ("schedule", "key_interval", "max_key_age_ms"):
            options[name] = getattr(args, name)
    predictor = stack.enter_context(
        load(
            bundle,
            args.backend,
            args.precision,
            allow_unverified=args.allow_unverified,
            **options,
        )
    )
    if is_first:  # wrong ones are to be told before the warm-up
        thresholds = args.score_threshold, args.iou_threshold
        load_task(predictor.manifest.task).thresholds(predictor.manifest, 1, *thresholds)
    predictor.warm_up()
    return predictor


def _streams_of(
    predictor: Predictor, num_sources: int, networks: Networks, stack: contextlib.ExitStack
) -> list[Any]:
    """What each source asks of one bundle: members of a batch, or streams with state."""
    if num_sources == 1:
        streams: list[Any] = [predictor]
    elif predictor.manifest.state:
        more = (predictor.open_stream() for _ in range(num_sources - 1))
        streams = [predictor, *(stack.enter_context(each) for each in more)]
        for each in streams[1:]:
            each.warm_up()
    else:
        from runtime.batching import MicroBatcher

        batcher = MicroBatcher(predictor)
        networks.batchers.append(batcher)
        streams = [batcher.open_stream() for _ in range(num_sources)]
    if predictor is networks.first and predictor.keyframes is not None:
        networks.streams.extend(streams)
    return streams


# --- outputs


@dataclass
class Outputs:
    """The sinks of a run.

    Attributes:
        sinks: for the pipeline.
        asked: those that the user asked for, each by itself.
    """

    sinks: list[Sink] = field(default_factory=list)
    asked: list[Sink] = field(default_factory=list)

    @property
    def errors(self) -> list[Exception]:
        """What ended sinks."""
        found = (getattr(sink, "error", None) for sink in self.asked)
        return [error for error in found if error is not None]

    @property
    def is_wanted(self) -> bool:
        """Whether a result still gets somewhere; True where nothing was asked for."""
        return not self.asked or len(self.errors) < len(self.asked)


def open_outputs(
    args: argparse.Namespace,
    sources: Sequence[Source],
    category_ids: Sequence[int],
    stop: StopSignal,
) -> Outputs:
    """Open all outputs; where one cannot be opened, those opened before it are removed.

    Each has a thread and a queue of its own, unless the run is sequential.
    """
    outputs = Outputs()
    videos = [] if args.out is None else videos_of(args.out, args.sources)
    files = [*videos, *([] if args.json in (None, STDOUT) else [Path(args.json)])]
    files += [] if args.coco is None else [args.coco, images_path(args.coco)]
    new = [path for path in files if not path.exists()]
    is_live = any(source.is_live for source in sources)
    try:
        if args.json is not None:
            _add(outputs, JsonLinesSink(args.json), args, is_live=is_live)
        for sink in open_shared(args, category_ids, stop.set):
            _add(outputs, sink, args, is_live=is_live)
        files_by_source = {
            source.name: open_video_sink(
                path, size_wh=source.size_wh, fps=source.fps, is_live=source.is_live
            )
            for source, path in zip(sources, videos, strict=bool(videos))
        }
        for by_source in (files_by_source, open_streams(args, sources)):
            if by_source:
                _add_by_source(outputs, by_source, args, sources)
    except ValueError:
        for sink in outputs.asked:
            sink.close()
        for path in new:
            path.unlink(missing_ok=True)
        raise
    if sys.stderr.isatty() and args.log == "text":
        promised = [source.num_promised for source in sources]
        total = None if None in promised else sum(each or 0 for each in promised)
        outputs.sinks.append(_buffered(ProgressSink(sys.stderr, total), args, is_live=True))
    return outputs


def _add(outputs: Outputs, sink: Sink, args: argparse.Namespace, *, is_live: bool) -> None:
    buffered = _buffered(sink, args, is_live=is_live)
    outputs.sinks.append(buffered)
    outputs.asked.append(buffered)


def _add_by_source(
    outputs: Outputs,
    by_source: dict[str, Sink],
    args: argparse.Namespace,
    sources: Sequence[Source],
) -> None:
    """A sink for each source, each with a thread of its own."""
    buffered = {
        source.name: _buffered(by_source[source.name], args, is_live=source.is_live)
        for source in sources
    }
    outputs.sinks.append(BySource(buffered))
    outputs.asked.extend(buffered.values())


def _buffered(sink: Sink, args: argparse.Namespace, *, is_live: bool) -> Sink:
    """A live source is not held up: what a sink cannot take in time is dropped and counted."""
    keeps_all = sink.is_waited_for and not is_live
    return sink if args.sequential else BufferedSink(sink, keeps_all=keeps_all)
