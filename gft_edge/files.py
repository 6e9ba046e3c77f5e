"""Atomic writing of files, hashes, and canonical JSON."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gft_edge.errors import ArtifactError, ConfigError, GFTEdgeError, OutputError
from gft_edge.storage.leftovers import remove_leftovers, temporary_beside

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def sha256(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(data: Any) -> str:
    """Returns JSON with sorted keys, two-space indent, shortest exact floats and one final newline; refuses NaN.

    Lone surrogates, as in file names that are no UTF-8, become JSON escapes: UTF-8 cannot encode them, readers restore them.
    """
    text = json.dumps(data, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 1024


def decode_text(data: bytes, errors: str = "strict") -> str:
    """Decodes a file by its byte order mark, which is removed; UTF-8 without one.

    Windows PowerShell 5.1 redirects output as UTF-16, and editors of Windows mark UTF-8. Text of Latin letters in UTF-16
    without a mark is recognised by every second byte being zero.

    Args:
        data: the whole file.
        errors: ``"strict"`` or ``"replace"``, as for :meth:`bytes.decode`.

    Raises:
        UnicodeDecodeError: the bytes are not decodable and ``errors`` is ``"strict"``.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors)
    return data.decode(_unmarked(data[:_SAMPLE]), errors)


def _unmarked(sample: bytes) -> str:
    pairs = len(sample) // 2
    if pairs >= 2:
        low, high = sample[0 : 2 * pairs : 2].count(0), sample[1 : 2 * pairs : 2].count(0)
        if high > 0.7 * pairs and low < 0.1 * pairs:
            return "utf-16-le"
        if low > 0.7 * pairs and high < 0.1 * pairs:
            return "utf-16-be"
    return "utf-8"


