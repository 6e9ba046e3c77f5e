"""Text that is safe on a terminal and lines up there: control characters made visible, widths in columns, wrapped tables."""

from __future__ import annotations

import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence

LONGEST_WORD = 200
"""Characters of one word of an error line; a longer one is cut in its middle."""
LONGEST_LINE = 1200
"""Characters of an error line."""
NARROWEST = 8
"""Columns below which a column of a table is not squeezed."""

_JOINERS = "\u200c\u200d"  # needed to spell Persian, Hindi and some emoji
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: str, keep: str = "") -> str:
    """The text with every character that a terminal would obey, or not show, as an escape such as ``\\x1b``.

    These are the control characters (C0, C1), marks that turn the direction of writing, other characters of no width but joiners,
    line and paragraph separators, and lone surrogates (bytes of file names that are no UTF-8).

    Args:
        text: anything, for example a class name or a file name.
        keep: characters left as they are, for example a newline.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _is_hidden(c) else ascii(c)[1:-1] for c in text)


def _is_hidden(character: str) -> bool:
    return character not in _JOINERS and unicodedata.category(character) in _HIDDEN


def error_line(text: str) -> str:
    """A message as one line of bounded length, safe on a terminal: whitespace joined, long values cut in their middle."""
    words = (_cut(word, LONGEST_WORD) for word in text.split())
    return visible(_cut(" ".join(words), LONGEST_LINE))


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 4
    return f"{text[:head]}...({len(text) - head - tail} characters)...{text[-tail:]}"


def width(text: str) -> int:
    """Columns of a terminal that the text takes: two for wide characters (East Asian), none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is, by COLUMNS where that is set; None where it is no terminal."""
    try:
        shown = sys.stdout is not None and sys.stdout.isatty()
    except ValueError:  # closed
        return None
    return shutil.get_terminal_size().columns if shown else None


def columns(rows: Sequence[Sequence[str]], limit: int | None) -> str:
    """Rows as lines with columns of equal width, the first row underlined.

    Args:
        rows: cells of one line each; the first row is the header.
        limit: columns of the terminal: cells of the widest columns are wrapped until the table fits. None wraps nothing.
    """
    widths = [max(width(row[i]) for row in rows) for i in range(len(rows[0]))]
    if limit is not None:
        widths = _squeezed(widths, limit)
    lines = [line for row in rows[:1] for line in _wrapped_row(row, widths)]
    lines.append("  ".join("-" * size for size in widths))
    lines += [line for row in rows[1:] for line in _wrapped_row(row, widths)]
    return "\n".join(lines)


def _squeezed(widths: list[int], limit: int) -> list[int]:
    """Takes columns from the widest ones until the row fits, or none is wider than the least width."""
    widths = list(widths)
    excess = sum(widths) + 2 * (len(widths) - 1) - limit
    while excess > 0 and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
        excess -= 1
    return widths


def _wrapped_row(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    cells = [list(_wrapped(cell, size)) for cell, size in zip(row, widths)]
    for number in range(max(map(len, cells))):
        parts = [cell[number] if number < len(cell) else "" for cell in cells]
        yield "  ".join(part + " " * (size - width(part)) for part, size in zip(parts, widths)).rstrip()


def _wrapped(text: str, size: int) -> Iterator[str]:
    """Lines of at most ``size`` columns, broken at spaces where there are some; nothing is lost but the broken spaces."""
    line = ""
    for word in re.split(r"(?<= )(?=\S)", text):
        if line and width(line) + width(word.rstrip()) > size:
            yield line.rstrip()
            line = ""
        while width(word.rstrip()) > size:
            count = _fitting(word, size)
            yield word[:count]
            word = word[count:]
        line += word
    yield line.rstrip()


def _fitting(text: str, size: int) -> int:
    """How many characters fit into so many columns; at least one."""
    used = 0
    for number, character in enumerate(text):
        used += _columns(character)
        if used > size:
            return max(1, number)
    return len(text)
