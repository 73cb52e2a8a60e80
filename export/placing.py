"""Putting a bundle in its place: whole or not at all, one export at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.contract.bundle import MAKING_SUFFIX, MOVED_SUFFIX, find_left
from runtime.contract.errors import BundleError
from runtime.contract.files import unwritable
from runtime.contract.manifest import MANIFEST_NAME
from runtime.engines.locking import locked


def check_target(out: Path) -> None:
    """Raise BundleError where a bundle cannot take the place of what is there."""
    if os.path.ismount(out):
        raise BundleError(
            f"{out} is a mount point, which cannot be replaced; nothing was changed. "
            "Give a folder inside it as --out."
        )
    is_empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not is_empty and not _is_bundle(out):
        raise BundleError(
            f"{out} exists and is no bundle; nothing was changed. Choose another --out."
        )


def _is_bundle(out: Path) -> bool:
    """Whether the folder is one of ours, of any version; others have a manifest.json too."""
    try:
        document = json.loads((out / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and {"schema", "task", "graphs"} <= document.keys()


@contextlib.contextmanager
def replacing_folder(out: Path, report: Callable[[str], None]) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well.

    A second export to the same place waits for the first. What a killed one left is removed, and
    a bundle that it had moved away comes back. Where `out` is a link, its target is replaced.

    Args:
        out: absent, empty, or a bundle, see `check_target`.
        report: told where another export is waited for.

    Raises:
        SinkError: the disk is full, the folder is read-only, ...
    """
    out = Path(os.path.realpath(out))
    waiting = f"another export writes {out}; waiting for it"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.parent / f".{out.name}.lock", lambda: report(waiting)) as is_alone:
            if is_alone:
                _clear_left(out)
            folder = Path(
                tempfile.mkdtemp(prefix=f".{out.name}.", suffix=MAKING_SUFFIX, dir=out.parent)
            )
            try:
                yield folder
                _swap(folder, out)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise unwritable(out, error) from None


def _clear_left(out: Path) -> None:
    moved = find_left(out, MOVED_SUFFIX)
    if moved and not out.exists():
        moved.pop().rename(out)
    for left in (*moved, *find_left(out, MAKING_SUFFIX)):
        shutil.rmtree(left, ignore_errors=True)


def _swap(folder: Path, out: Path) -> None:
    """Two renames; a runtime that comes between them waits (`Bundle.open`)."""
    folder.chmod(0o755)
    old = folder.with_name(folder.name.removesuffix(MAKING_SUFFIX) + MOVED_SUFFIX)
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
