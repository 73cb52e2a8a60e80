"""Errors that a user can cause, and the exit statuses of scripts.

Every message says what came, what was expected and what to do.
"""

from __future__ import annotations

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
    try:
        return main()
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except ImportError as error:
        name = (error.name or "").split(".")[0] or "a package"
        print(
            f"error: {name} is missing or broken ({error}). See README.md for the extras.",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130


def one_line(error: BaseException) -> str:
    """The error's text on one line; a bare OSError names its file."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    return " ".join(str(error).split()) or type(error).__name__
