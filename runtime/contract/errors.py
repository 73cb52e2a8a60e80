"""Errors that a user can cause, and the exit statuses of scripts.

Every message says what came, what was expected and what to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

EXIT_DONE = 0
EXIT_VERDICT_FAIL = 1
EXIT_BAD_INPUT = 2
EXIT_NO_ENGINE = 3


class KestrelError(ValueError):
    """Something that the user can put right."""


class BundleError(KestrelError):
    """A bundle that is missing, damaged or of another kind than asked for."""


class ManifestError(BundleError):
    """A manifest that this runtime cannot read."""


class SessionError(KestrelError):
    """A backend that is missing or refuses the graph."""


class EngineError(SessionError):
    """An engine that cannot be built, loaded or trusted."""


class SourceError(KestrelError):
    """A camera, video or image that cannot be read."""


class SinkError(KestrelError):
    """A result that cannot be written."""


def run_script(main: Callable[[], int]) -> int:
    """Run a script's main; turn a user's error into one line on stderr and exit status 2.

    A traceback is left to our own bugs. Ctrl-C ends with the shell's usual 130.
    """
    _fill_closed_descriptors()
    try:
        return main()
    except (ValueError, OSError) as error:
        _say(f"error: {one_line(error)}")
        return EXIT_BAD_INPUT
    except ImportError as error:
        name = (error.name or "").split(".")[0] or "a package"
        _say(f"error: {name} is missing or broken ({error}). See README.md for the extras.")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        _say("stopped by Ctrl-C")
        return 130


def _say(text: str) -> None:
    if sys.stderr is not None:  # None: it is closed, and `print` would take standard output
        print(text, file=sys.stderr)


def _fill_closed_descriptors() -> None:
    """Lead closed standard streams nowhere.

    Else the next file that is opened gets such a number, and what libraries say is written into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)


def one_line(error: BaseException) -> str:
    """The error's text on one line; a bare OSError names its file."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    return " ".join(str(error).split()) or type(error).__name__
