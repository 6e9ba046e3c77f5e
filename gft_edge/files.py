"""Files written whole or not at all, hashes, and canonical JSON."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gft_edge.errors import ArtifactError, ConfigError

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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; takes the place of ``path`` when the block ends without an exception."""
    require_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files only the owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Writes canonical JSON, whole or not at all."""
    text = canonical_json(data)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_writable(path: Path) -> None:
    """Refuses an output file that is a folder, lies below a file, or in a folder that cannot be written to.

    Raises:
        ConfigError: naming what is in the way.
    """
    if path.is_dir():
        raise ConfigError(f"output {path}: is a folder; give the name of a file")
    _require_folder(path.parent, path)


def _require_folder(folder: Path, path: Path) -> None:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"output {path}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"output {path}: {existing} cannot be written to")


def require_free(folder: Path) -> None:
    """Refuses an output folder that holds something already.

    Raises:
        ConfigError: the path is a file or a folder that is not empty.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"output {folder}: not empty; give another --out or remove it first")
    _require_folder(folder, folder)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling folder; becomes ``folder`` when the block ends without an exception.

    Raises:
        ConfigError: ``folder`` is not empty.
    """
    require_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
