"""The outputs of run_video.py, opened as the command line asks; a failed start writes nothing."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from runtime.contract.errors import SinkError, one_line
from runtime.pipeline.sinks import Sink
from runtime.pipeline.sinks.base import make_folder
from runtime.pipeline.sinks.buffered import LONGEST_WRITE_S, BufferedSink
from runtime.pipeline.sinks.by_source import BySource
from runtime.pipeline.sinks.json_lines import STDOUT, JsonLinesSink
from runtime.pipeline.sinks.opening import open_shared, open_streams
from runtime.pipeline.sinks.progress import ProgressSink
from runtime.pipeline.sinks.video_file import open_video_sink
from runtime.pipeline.sources import Source
from runtime.pipeline.stopping import StopSignal
from runtime.video_options import videos_of


@dataclass
class Outputs:
    """The sinks of a run.

    Attributes:
        sinks: for the pipeline.
        asked: those that the user asked for, each by itself.
    """

    sinks: list[Sink] = field(default_factory=list)
    asked: list[Sink] = field(default_factory=list)

    def add(self, sink: Sink) -> None:
        """Add one that the user asked for, as it is: it must hold up nobody."""
        self.sinks.append(sink)
        self.asked.append(sink)

    @property
    def errors(self) -> list[Exception]:
        """What ended sinks."""
        found = (getattr(sink, "error", None) for sink in self.asked)
        return [error for error in found if error is not None]

    def check_use(self, num_frames: int) -> None:
        """Look back on a run whose sinks are closed.

        Args:
            num_frames: whose results were given to the sinks.

        Raises:
            SinkError: one went on to the end, and nothing that it was given got to its place.
        """
        for sink in self.asked:
            if isinstance(sink, BufferedSink):
                num_lost = sink.num_dropped + sink.num_failed
                is_useless = num_lost > 0 and sink.num_written == 0
            else:
                num_lost = sink.num_lost
                is_useless = num_lost >= num_frames > 0
            if is_useless:
                raise SinkError(
                    f"output {sink.target} took none of {num_lost} results. Is its server there, "
                    "and does it take them?"
                )

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
    """Open all outputs; where one cannot be opened, nothing is written.

    Each has a thread and a queue of its own, unless the run is sequential. Files that lose what
    they held when they are opened come last.

    Raises:
        SinkError: one cannot be opened. Those opened before it are closed, files that were not
            there are removed.
    """
    videos = [] if args.out is None else videos_of(args.out, args.sources)
    files = [*videos, *([] if args.json in (None, STDOUT) else [Path(args.json)])]
    with contextlib.ExitStack() as undo:
        for path in files:
            if not path.exists():
                undo.callback(_remove, path.resolve())  # not a link, which was there
        streams = open_streams(args, sources)
        for sink in streams.values():
            undo.callback(_abandon, sink)
        shared = []
        for sink in open_shared(args, category_ids, stop.set):
            undo.callback(_abandon, sink)
            shared.append(sink)
        for path in files:
            _check_opens(path)
        films = _open_films(sources, videos, undo)
        lines = (
            [] if args.json is None else [JsonLinesSink(args.json, is_appending=args.json_append)]
        )
        undo.pop_all()
    outputs = Outputs()
    buffering = _Buffering(args, sources, stop)
    for sink in (*lines, *shared):
        outputs.add(buffering.of(sink))
    for by_source in (films, streams):
        if by_source:
            _add_by_source(outputs, by_source, buffering)
    if _is_terminal(sys.stderr) and args.log == "text":
        promised = [source.num_promised for source in sources]
        total = None if None in promised else sum(each or 0 for each in promised)
        outputs.sinks.append(buffering.of(ProgressSink(sys.stderr, total)))
    return outputs


def _open_films(
    sources: Sequence[Source], videos: Sequence[Path], undo: contextlib.ExitStack
) -> dict[str, Sink]:
    """The annotated video of each source, by its name; none where none is asked for."""
    films: dict[str, Sink] = {}
    for source, path in zip(sources, videos, strict=bool(videos)):
        size_wh, fps = source.size_wh, source.fps
        sink = open_video_sink(path, size_wh=size_wh, fps=fps, is_live=source.is_live)
        undo.callback(_abandon, sink)
        films[source.name] = sink
    return films


def _is_terminal(stream: TextIO | None) -> bool:
    """False of a stream that is closed, too."""
    return stream is not None and stream.isatty()


def _abandon(sink: Sink) -> None:
    """Close it; what it meets is nothing beside what ended the start."""
    with contextlib.suppress(Exception):
        sink.abandon()


def _check_opens(path: Path) -> None:
    """Open a file, made where it is not there, and leave what it holds.

    Raises:
        SinkError: it cannot be opened.
    """
    make_folder(path)
    if path.exists() and not path.is_file():  # a device or pipe, which would notice
        return
    try:
        path.open("ab").close()
    except OSError as error:
        raise SinkError(
            f"output {path} cannot be opened: {one_line(error)}. Choose another place."
        ) from None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


@dataclass(frozen=True)
class _Buffering:
    """Puts sinks behind queues, unless the run is sequential.

    A live source is not held up: what a sink cannot take in time is dropped and counted. A file's
    results are waited for, without a limit where no live source shares the engine.
    """

    args: argparse.Namespace
    sources: Sequence[Source]
    stop: StopSignal

    def of(self, sink: Sink, source: Source | None = None) -> Sink:
        """A sink of one source, or of all."""
        if self.args.sequential:
            return sink
        is_any_live = any(each.is_live for each in self.sources)
        is_live = is_any_live if source is None else source.is_live
        return BufferedSink(
            sink,
            keeps_all=sink.is_waited_for and not is_live,
            longest_write_s=LONGEST_WRITE_S if is_any_live else None,
            stop=self.stop,
        )


def _add_by_source(outputs: Outputs, by_source: dict[str, Sink], buffering: _Buffering) -> None:
    """A sink for each source, each with a thread of its own."""
    buffered = {
        source.name: buffering.of(by_source[source.name], source) for source in buffering.sources
    }
    outputs.sinks.append(BySource(buffered))
    outputs.asked.extend(buffered.values())
