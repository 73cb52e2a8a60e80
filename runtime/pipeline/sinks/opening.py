"""Outputs beside video and JSON lines, as a command line asks for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from runtime.contract.errors import SinkError
from runtime.pipeline.sinks.base import SOURCE_FIELD, Sink, as_word, check_target
from runtime.pipeline.sinks.coco import CocoSink, images_path
from runtime.pipeline.sinks.mjpeg import MjpegSink, parse_address
from runtime.pipeline.sinks.mqtt import MqttSink
from runtime.pipeline.sinks.outage import hide_login
from runtime.pipeline.sinks.rtsp_push import RtspPushSink
from runtime.pipeline.sinks.webhook import WebhookSink
from runtime.pipeline.sinks.window import WindowSink, why_no_window
from runtime.pipeline.sources.base import Source


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that this module opens."""
    group = parser.add_argument_group("more outputs")
    group.add_argument("--coco", type=Path, help="results as one COCO file, written at the end")
    group.add_argument("--webhook", metavar="URL", help="POST results as JSON, several at once")
    group.add_argument(
        "--mqtt", metavar="URL", help="publish results: mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC"
    )
    group.add_argument(
        "--mjpeg",
        metavar="[HOST:]PORT",
        help="annotated frames for browsers; for this machine alone unless HOST is 0.0.0.0",
    )
    group.add_argument(
        "--rtsp-out", metavar="URL", help="annotated video to an RTSP server that takes streams"
    )
    group.add_argument("--window", action="store_true", help="annotated frames in a window")


def check_options(args: argparse.Namespace, taken: Sequence[Path]) -> None:
    """Refuse what cannot be, before anything is opened.

    Args:
        args: with the options of `add_options`, `also` and `sources`.
        taken: files that are read or written already.

    Raises:
        SinkError: such an output.
    """
    if args.coco is not None:
        if args.also:
            raise SinkError(
                "--coco takes the results of one bundle, and --also adds another. Use --json."
            )
        for path in (args.coco, images_path(args.coco)):
            check_target(path, suffixes=(".json",), taken=taken)
    if args.mjpeg is not None:
        parse_address(args.mjpeg)
    if args.rtsp_out is not None and len(args.sources) > 1 and SOURCE_FIELD not in args.rtsp_out:
        raise SinkError(
            f"--rtsp-out {hide_login(args.rtsp_out)} is one stream for {len(args.sources)} "
            f"sources; expected {SOURCE_FIELD} in it, such as rtsp://HOST:8554/{SOURCE_FIELD}"
        )
    if args.window and (problem := why_no_window()):
        raise SinkError(problem)


def open_shared(
    args: argparse.Namespace, category_ids: Sequence[int], on_quit: Callable[[], None]
) -> Iterator[Sink]:
    """Sinks that take the results of all sources, each opened when it is asked for.

    Those that most often cannot be opened, on a network or a screen, come first.

    Args:
        args: with the options of `add_options`.
        category_ids: of the bundle's classes.
        on_quit: called when the window is closed.

    Raises:
        SinkError: one cannot be opened.
    """
    if args.webhook is not None:
        yield WebhookSink(args.webhook)
    if args.mqtt is not None:
        yield MqttSink(args.mqtt)
    if args.mjpeg is not None:
        yield MjpegSink(args.mjpeg)
    if args.window:
        yield WindowSink(on_quit)
    if args.coco is not None:
        yield CocoSink(args.coco, category_ids)


def open_streams(args: argparse.Namespace, sources: Sequence[Source]) -> dict[str, Sink]:
    """Sinks that take one source each: its name -> its sink.

    Raises:
        SinkError: one cannot be opened.
    """
    if args.rtsp_out is None:
        return {}
    return {
        source.name: RtspPushSink(
            args.rtsp_out.replace(SOURCE_FIELD, as_word(source.name)), fps=source.fps
        )
        for source in sources
    }
