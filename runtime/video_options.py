"""What run_video.py can be asked for, and the checks that need no bundle."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from runtime.contract.errors import SourceError
from runtime.contract.manual import ScriptParser
from runtime.keyframes import SCHEDULES
from runtime.pipeline.logs import KINDS
from runtime.pipeline.sinks import check_target
from runtime.pipeline.sinks.json_lines import STDOUT
from runtime.pipeline.sinks.opening import add_options, check_options
from runtime.pipeline.sinks.video_file import SUFFIXES
from runtime.pipeline.sources import scheme_of
from runtime.pipeline.sources.network import as_shown
from runtime.tracking.options import add_tracking, counting_of
from runtime.web.options import add_web, check_web

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
SOURCE_FIELD = "{source}"  # of --out: takes the source's name
_VARIABLE = "env:"  # of --source: the rest names the variable that holds it
_LONGEST_NAME = 80  # characters of a source in a file's name


def parse(argv: list[str] | None, manual: str | None = None) -> argparse.Namespace:
    """Read the command line; what is wrong with it ends the process with status 2.

    Args:
        argv: words behind the script's name; None: those of this process.
        manual: the script's docstring, for its help.
    """
    parser = ScriptParser(
        manual, statuses={2: "bad input, or a source or an output was lost: told in one line"}
    )
    parser.add_argument("bundle", help="a bundle's folder, or one .onnx file")
    _add_sources(parser)
    _add_outputs(parser)
    _add_networks(parser)
    add_tracking(parser)
    add_web(parser)
    parser.add_argument(
        "--sequential", action="store_true", help="one stage after the other, no overlap"
    )
    parser.add_argument(
        "--log", choices=KINDS, default="text", help="what is said on the way; default: text"
    )
    args = parser.parse_args(argv)
    for name in ("max_frames", "loops"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; expected 1 or more")
    if args.max_age_ms is not None and not args.max_age_ms > 0:
        parser.error(f"--max-age-ms is {args.max_age_ms}; expected more than 0")
    if args.json_append and args.json in (None, STDOUT):
        parser.error("--json-append is for a file of JSON lines; expected --json FILE beside it")
    try:
        args.sources = [_given_by_variable(uri) for uri in args.sources]
    except SourceError as error:
        parser.error(str(error))
    return args


def _given_by_variable(uri: str) -> str:
    """A source as given; of "env:NAME" what the environment variable NAME holds.

    A command line is shown to all users of a machine, an environment only to its own.

    Raises:
        SourceError: the variable is not there, or empty.
    """
    if not uri.startswith(_VARIABLE):
        return uri
    name = uri[len(_VARIABLE) :]
    held = os.environ.get(name)
    if not held:
        raise SourceError(
            f"source {uri} is the environment variable {name!r}, which is not set; expected one "
            "that holds a source"
        )
    return held


def _add_sources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sources")
    group.add_argument(
        "--source",
        required=True,
        action="append",
        dest="sources",
        metavar="SOURCE",
        help="video file, images, camera number, rtsp://, http://, csi://, gst: or raw: (README); "
        "env:NAME: what the variable NAME holds; several run on one engine",
    )
    group.add_argument(
        "--max-age-ms", type=float, help="a camera's frame that waited longer is not inferred"
    )
    group.add_argument(
        "--max-frames", type=int, help="stop after so many frames, of all sources together"
    )
    group.add_argument("--loops", type=int, default=1, help="play a file so often; default 1")
    group.add_argument(
        "--pace", action="store_true", help="play files at their own rate, not as fast as it goes"
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("outputs, any number of them")
    group.add_argument(
        "--out",
        type=Path,
        help=f"annotated video ({', '.join(SUFFIXES)}); of several sources, one each: "
        f"{SOURCE_FIELD} stands for the source's name",
    )
    group.add_argument("--json", help="results as JSON lines; '-' for standard output")
    group.add_argument(
        "--json-append", action="store_true", help="write behind what the file of --json holds"
    )
    add_options(parser)


def _add_networks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("networks")
    group.add_argument("--pose", help="bundle that finds the joints of the people that are found")
    group.add_argument("--also", action="append", help="one more bundle on the same frames")
    group.add_argument("--smooth", action="store_true", help="smooth joints from frame to frame")
    group.add_argument("--backend", default="auto", help="default: the first that works")
    group.add_argument("--precision", help="fp32, fp16, int8 or mixed, as the bundle has them")
    group.add_argument(
        "--inference-precision",
        choices=("f32", "bf16", "auto"),
        help="of float layers in OpenVINO; auto: bf16 where the CPU has it; default: f32",
    )
    group.add_argument("--score-threshold", type=float, help="default: the bundle's")
    group.add_argument("--iou-threshold", type=float, help="default: the bundle's")
    group.add_argument(
        "--allow-unverified", action="store_true", help="run what failed its verification"
    )
    group = parser.add_argument_group("key frames, of a bundle for video")
    group.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="key frames of a temporal model: when the picture has moved, at a fixed interval, or "
        "all; default: adaptive",
    )
    group.add_argument("--key-interval", type=int, help="frames from key to key frame; default 5")
    group.add_argument(
        "--max-key-age-ms", type=float, help="a key frame is renewed after this; default 1000"
    )


def check_targets(args: argparse.Namespace) -> None:
    """Refuse sources and outputs that cannot be, before anything is opened.

    Raises:
        SourceError: one source twice.
        SinkError: an output that cannot be written.
        ValueError: a line or zone that cannot be read; one bundle twice in --also.
    """
    counting_of(args)
    names_of(args.also or ())
    twice = {uri for uri in args.sources if args.sources.count(uri) > 1}
    if twice:
        raise SourceError(f"source {as_shown(min(twice))} is given twice; expected different ones.")
    bundle = Path(args.bundle)
    taken = [Path(each) for uri in args.sources for each in (uri, scheme_of(uri)[1])]
    taken.append(bundle)
    taken += bundle.iterdir() if bundle.is_dir() else ()
    if args.out is not None:
        for path in videos_of(args.out, args.sources):
            check_target(path, suffixes=SUFFIXES, taken=taken)
            taken.append(path)
    if args.json is not None and args.json != STDOUT:
        is_device = any(ask(Path(args.json)) for ask in (Path.is_char_device, Path.is_fifo))
        suffixes = () if is_device else JSON_SUFFIXES  # /dev/null has none
        check_target(Path(args.json), suffixes=suffixes, taken=taken)
        taken.append(Path(args.json))
    check_options(args, taken)
    check_web(args)


def videos_of(out: Path, uris: Sequence[str]) -> list[Path]:
    """The annotated video of each source.

    Args:
        out: as given; SOURCE_FIELD stands for the source's name in it.
        uris: of the sources.

    Raises:
        ValueError: several sources and one name.
    """
    if SOURCE_FIELD not in str(out):
        if len(uris) > 1:
            example = out.with_name(f"{out.stem}_{SOURCE_FIELD}{out.suffix}")
            raise ValueError(
                f"--out {out} is one video for {len(uris)} sources; expected {SOURCE_FIELD} in its "
                f"name, such as {example}"
            )
        return [out]
    names: list[str] = []
    for uri in uris:
        name = _name_of(uri)
        while name in names:
            name += "_"
        names.append(name)
    return [Path(str(out).replace(SOURCE_FIELD, name)) for name in names]


def names_of(bundles: Sequence[str]) -> list[str]:
    """What tells bundles apart in results: each one's last part, or as much as no other has.

    Args:
        bundles: folders or .onnx files, as given.

    Raises:
        ValueError: one is given twice.
    """
    parts = [Path(os.path.normpath(Path.cwd() / each)).parts for each in bundles]
    names = []
    for bundle, own in zip(bundles, parts, strict=True):
        if parts.count(own) > 1:
            raise ValueError(f"--also {bundle} is given twice; expected different bundles.")
        length = 1
        while sum(each[-length:] == own[-length:] for each in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names


def _name_of(uri: str) -> str:
    """A source as part of a file's name: a file's without folder and suffix, no credentials."""
    without_login = re.sub(r"//[^/@]*@", "//", uri.partition("?")[0])
    path = Path(without_login)
    plain = path.stem if path.exists() and not path.is_dir() else without_login
    return re.sub(r"[^\w.-]+", "_", plain).strip("_.")[-_LONGEST_NAME:] or "source"
