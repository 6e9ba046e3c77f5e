"""Huge pages for the memory of a loaded model: fewer address translations while its weights are read.

A kernel that gives huge pages only to those who ask (``madvise``, the default of Debian and Ubuntu) gives none to ONNX Runtime,
which does not ask. For a model of a hundred megabytes that costs one to seven per cent of its latency, by how memory lies.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

PAGE = 2 << 20
WORTHWHILE = 16 << 20
"""Bytes; below that a processor's second-level TLB covers the model with small pages."""
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # linux/mman.h; the second since Linux 6.1
ENABLED, MAPS = Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/proc/self/maps")

Region = tuple[int, int]
"""Addresses, the end excluded."""


def on_request(enabled: Path = ENABLED) -> bool:
    """Whether this kernel gives huge pages to those who ask, and to no one else."""
    try:
        return sys.platform == "linux" and "[madvise]" in enabled.read_text()
    except OSError:
        return False


def anonymous_regions(maps: Path = MAPS) -> list[Region]:
    """Private writable memory without a file, but for stacks; empty where the system does not tell."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return []
    regions = []
    for line in lines:
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and inode == "0" and (not name or name == ["[heap]"]):
            start, end = (int(address, 16) for address in addresses.split("-"))
            regions.append((start, end))
    return regions


def added(before: Iterable[Region], after: Iterable[Region]) -> list[Region]:
    """What of the regions ``after`` was not there ``before``; regions of each do not overlap."""
    old = sorted(before)
    found = []
    for start, end in sorted(after):
        for old_start, old_end in old:
            if old_end <= start or old_start >= end:
                continue
            if old_start > start:
                found.append((start, old_start))
            start = max(start, old_end)
        if start < end:
            found.append((start, end))
    return found


def size(regions: Iterable[Region]) -> int:
    """Bytes of regions that do not overlap."""
    return sum(end - start for start, end in regions)


def request(regions: Iterable[Region]) -> int:
    """Asks the kernel to hold regions in huge pages, at once where it can.

    Returns:
        bytes it agreed to; what is in use already moves now on Linux 6.1 and later, in time on older ones.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    agreed = 0
    for start, end in regions:
        first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        if first >= last:
            continue
        where = ctypes.c_void_p(first), ctypes.c_size_t(last - first)
        if libc.madvise(*where, MADV_HUGEPAGE) == 0:
            agreed += last - first
            libc.madvise(*where, MADV_COLLAPSE)
    return agreed
