"""A lock between processes that the operating system lets go when its holder dies."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger("kestrel.runtime")

_POLL_S = 0.05


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock file `path`; wait for whoever holds it, also in this process.

    The file is removed afterwards. A killed holder blocks nobody. Where the file system has no
    locks (some network mounts) it runs without one, and gives False.

    Args:
        path: in a folder that exists and can be written.
        on_wait: called once, before the first wait.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor, is_held = _acquire(path, on_wait)
    try:
        yield is_held
    finally:
        with contextlib.suppress(OSError):  # Windows keeps open files; the next holder removes it
            path.unlink()
        os.close(descriptor)  # lets go of the lock


def _acquire(path: Path, on_wait: Callable[[], None] | None) -> tuple[int, bool]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while not _try_lock(descriptor):
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                time.sleep(_POLL_S)
        except OSError as error:
            log.warning("%s cannot be locked (%s); going on without a lock", path, str(error))
            return descriptor, False
        except BaseException:
            os.close(descriptor)
            raise
        if _is_same_file(descriptor, path):
            return descriptor, True
        os.close(descriptor)  # the holder before us removed the file that we had opened


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
