"""Locks of folders that several processes may write to: an artefact, the folder of a training.

The lock is taken on the folder itself (flock), so no file is left behind and the kernel frees it when a process dies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from gft_edge.errors import ConfigError

try:
    import fcntl
except ImportError:  # no flock outside POSIX; a single writer is then up to the user
    fcntl = None  # type: ignore[assignment]

POLL_SECONDS = 0.05


@contextlib.contextmanager
def locked(folder: Path, wait: float = 60.0) -> Iterator[None]:
    """Holds the only lock of a folder.

    Args:
        folder: an existing folder.
        wait: seconds to wait for another process that holds it; 0 does not wait.

    Raises:
        ConfigError: another process holds it, and did so for all of ``wait``.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _acquire(handle, folder, time.monotonic() + wait)
        yield
    finally:
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
                    f"{folder}: another process is writing to it; wait until it has ended, or give another folder"
                ) from None
        time.sleep(POLL_SECONDS)
