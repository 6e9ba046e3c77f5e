"""Output of all verbs: results on stdout, progress on stderr, with rich if it is installed."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gft_edge.cli.terminal import columns, terminal_width, visible
from gft_edge.errors import OutputError
from gft_edge.files import write_json
from gft_edge.progress import duration

T = TypeVar("T")


def command(verb: str, *arguments: object) -> str:
    """Returns a command of gft-edge as text that a shell takes: names with spaces are quoted."""
    return shlex.join(["gft-edge", verb, *map(str, arguments)])


def following(*commands: str) -> str:
    """Returns the commands that usually follow a verb, as lines of its result."""
    return "\n".join(("next:", *(f"  {text}" for text in commands)))


def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Shows a progress bar on stderr; without rich or a terminal, prints a line every ten seconds."""
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
    started = printed = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - printed >= 10:
            printed = now
            left = (now - started) / number * (total - number)
            say(f"{title}: {number} of {total}, about {duration(left)} left")


def say(text: str) -> None:
    """Prints a line of progress on stderr; a closed stderr does not stop the work."""
    with contextlib.suppress(OSError):
        print(visible(text, keep="\n\t"), file=sys.stderr, flush=True)


def say_left_out(problems: Sequence[str], shown: int = 20) -> None:
    """Shows why images were left out, one line for each of the first."""
    for text in problems[:shown]:
        say(f"left out: {text}")
    if len(problems) > shown:
        say(f"left out: {len(problems) - shown} more")


def result(args: argparse.Namespace, data: Mapping[str, Any], text: str, out: Path | None = None) -> None:
    """Prints the result of a verb on stdout, as JSON with ``--json`` and else as text, and writes it to a file if given.

    It tries both, stdout first, so that a failure of one does not lose a long measurement.

    Args:
        args: of the verb.
        data: content of the JSON output and of the file.
        text: output without ``--json``.
        out: file to write, if any.

    Raises:
        OutputError: one of them cannot be written; the other one is complete.
    """
    problem: OutputError | None = None
    try:
        print_out(json.dumps(data, indent=2, sort_keys=True) if args.json else visible(text, keep="\n\t"))
    except OutputError as error:
        problem = error
    if out is not None:
        write_json(out, data)
    if problem is not None:
        raise problem


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """Turns a printing failure in the block into one error.

    Raises:
        OutputError: standard output is full or closed.
        BrokenPipeError: the reader of the pipe has ended.
    """
    if sys.stdout is None:
        raise OutputError("standard output", "it is closed")
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError("standard output", error.strerror or str(error)) from None


def print_out(text: str) -> None:
    """Prints a text on standard output and flushes it; raises like :func:`standard_output`."""
    with standard_output():
        print(f"{text}\n", end="", flush=True)  # one write: an interrupt cannot come between the text and its newline


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns rows as text with aligned columns; wraps cells to the width of the terminal.

    A cell is one line: newlines and other control characters become escapes.
    """
    cells = [[visible(str(cell)) for cell in row] for row in (header, *rows)]
    return columns(cells, terminal_width())
