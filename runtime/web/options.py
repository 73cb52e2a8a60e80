"""The web page as run_video.py can be asked for it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import secrets
from dataclasses import dataclass

from runtime.contract.errors import SinkError
from runtime.web.address import Place, parse_web_address, parse_web_name

TOKEN_VARIABLE = "KESTREL_WEB_TOKEN"
LEAST_TOKEN = 12  # characters: shorter ones can be tried out
_PACKAGES = ("starlette", "uvicorn")


@dataclass(frozen=True, slots=True)
class Access:
    """Where the page is served, and to whom.

    Attributes:
        token: asked for, or "" where whoever reaches the address may look.
        is_token_new: it was made for this run, so it has to be told.
    """

    place: Place
    token: str
    is_token_new: bool = False


def add_web(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("web page: live pictures, figures, thresholds, bundles")
    group.add_argument(
        "--web",
        metavar="[HOST:]PORT",
        help="serve it, for this machine alone unless HOST is given; 0.0.0.0 is all addresses",
    )
    group.add_argument(
        "--web-token",
        metavar="TOKEN",
        help=f"who looks must know it; default: {TOKEN_VARIABLE} of the environment, or a new one "
        "that is printed where other machines reach the page",
    )
    group.add_argument(
        "--web-name",
        action="append",
        default=[],
        dest="web_names",
        metavar="NAME",
        help="a host's name that the page is also asked by, such as a proxy's; may be given again",
    )
    group.add_argument(
        "--web-bundle",
        action="append",
        default=[],
        dest="web_bundles",
        metavar="BUNDLE",
        help="a bundle that the page may switch to; may be given again",
    )


def check_web(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is opened.

    Args:
        args: with the options of `add_web`, `coco`, and those of `add_tracking`.

    Raises:
        SinkError: no address; a token that is too short; options without --web, or that do not
            go together; a package is missing.
    """
    if args.web is None:
        for name in ("token", "name", "bundle"):
            if getattr(args, f"web_{name}s", None) or getattr(args, f"web_{name}", None):
                raise SinkError(f"--web-{name} is for the web page; expected --web PORT with it.")
        return
    access_of(args)
    is_tracking = args.track or args.lines or args.zones
    if is_tracking and args.web_bundles:
        raise SinkError(
            "--web-bundle would begin tracks and counts anew with each bundle. Leave it out, or "
            "--track, --line and --zone."
        )
    if args.coco is not None and args.web_bundles:
        raise SinkError(
            "--coco takes the classes of one bundle, and --web-bundle adds another. Use --json."
        )
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise SinkError(
            f"--web needs {' and '.join(absent)}. Install the extra: pip install "
            "'kestrel-vision[web]'"
        )


def access_of(args: argparse.Namespace) -> Access:
    """Where the page is to be served, and its token, made where one is a must and none is given.

    Raises:
        SinkError: no address, no host's name, or a token that is too short.
    """
    names = tuple(parse_web_name(name) for name in args.web_names)
    place = Place(*parse_web_address(args.web), names)
    given = args.web_token
    if given is None:
        given = os.environ.get(TOKEN_VARIABLE) or None
    if given is None:
        if place.is_local and not place.names:  # by a name a proxy lets others in
            return Access(place, "")
        return Access(place, secrets.token_urlsafe(24), is_token_new=True)
    if not re.fullmatch(rf"[\w.~+/=-]{{{LEAST_TOKEN},200}}", given, re.ASCII):
        raise SinkError(
            f"the web token has {len(given)} characters; expected {LEAST_TOKEN} to 200 letters, "
            "digits and signs of -._~+/="
        )
    return Access(place, given)
