"""Huge pages for the memory of a loaded model: fewer address translations while its weights are read.

Some kernels give huge pages only on request (``madvise``, the default of Debian and Ubuntu), and ONNX Runtime requests none. For
a model of a hundred megabytes this costs one to seven per cent of latency, depending on the memory layout.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

PAGE = 2 << 20
WORTHWHILE = 16 << 20
"""Bytes; the second-level TLB of a processor covers smaller models with small pages."""
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # linux/mman.h; the second since Linux 6.1
ENABLED, MAPS = Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/proc/self/maps")

Region = tuple[int, int]
"""Addresses, the end excluded."""


def on_request(enabled: Path = ENABLED) -> bool:
    """Returns whether this kernel gives huge pages on request, and only then."""
    try:
        return sys.platform == "linux" and "[madvise]" in enabled.read_text()
    except OSError:
        return False


def anonymous_regions(maps: Path = MAPS) -> list[Region]:
    """Returns private writable memory without a file, except stacks; empty where the system does not list it."""
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
    """Returns the parts of ``after`` that are not in ``before``; regions of each list do not overlap."""
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
    """Returns the bytes of regions that do not overlap."""
    return sum(end - start for start, end in regions)


def request(regions: Iterable[Region]) -> int:
    """Requests huge pages for regions.

    Returns:
        bytes that the kernel agreed to. Memory in use moves at once on Linux 6.1 and later, over time on older kernels.
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
