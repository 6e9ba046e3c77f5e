"""Temporary files and folders: created under a lock, and removed after their process was killed.

A temporary is named ``.NAME.xxxxxxxx.gft-tmp`` and locked (``flock``) while its process writes it. The kernel releases the lock
when the process ends for any reason, so a temporary without a lock is a leftover. On file systems without locks nothing is
removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

SUFFIX = ".gft-tmp"
_NAME = re.compile(r"\..+\.[a-z0-9_]{8}" + re.escape(SUFFIX), re.DOTALL)
_LONGEST_NAME = 200  # file systems take 255 bytes; prefix and suffix need some of them


def make_temporary(path: Path, folder: bool) -> tuple[Path, int]:
    """Makes and locks a temporary sibling of ``path``.

    Args:
        path: final path; its parent exists.
        folder: make a folder instead of a file.

    Returns:
        the temporary, and a descriptor that holds its lock until it is closed.

    Raises:
        OSError: the parent is not writable.
    """
    prefix = f".{_shortened(path.name)}."
    while True:
        if folder:
            temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=SUFFIX, dir=path.parent))
            lock = os.open(temporary, os.O_RDONLY)
        else:
            lock, name = tempfile.mkstemp(prefix=prefix, suffix=SUFFIX, dir=path.parent)
            temporary = Path(name)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks, where nothing is removed
            return temporary, lock
        # Before the lock, another process may have removed it as a leftover.
        if _is_same(temporary, lock):
            return temporary, lock
        os.close(lock)


def is_temporary(name: str) -> bool:
    """Returns whether a file name has the form that :func:`make_temporary` uses."""
    return _NAME.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> list[Path]:
    """Removes temporaries of processes that have ended; returns their paths.

    Args:
        folder: searched without its sub-folders; a missing or unreadable one has none.
    """
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if is_temporary(entry.name) and not entry.is_symlink()]
    except OSError:
        return []
    return [path for path in found if _remove_if_free(path)]


def _remove_if_free(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_same(path, lock):
            return False
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
        return not path.exists()
    except OSError:  # locked by its writer, or not removable
        return False
    finally:
        os.close(lock)


def _is_same(path: Path, descriptor: int) -> bool:
    """Returns whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except OSError:
        return False


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])