def parse_json(data: bytes | str) -> Any:
    """Parses JSON from text, or from bytes of an encoding that :func:`decode_text` knows.

    Raises:
        ValueError: no JSON, no text, nested too deeply, or a name stands twice in an object (readers would differ).
    """
    try:
        return json.loads(decode_text(data) if isinstance(data, bytes) else data, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ArtifactError: missing, unreadable, or not a JSON object.
    """
    try:
        data = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{what} {path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{what} {path}: cannot be read as JSON ({error})") from None
    if not isinstance(data, dict):
        raise ArtifactError(f"{what} {path}: expected a JSON object, found {type(data).__name__}")
    return data


def write_json(path: Path, data: Any) -> None:
    """Writes canonical JSON, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    text = canonical_json(data)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to write to; it replaces ``path`` when the block ends without an exception.

    Raises:
        ConfigError: ``path`` is a folder, or lies in a place that is not writable.
        OutputError: writing failed; the old content of ``path`` is unchanged.
    """
    require_writable(path)
    with contextlib.ExitStack() as stack:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers_once(path.parent)
            temporary = stack.enter_context(temporary_beside(path, folder=False))
        with writing(path, temporary, whole=True):
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # only its owner can read a temporary
            temporary.replace(path)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary sibling folder; it becomes ``folder`` when the block ends without an exception.

    Raises:
        ConfigError: ``folder`` is not empty, or another process has filled it in the meantime.
        OutputError: writing failed; no partial folder is left.
    """
    require_free(folder)
    with contextlib.ExitStack() as stack:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers_once(folder.parent)
            temporary = stack.enter_context(temporary_beside(folder, folder=True))
        with writing(folder, temporary):
            yield temporary
        require_free(folder)  # another process may have been faster
        with writing(folder):
            temporary.chmod(0o777 & ~_umask())
            if folder.is_dir():
                folder.rmdir()
            temporary.rename(folder)


@contextlib.contextmanager
def writing(path: Path, temporary: Path | None = None, whole: bool = False) -> Iterator[None]:
    """Converts a failure of writing inside the block to an :class:`OutputError` that names ``path``.

    Libraries (safetensors, torch.save) hide the system error behind errors of their own; this function searches the chain of
    causes, and then tries to write to the same place.

    Args:
        path: output that the user requested.
        temporary: file or folder that is written instead. With one, system errors that name another file pass through, and so do
            errors without a file name that reading can raise too, unless ``whole`` is set.
        whole: the block only writes: every system error without another file's name is a failure of writing.

    Raises:
        OutputError: with the message of the system.
    """
    try:
        yield
    except OutputError as error:
        if temporary is not None and isinstance(error.path, Path) and temporary in error.path.parents:
            # A file of the folder: its temporary name means nothing to users.
            raise OutputError(path, error.reason) from error
        raise
    except (GFTEdgeError, BrokenPipeError):
        raise
    except Exception as error:
        reason = _write_failure(error, temporary, whole)
        if reason is None:
            raise
        raise OutputError(path, reason) from error


_ONLY_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_PROBE_BYTES = 1 << 16


def _write_failure(error: Exception, temporary: Path | None, whole: bool) -> str | None:
    """Returns the reason if the error is a failure of writing, else None."""
    for cause in chain(error):
        if isinstance(cause, OSError) and cause.errno is not None and _is_of_writing(cause, temporary, whole):
            return os.strerror(cause.errno)
    if temporary is None:
        return None
    try:
        with tempfile.TemporaryFile(dir=temporary.parent, buffering=0) as file:
            file.write(bytes(_PROBE_BYTES))
            os.fsync(file.fileno())
    except OSError as failed:
        return failed.strerror
    return " ".join(str(error).split()) if type(error).__module__.startswith("safetensors") else None


def _is_of_writing(error: OSError, temporary: Path | None, whole: bool) -> bool:
    if temporary is None:
        return True
    if error.filename is None:
        return whole or error.errno in _ONLY_WRITING
    named = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return any(temporary in (name, *name.parents) for name in named)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and its causes, nearest first."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [cause for cause in (one.__cause__, one.__context__) if cause is not None]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_cleaned: set[Path] = set()


def _remove_leftovers_once(folder: Path) -> None:
    """Removes leftovers once per process and folder: many files may be written to one."""
    folder = folder.absolute()
    if folder not in _cleaned:
        _cleaned.add(folder)
        remove_leftovers(folder)


def require_writable(path: Path) -> None:
    """Refuses an output file that is a folder or a device, lies below a file, or in a folder that is not writable.

    A file is replaced by another one under its name: of /dev/null, that would take the device from every other program.

    Raises:
        ConfigError: with the path that is in the way.
    """
    if path.is_dir():
        raise ConfigError(f"output {path}: is a folder; give the name of a file")
    if (path.exists() and not path.is_file()) or path.absolute().parent == Path("/dev"):
        raise ConfigError(f"output {path}: is a device or a pipe, which cannot be replaced; give the name of a file")
    _require_folder(path.parent, path)


def require_writable_folder(folder: Path) -> None:
    """Refuses an output folder that is a file, lies below one, or is not writable; it may hold files.

    Raises:
        ConfigError: with the path that is in the way.
    """
    _require_folder(folder, folder)


def _require_folder(folder: Path, path: Path) -> None:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"output {path}: {existing} is a file, not a folder")
    try:  # permissions are not enough: a medium may be read-only, and /proc accepts no files
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        # A full disk is reported when the file is written; a small file may still fit.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError(f"output {path}: {existing} cannot be written to ({error.strerror})") from None


def require_free(folder: Path, stays: bool = False) -> None:
    """Refuses an output folder that is not empty, apart from leftovers of a killed process, or that cannot be replaced.

    Args:
        folder: new or empty.
        stays: files are written into the folder itself; else :func:`new_folder` puts another one in its place.

    Raises:
        ConfigError: the path is a file, a folder that is not empty, or, unless it stays, a mount point or the current folder.
    """
    if folder.is_dir():
        remove_leftovers(folder)
        if any(folder.iterdir()):
            raise ConfigError(f"output {folder}: not empty; give another --out or remove it first")
        if not stays and folder.name in ("", ".."):
            raise ConfigError(f"output {folder}: has no name of its own; give the name of a new folder")
        if not stays and os.path.ismount(folder):
            raise ConfigError(f"output {folder}: is a mount point, which cannot be replaced; give a new folder in it")
    elif folder.exists() or folder.is_symlink():
        raise ConfigError(f"output {folder}: is a file; give the name of a new folder")
    _require_folder(folder, folder)
