"""Locks for folders that several processes may write to: an artefact, the folder of a training.

The lock is on the folder itself (flock): it leaves no file, and the kernel releases it when the process ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from gft_edge.errors import ConfigError

POLL_SECONDS = 0.05
_here = threading.local()


@contextlib.contextmanager
def locked(folder: Path, wait: float = 60.0) -> Iterator[None]:
    """Holds the exclusive lock of a folder; a thread that holds it may take it again.

    Args:
        folder: an existing folder.
        wait: seconds to wait for another process that holds it; 0 does not wait.

    Raises:
        ConfigError: another process holds it for all of ``wait``.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    status = os.fstat(handle)
    place = (status.st_dev, status.st_ino)
    mine: set[tuple[int, int]] = _here.__dict__.setdefault("mine", set())
    first = place not in mine
    try:
        if first:
            _acquire(handle, folder, time.monotonic() + wait)
            mine.add(place)
        yield
    finally:
        if first:
            mine.discard(place)
        os.close(handle)


def _acquire(handle: int, folder: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.ENOLCK, errno.EBADF, errno.EINVAL):  # a file system without locks
                return
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK):
                raise
            if time.monotonic() >= until:
                raise ConfigError(
                    f"{folder}: another process is writing to it; wait for its end, or give another folder"
                ) from None
        time.sleep(POLL_SECONDS)
