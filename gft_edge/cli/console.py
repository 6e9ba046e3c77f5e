"""What all verbs print with: results on stdout, progress on stderr, rich where it is installed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """A progress bar on stderr; without rich or a terminal, a line every ten seconds."""
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
                yield from progress.track(items, total=total, description=title)
            return
        except ImportError:
            pass
    started = told = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - told >= 10:
            told = now
            left = (now - started) / number * (total - number)
            say(f"{title}: {number} of {total}, about {left:.0f} s left")


def say(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def result(args: argparse.Namespace, data: Mapping[str, Any], text: str) -> None:
    """The result of a verb on stdout: JSON with ``--json``, else the text."""
    print(json.dumps(data, indent=2, sort_keys=True) if args.json else text)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns padded to equal width, numbers as given."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
