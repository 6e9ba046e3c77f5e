"""Temporary files and folders: created under a lock, and removed after their process was killed.

A temporary is named ``.NAME.xxxxxxxx.gft-tmp`` and locked (``flock``) while its process writes it. The kernel releases the lock
when the process ends for any reason, so a temporary without a lock is a leftover. On file systems without locks nothing is
removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".gft-tmp"
_NAME = re.compile(r"\..+\.[a-z0-9_]{8}" + re.escape(SUFFIX), re.DOTALL)
_LONGEST_NAME = 200  # file systems take 255 bytes; prefix and suffix need some of them


@contextlib.contextmanager
def temporary_beside(path: Path, folder: bool) -> Iterator[Path]:
    """Yields a locked temporary sibling of ``path``; what the block leaves of it is removed.

    Its name is known before it exists, so that an interrupt at any moment leaves nothing.

    Args:
        path: final path; its parent exists.
        folder: make a folder instead of a file.

    Raises:
        OSError: the parent is not writable.
    """
    prefix = f".{_shortened(path.name)}."
    temporary, lock = path, None
    try:
        while lock is None:
            temporary = path.parent / f"{prefix}{secrets.token_hex(4)}{SUFFIX}"
            lock = _create(temporary, folder)
        yield temporary
    finally:
        if temporary != path:
            shutil.rmtree(temporary, ignore_errors=True) if folder else temporary.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


def _create(temporary: Path, folder: bool) -> int | None:
    """Creates and locks a file or folder; returns the descriptor that holds the lock, None where another process was faster."""
    try:
        if folder:
            temporary.mkdir(0o700)
        lock = os.open(temporary, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except (FileExistsError, FileNotFoundError):
        if temporary.parent.is_dir():  # the name was taken, or the folder removed as a leftover before its lock
            return None
        raise
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a file system without locks, where nothing is removed
        return lock
    if _is_same(temporary, lock):
        return lock
    os.close(lock)
    return None


def is_temporary(name: str) -> bool:
    """Returns whether a file name has the form that :func:`temporary_beside` uses."""
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
