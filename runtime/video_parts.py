"""What run_video.py is made of, opened as the command line asks: sources and networks."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from runtime.contract.errors import SourceError
from runtime.pipeline.sources import Source, open_source
from runtime.pipeline.sources.looping import LoopingSource
from runtime.pipeline.sources.network import as_shown
from runtime.pipeline.sources.opening import open_together
from runtime.pipeline.sources.paced import PacedSource
from runtime.pipeline.sources.raw_frames import reads_standard_input
from runtime.pipeline.stages import Batches, Infers
from runtime.tracking.options import tracked
from runtime.tracking.tracked import TrackedPredictor
from runtime.video_options import names_of

if TYPE_CHECKING:
    from runtime.predictor import Predictor


# --- sources


def open_sources(args: argparse.Namespace, stack: contextlib.ExitStack) -> list[Source]:
    """Open every source; closed with the stack. Several are opened at once.

    Raises:
        SourceError: one cannot be opened or played again; an age for files.
    """
    openers = [partial(_open_source, uri, args.loops) for uri in args.sources]
    opened = open_together(openers) if len(openers) > 1 else [openers[0]()]
    sources = [stack.enter_context(source) for source in opened]
    if args.pace:
        sources = [each if each.is_live else PacedSource(each) for each in sources]
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
        SourceError: a camera, or standard input, cannot be played again.
    """
    if loops == 1:
        return open_source(uri)
    if reads_standard_input(uri):
        raise SourceError(
            f"source {uri} is standard input, which cannot be played {loops} times. Leave --loops "
            "out, or name the file."
        )
    source = LoopingSource(lambda: open_source(uri), loops)
    if source.is_live:
        source.close()
        raise SourceError(
            f"source {as_shown(uri)} is a camera, which cannot be played {loops} times. "
            "Leave --loops out."
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
    also_of = args.also or ()
    others = {
        name: _load(each, args, stack)
        for name, each in zip(names_of(also_of), also_of, strict=True)
    }
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
