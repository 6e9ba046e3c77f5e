"""Files written whole or not at all, hashes, and canonical JSON."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gft_edge.errors import ArtifactError, ConfigError, GFTEdgeError, OutputError
from gft_edge.leftovers import make_temporary, remove_leftovers

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(data: Any) -> str:
    """Sorted keys, two-space indent, shortest exact floats, one final newline; NaN is refused.

    Lone surrogates, as in file names that are no UTF-8, become JSON escapes: UTF-8 cannot hold them, readers get them back.
    """
    text = json.dumps(data, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 1024


def decode_text(data: bytes, errors: str = "strict") -> str:
    """The text of a file by its byte order mark, which is left out; UTF-8 where it has none.

    Windows PowerShell 5.1 redirects output as UTF-16, and editors of Windows mark UTF-8. Text of Latin letters in UTF-16
    without a mark is recognised by every second byte being zero.

    Args:
        data: the whole file.
        errors: ``"strict"`` or ``"replace"``, as :meth:`bytes.decode` takes it.

    Raises:
        UnicodeDecodeError: the bytes are no such text and ``errors`` is ``"strict"``.
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
    """A JSON document from bytes of any encoding that :func:`decode_text` knows, or from text.

    Raises:
        ValueError: no JSON, no text, or nested more deeply than Python reads.
    """
    try:
        return json.loads(decode_text(data) if isinstance(data, bytes) else data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
    """A temporary sibling to write to; takes the place of ``path`` when the block ends without an exception.

    Raises:
        ConfigError: ``path`` is a folder, or lies where nothing can be written.
        OutputError: writing failed; what stood at ``path`` is untouched.
    """
    require_writable(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers_once(path.parent)
        temporary, lock = make_temporary(path, folder=False)
    try:
        with writing(path, temporary, whole=True):
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes files only the owner can read
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling folder; becomes ``folder`` when the block ends without an exception.

    Raises:
        ConfigError: ``folder`` is not empty, or was filled by another process meanwhile.
        OutputError: writing failed; nothing is left.
    """
    require_free(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers_once(folder.parent)
        temporary, lock = make_temporary(folder, folder=True)
    try:
        with writing(folder, temporary):
            yield temporary
        require_free(folder)  # another process may have been faster
        with writing(folder):
            temporary.chmod(0o777 & ~_umask())
            if folder.is_dir():
                folder.rmdir()
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


@contextlib.contextmanager
def writing(path: Path, temporary: Path | None = None, whole: bool = False) -> Iterator[None]:
    """Turns a failure of writing inside the block into an :class:`OutputError` that names ``path``.

    Libraries hide the system's answer behind errors of their own (safetensors, torch.save); it is then looked for in the chain
    of causes, and last by writing to the same place.

    Args:
        path: what the user asked for.
        temporary: what is written in its place. With one, a system error that names another file passes through, and one without
            a name that reading has too, unless ``whole`` says that the block does nothing but write.
        whole: every system error without another file's name is one of writing.

    Raises:
        OutputError: with the system's reason.
    """
    try:
        yield
    except OutputError as error:
        if temporary is not None and isinstance(error.path, Path) and temporary in error.path.parents:
            raise OutputError(path, error.reason) from error  # a file of the folder: its temporary name tells nobody
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
    """The reason in words if the error is one of writing, else None."""
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
    """The error and everything that led to it, nearest first."""
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
    """Once per process and folder: many files may be written to one."""
    folder = folder.absolute()
    if folder not in _cleaned:
        _cleaned.add(folder)
        remove_leftovers(folder)


def require_writable(path: Path) -> None:
    """Refuses an output file that is a folder, lies below a file, or in a folder that cannot be written to.

    Raises:
        ConfigError: naming what is in the way.
    """
    if path.is_dir():
        raise ConfigError(f"output {path}: is a folder; give the name of a file")
    _require_folder(path.parent, path)


def require_writable_folder(folder: Path) -> None:
    """Refuses an output folder that is a file, lies below one, or cannot be written to; it may hold files.

    Raises:
        ConfigError: naming what is in the way.
    """
    _require_folder(folder, folder)


def _require_folder(folder: Path, path: Path) -> None:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"output {path}: {existing} is a file, not a folder")
    try:  # what the permissions say is not enough: a medium may be read-only, and /proc takes no files from anyone
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # said by what is written; a small file may still fit
            raise ConfigError(f"output {path}: {existing} cannot be written to ({error.strerror})") from None


def require_free(folder: Path) -> None:
    """Refuses an output folder that holds something already, other than what a killed process left.

    Raises:
        ConfigError: the path is a file or a folder that is not empty.
    """
    if folder.is_dir():
        remove_leftovers(folder)
        if any(folder.iterdir()):
            raise ConfigError(f"output {folder}: not empty; give another --out or remove it first")
    elif folder.exists() or folder.is_symlink():
        raise ConfigError(f"output {folder}: is a file; give the name of a new folder")
    _require_folder(folder, folder)
