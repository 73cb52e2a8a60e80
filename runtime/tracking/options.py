"""Tracking and counting as run_video.py can be asked for them."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from typing import Any

from runtime.tracking.counting import POINTS, Counting, CountingOptions
from runtime.tracking.counts import parse_lines, parse_zones
from runtime.tracking.tracked import TrackedPredictor


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """Add the options, and check lines and zones where they are read."""
    group = parser.add_argument_group("tracking and counting, of each source by itself")
    group.add_argument("--track", action="store_true", help="objects keep an id over the frames")
    group.add_argument(
        "--line",
        action="append",
        default=[],
        dest="lines",
        metavar="X1,Y1,X2,Y2[:NAME]",
        help="count tracks that cross it, either way; pixels of the source; may be given again",
    )
    group.add_argument(
        "--zone",
        action="append",
        default=[],
        dest="zones",
        metavar="X1,Y1,X2,Y2,...[:NAME]",
        help="count tracks in a polygon, and those that enter and leave it; may be given again",
    )
    group.add_argument(
        "--count-at",
        choices=tuple(POINTS),
        default="bottom_centre",
        help="the point of a box that counts; default: bottom_centre",
    )


def counting_of(args: argparse.Namespace) -> Counting | None:
    """What is to be counted of one source; None where nothing is.

    Raises:
        ValueError: a line or zone that cannot be read, or two of one name.
    """
    if not args.lines and not args.zones:
        return None
    options = CountingOptions(point=args.count_at)
    return Counting(parse_lines(args.lines), parse_zones(args.zones), options)


def tracked(
    first: Any, others: Mapping[str, Any], args: argparse.Namespace
) -> tuple[Any, dict[str, Any]]:
    """One source's predictors with trackers, or as they are where nothing is to be tracked.

    Every bundle has a tracker of its own, and no id is given twice; counted is the first's.
    """
    counting = counting_of(args)
    if counting is None and not args.track:
        return first, dict(others)
    ids = itertools.count(1)
    main = TrackedPredictor(first, counting=counting, ids=ids)
    more = {
        name: each if each.manifest.task == "pose_crop" else TrackedPredictor(each, ids=ids)
        for name, each in others.items()
    }
    return main, more
