"""Writes a folder as a zip whose bytes depend on nothing but its files."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from gft_edge.files import replacing

DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that the format has."""
FILE_MODE = 0o100644
PROGRAM_MODE = 0o100755


def pack(folder: Path, out: Path) -> None:
    """Writes every file of a folder into a zip: sorted names, one date, two modes, stored without compression.

    Nothing is compressed because the bytes of a compressed file differ between versions of zlib, and weights hardly shrink.

    Args:
        folder: without links.
        out: file to write, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            path = folder / name
            entry = zipfile.ZipInfo(name, DATE)
            entry.file_size = (
                path.stat().st_size
            )  # a file of 2 GiB or more gets the long header, which is written first
            entry.create_system = 3  # Unix, on every system that writes it
            entry.external_attr = (PROGRAM_MODE if path.stat().st_mode & 0o100 else FILE_MODE) << 16
            with path.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
