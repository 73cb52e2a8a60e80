"""Writing files so that a reader finds the old one, the new one, and never half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.contract.errors import SinkError

_CURES = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "the quota is used up; write elsewhere",
    errno.EROFS: "the file system is read-only; write elsewhere",
    errno.EACCES: "write permission is lacking; write elsewhere",
    errno.EISDIR: "a folder of this name is in the way",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; put it in `path`'s place when the block ends well.

    The temporary path keeps the suffix, so writers that go by it work. Missing folders are made.
    Whatever goes wrong, `path` keeps what it held and the temporary file is removed.

    Raises:
        SinkError: the disk is full, the folder is read-only, ...
    """
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.stem[:80]}.{token}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())  # a power cut must not leave the name without the bytes
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, or leave what was there; SinkError where that fails."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, document: Any, *, indent: int | None = 2) -> None:
    """As `write_bytes`; NaN and infinity, which JSON has not, are a ValueError."""
    write_text(
        path, json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    )


def unwritable(path: Path, error: OSError) -> SinkError:
    """The SinkError that says why `path` cannot be written and what to do."""
    cure = _CURES.get(error.errno or 0, "check the path")
    return SinkError(f"cannot write {path}: {error.strerror or error}; {cure}")
