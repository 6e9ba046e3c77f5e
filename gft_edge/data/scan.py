"""Finds the image files below a folder in a fixed order; skips hidden and system folders, and links that form loops."""

from __future__ import annotations

import functools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gft_edge.errors import DataError

_PICTURES = (
    "jpg jpeg jpe jfif jif pjpeg png apng gif bmp dib tif tiff webp avif avifs heic heif hif jxl jp2 j2k j2c jpc jpf jpx "
    "ppm pgm pbm pnm pfm ico icns cur tga dds psd svg exr hdr pcx sgi rgb ras qoi xbm xpm"
)
_OF_CAMERAS = "raw cr2 cr3 crw nef nrw arw srf sr2 dng orf rw2 raf pef srw x3f"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in f"{_PICTURES} {_OF_CAMERAS}".split())
"""Suffixes, in lower case, of files that count as images, even if Pillow cannot read them."""

SYSTEM_FOLDERS = frozenset(
    {"__macosx", "__pycache__", "lost+found", "$recycle.bin", "system volume information"}
    | {"@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"}  # of network drives
)
"""Folders of tools and systems, in lower case."""
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
DEEPEST = 64


@dataclass
class Found:
    """The content of one folder.

    Attributes:
        path: of the folder.
        images: files directly in it with the suffix of an image, by name.
        others: suffixes of the other files directly in it, with their number.
        folders: sub-folders that hold images at some depth, by name.
        empty: names of sub-folders without images.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    folders: list[Found] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the folder in composed Unicode: some file systems store accents decomposed."""
        return unicodedata.normalize("NFC", self.path.name)

    def below(self) -> Iterator[Path]:
        """Yields every image, at any depth."""
        yield from self.images
        for folder in self.folders:
            yield from folder.below()

    def others_below(self) -> Counter[str]:
        """Counts the suffixes of the other files at any depth."""
        return sum((folder.others_below() for folder in self.folders), Counter(self.others))


@dataclass
class Scan:
    """A folder and everything below it.

    Attributes:
        top: the folder.
        hidden_folders: names of hidden and system folders, which are skipped.
        hidden_images: number of hidden files with the suffix of an image.
        repeated: links to folders that were read before.
    """

    top: Found
    hidden_folders: set[str] = field(default_factory=set)
    hidden_images: int = 0
    repeated: list[Path] = field(default_factory=list)


def looks_like_image(name: str) -> bool:
    """Returns whether a file of this name counts as an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_hidden_folder(name: str) -> bool:
    """Returns whether a folder of this name belongs to a tool or the system (``.git``, ``@eaDir``, ``__MACOSX``)."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def scan(root: Path) -> Scan:
    """Reads a folder and all folders below it, links followed, each folder once.

    Raises:
        DataError: a folder cannot be read, or folders nest deeper than :data:`DEEPEST`.
    """
    found = Scan(Found(root))
    _read(found.top, found, set(), 0)
    return found


def _read(folder: Found, whole: Scan, seen: set[tuple[int, int]], depth: int) -> None:
    if depth > DEEPEST:
        raise DataError(f"data {folder.path}: folders nest deeper than {DEEPEST}")
    try:
        status = os.stat(folder.path)
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder.path) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"data {folder.path}: folder cannot be read ({error.strerror})") from None
    for entry in listed:
        path = folder.path / entry.name
        if _is(entry, "folder"):
            if is_hidden_folder(entry.name):
                whole.hidden_folders.add(entry.name)
            elif _identity(path) in seen:
                whole.repeated.append(path)
            else:
                below = Found(path)
                _read(below, whole, seen, depth + 1)
                if below.images or below.folders:
                    folder.folders.append(below)
                else:
                    folder.empty.append(below.name)
        elif entry.name.startswith(".") or entry.name.lower() in SYSTEM_FILES:
            # macOS writes "._a.jpg" beside a.jpg on foreign disks; it is no image.
            whole.hidden_images += looks_like_image(entry.name) and not entry.name.startswith("._")
        elif looks_like_image(entry.name):
            # A broken link stays: it counts as an image that cannot be read.
            if _is(entry, "file") or entry.is_symlink():
                folder.images.append(path)
        elif _is(entry, "file"):
            folder.others[os.path.splitext(entry.name)[1].lower()] += 1


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    """Returns whether an entry, links followed, is a folder or a regular file; a link to itself is neither."""
    try:
        return entry.is_dir() if kind == "folder" else entry.is_file()
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_readable_format(path: Path) -> bool:
    """Returns whether the installed Pillow reads files of this suffix; True for all without Pillow."""
    suffixes = _readable_suffixes()
    return not suffixes or path.suffix.lower() in suffixes


@functools.cache
def _readable_suffixes() -> frozenset[str]:
    try:
        from PIL import Image
    except ImportError:
        return frozenset()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(known | {".jif", ".pjpeg"})  # further suffixes of JPEG; Pillow recognises the content
