"""Files written whole or not at all, hashes, and canonical JSON."""

from __future__ import annotations

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


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ArtifactError: missing, unreadable, or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{what} {path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
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
