"""Progress reporting for long-running functions: they take a ``Track``, which is silent by default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Wraps an iterable of known length and shows progress while it is consumed."""

    def __call__(self, items: Iterable[T], title: str, total: int) -> Iterator[T]:
        """Yields the items."""
        ...


def silent(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Returns the items; shows nothing."""
    return iter(items)


def duration(seconds: float) -> str:
    """Returns a time in a suitable unit: ``"40 s"``, ``"12 min"``, ``"57 h"``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
