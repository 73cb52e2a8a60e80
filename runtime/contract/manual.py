"""A script's `--help` in the form of a manual page: purpose, options, examples, exit status.

`training/manual.py` is the same file, since `training` and `runtime` import nothing of each other.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, NoReturn

EXAMPLES_HEADING = "Examples:"
STATUS_HEADING = "Exit status:"
_BAD_INPUT = 2
_COMMON_STATUSES = {
    0: "done",
    _BAD_INPUT: "bad input, told in one line on standard error",
    130: "stopped by Ctrl-C",
}
_UNSHOWN_DEFAULTS = (None, False, argparse.SUPPRESS)


class ScriptParser(argparse.ArgumentParser):
    """A parser whose help is the script's docstring around its options; its errors are one line.

    What the docstring says before its line "Examples:" stands above the options, the rest below
    them, the exit statuses last. Examples are commands that can be copied as they stand, each with
    an indented line that says what it does; a test runs them all.

    Options are taken by their full names alone: an abbreviation that works today would be
    ambiguous, or another option, tomorrow.

    Args:
        manual: the script's docstring.
        statuses: {exit status: when it is given}, added to 0, 2 and 130 or in their place.
        options: as of ArgumentParser.
    """

    def __init__(
        self,
        manual: str | None = None,
        *,
        statuses: Mapping[int, str] | None = None,
        **options: Any,
    ) -> None:
        if manual is not None:
            purpose, heading, examples = manual.partition(f"\n{EXAMPLES_HEADING}")
            below = f"{heading.strip()}{examples.rstrip()}\n\n" if heading else ""
            options["description"] = purpose.strip()
            options["epilog"] = below + _status_lines(_COMMON_STATUSES | dict(statuses or {}))
        options.setdefault("formatter_class", _ManualFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """End with one line; the usage of a script with forty options would hide it."""
        text = " ".join(message.split()).rstrip(".")
        self.exit(_BAD_INPUT, f"error: {text}. {self.prog} --help says what is expected.\n")


class _ManualFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the docstring, and adds defaults that a help text does not tell itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        is_told = "default" in text or not action.option_strings
        is_none = any(action.default is each for each in _UNSHOWN_DEFAULTS)  # 0 is one to show
        if is_told or is_none or action.default == []:
            return text
        return f"{text}; default: {_shown(action.default)}" if text else text


def _shown(value: Any) -> str:
    """A default as one would type it; percent signs doubled for argparse."""
    words = [str(each) for each in value] if isinstance(value, (list, tuple)) else [str(value)]
    return " ".join(words).replace("%", "%%")


def _status_lines(statuses: Mapping[int, str]) -> str:
    lines = [f"  {status:<4} {statuses[status]}" for status in sorted(statuses)]
    return "\n".join([STATUS_HEADING, *lines])
