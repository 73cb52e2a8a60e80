"""Errors that a user of the training scripts can cause, and how a script ends on them."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2


class TrainingError(ValueError):
    """Something that the user can put right: what came, what was expected, what to do."""


class CheckpointError(TrainingError):
    """A checkpoint that is missing, damaged or of another model."""


def run_script(main: Callable[[], int]) -> int:
    """Run a script's main; a user's error becomes one line on stderr and exit status 2."""
    try:
        return main()
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {text}", file=sys.stderr)
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
