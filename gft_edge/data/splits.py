"""Splits images into train, val and test by a hash of their files: the same parts in every verb and on every machine."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

PIECE, PIECES = 1 << 14, 4


def content_key(path: Path) -> bytes:
    """Returns a sha256 (32 bytes) that is equal for files of equal content, independent of their names and places.

    It covers the size and at most 64 KiB of a file: all of a small file, else four pieces evenly spaced from its first byte to
    its last. A data set of 100,000 photographs is then read in seconds instead of minutes. Copies always have the same key.
    Different files may share one (large uncompressed images that differ in few places); they then go to the same part,
    which does no harm. The key of an unreadable file is the hash of its name.
    """
    try:
        status = path.stat()
    except OSError:
        return hashlib.sha256(path.name.encode(errors="surrogateescape")).digest()
    return _content_key(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 18)
def _content_key(path: Path, size: int, _changed: int) -> bytes:
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    try:
        with path.open("rb", buffering=0) as file:
            if size <= PIECE * PIECES:
                digest.update(file.read(size))
            else:
                for piece in range(PIECES):
                    file.seek((size - PIECE) * piece // (PIECES - 1), os.SEEK_SET)
                    digest.update(file.read(PIECE))
    except OSError:
        return hashlib.sha256(path.name.encode(errors="surrogateescape")).digest()
    return digest.digest()


def part_of(key: bytes, held_out: Sequence[Split] = ("test", "val")) -> Split:
    """Returns the part of a file from its key alone: a tenth of all keys for each of ``held_out``, train for the rest."""
    tenth = int.from_bytes(key[:8], "big") * 10 >> 64
    return held_out[tenth] if tenth < len(held_out) else "train"


def split_by_hash(
    classes: Iterable[Sequence[bytes]], held_out: Sequence[Split] = ("test", "val")
) -> dict[bytes, Split]:
    """Returns the part of each key.

    Each key goes where :func:`part_of` sends it, so that new images do not move existing ones. Then classes without images in
    some part are repaired: a class of three or more different images has at least one in train, val and test; a class of
    two has one in train and one in val; a class of one has it in train. Only classes of a few dozen images need this, and
    only these can change parts when images are added. A key has one part even if several classes hold it.

    Args:
        classes: keys of the images of each class.
        held_out: the parts besides train.
    """
    parts: dict[bytes, Split] = {}
    for keys in classes:
        own = sorted(set(keys))
        free = [key for key in own if key not in parts]  # keys of an earlier class stay in their parts
        parts.update((key, part_of(key, held_out)) for key in free)
        wanted = [part for part in SPLITS if part == "train" or part in held_out][: len(own)]
        for part in wanted:
            _fill(part, wanted, own, free, parts)
    return parts


def _fill(
    part: Split, wanted: Sequence[Split], own: Sequence[bytes], free: Sequence[bytes], parts: dict[bytes, Split]
) -> None:
    """Moves one key into a part that has none, from the part with the most keys."""
    have = Counter(parts[key] for key in own)
    if have[part]:
        return
    spare = [key for key in free if have[parts[key]] > 1 or parts[key] not in wanted]
    if spare:
        most = max(have[parts[key]] for key in spare)
        able = [key for key in spare if have[parts[key]] == most]
        parts[able[-1 if part == "train" else 0]] = part  # the key nearest to the keys of that part


def file_size(path: Path) -> int:
    """Returns the size in bytes, -1 if there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
