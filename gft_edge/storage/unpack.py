"""Reads a zip from anywhere: refuses what could leave the folder, hide a file or fill the disk, before it writes anything.

Refused: absolute names, ``..``, backslashes and drive letters; links, devices and pipes; names that are equal, or that differ by
case or by the form of an accent only; a file that is also a folder; encrypted entries; compression other than deflate; entries
that overlap, give more or fewer bytes than they declare, or another checksum; more than ``MAX_ENTRIES`` entries or ``MAX_BYTES``
bytes; more than ``MAX_RATIO`` times the bytes of the zip.
"""

from __future__ import annotations

import copy
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from gft_edge.errors import ArtifactError, GFTEdgeError
from gft_edge.files import new_folder

MAX_ENTRIES = 10_000
MAX_BYTES = 16 << 30
"""For all entries together."""
MAX_RATIO = 100
"""Bytes written for each byte of the zip, above ``FREE_BYTES``; weights reach 2, text 20, a zip bomb 1,000 and more."""
FREE_BYTES = 64 << 20
MAX_DIRECTORY = 8 << 20
_CHUNK = 1 << 20
_END_RECORD = 22
_END_BYTES = _END_RECORD + 0xFFFF
"""The record that ends a zip, with the longest comment."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What zipfile raises for bytes that are no whole zip."""
_LOCAL_HEADER = 30
_ENCRYPTED = 0x1 | 0x40 | 0x2000


def names_in(path: Path) -> list[str]:
    """Returns the names in a zip, none for a damaged one."""
    try:
        _require_small_directory(path)
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (ArtifactError, *_DAMAGED):
        return []


def unpack(path: Path, out: Path) -> None:
    """Unpacks a zip into a new folder, whole or not at all; a file keeps its right to be run, no other right.

    Args:
        path: the zip.
        out: new or empty folder.

    Raises:
        ArtifactError: no zip, a damaged one, or one of the refused kinds; it names the entry.
        ConfigError: ``out`` is not empty.
        OutputError: a file cannot be written.
    """
    if not path.is_file():
        raise ArtifactError(f"zip {path}: no such file")
    _require_small_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _require_harmless(path, entries)
            with new_folder(out) as folder:
                for entry in entries:
                    if not entry.is_dir():
                        _extract(path, archive, entry, folder / entry.filename)
    except GFTEdgeError:  # some are ValueErrors too
        raise
    except _DAMAGED as error:
        raise ArtifactError(f"zip {path}: is damaged or cut off ({error}); copy it again") from None


def _require_small_directory(path: Path) -> None:
    """Refuses a zip whose directory would take much memory before its entries can be counted.

    Raises:
        ArtifactError: with the size that the last record of the zip declares.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END_BYTES))
        tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or len(tail) - place < _END_RECORD:
        raise ArtifactError(f"zip {path}: is no zip, damaged or cut off; copy it again")
    declared = int.from_bytes(tail[place + 12 : place + 16], "little")
    if declared > MAX_DIRECTORY:
        raise ArtifactError(f"zip {path}: its directory takes {declared} bytes, the limit is {MAX_DIRECTORY}")


def _require_harmless(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuses a zip by its directory alone.

    Raises:
        ArtifactError: naming the entry and the reason.
    """
    size = path.stat().st_size
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES:
        raise ArtifactError(f"zip {path}: has {len(entries)} entries, the limit is {MAX_ENTRIES}")
    if total > MAX_BYTES:
        raise ArtifactError(f"zip {path}: its files take {total} bytes, the limit is {MAX_BYTES}")
    if total > FREE_BYTES + MAX_RATIO * size:
        raise ArtifactError(
            f"zip {path}: its files take {total} bytes, {total // max(size, 1)} times the zip, the limit is {MAX_RATIO}"
        )
    for entry, problem in (*_each(entries), *_together(entries, size)):
        raise ArtifactError(f"zip {path}: entry {entry!r} {problem}; unpacked nothing")


def _each(entries: Sequence[zipfile.ZipInfo]) -> Iterator[tuple[str, str]]:
    """Yields entries that are refused for themselves, with the reason."""
    for entry in entries:
        name = entry.filename
        kind = stat.S_IFMT(entry.external_attr >> 16)
        parts = name.removesuffix("/").split("/")
        if name.startswith("/") or ":" in parts[0]:
            yield name, "has an absolute name"
        elif ".." in parts:
            yield name, "leads out of the folder"
        elif entry.orig_filename != name or "\\" in name or any(part in ("", ".") for part in parts):
            yield entry.orig_filename, "has a name that systems read differently"
        elif not name.isprintable():
            yield name, "has control characters in its name"
        elif kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
            yield name, "is a link, device or pipe, not a file"
        elif entry.flag_bits & _ENCRYPTED:
            yield name, "is encrypted"
        elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield name, f"is compressed by method {entry.compress_type}, only deflate is read"
        elif entry.is_dir() and entry.file_size:
            yield name, "is a folder with content"


def _together(entries: Sequence[zipfile.ZipInfo], size: int) -> Iterator[tuple[str, str]]:
    """Yields entries that are refused beside the others, with the reason."""
    seen: dict[str, tuple[str, bool]] = {}
    for entry in entries:
        name = PurePosixPath(entry.filename)
        for place, is_file in ((name, not entry.is_dir()), *((parent, False) for parent in name.parents[:-1])):
            key = unicodedata.normalize("NFC", str(place)).casefold()
            before = seen.get(key)
            if before is None:
                seen[key] = (str(place), is_file)
            elif before[0] != str(place):
                yield entry.filename, f"differs from {before[0]!r} by case or accents only"
            elif before[1] or is_file:
                yield entry.filename, f"makes {before[0]!r} a second time"
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            yield entry.filename, "overlaps another entry"
        end = entry.header_offset + _LOCAL_HEADER + entry.compress_size
        if end > size:
            yield entry.filename, "ends after the zip"


def _extract(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    """Writes one file.

    Raises:
        ArtifactError: it gives other than the declared number of bytes.
        BadZipFile: another checksum.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    one_more = copy.copy(entry)
    one_more.file_size += 1  # so that the reader does not stop at the declared size
    written = 0
    with archive.open(one_more) as source, target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > entry.file_size:
                raise ArtifactError(
                    f"zip {path}: entry {entry.filename!r} gives more than the {entry.file_size} bytes that it declares"
                )
            file.write(chunk)
    if written != entry.file_size:
        raise ArtifactError(
            f"zip {path}: entry {entry.filename!r} gives {written} bytes and declares {entry.file_size}; copy it again"
        )
    if (entry.external_attr >> 16) & stat.S_IXUSR:
        target.chmod(0o755)
