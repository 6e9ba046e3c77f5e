"""Text for terminals: visible control characters, widths in columns, wrapped tables."""

from __future__ import annotations

import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence

LONGEST_WORD = 200
"""Largest length of a word in an error line; longer words are cut in the middle."""
LONGEST_LINE = 1200
"""Largest length of an error line."""
NARROWEST = 8
"""Smallest width of a table column that wraps."""

_JOINERS = "\u200c\u200d"  # needed to spell Persian, Hindi and some emoji
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: str, keep: str = "") -> str:
    """Returns the text with control and invisible characters as escapes such as ``\\x1b``.

    These are control characters (C0, C1), marks of writing direction, other characters without width except joiners,
    line and paragraph separators, and lone surrogates (bytes of file names that are not UTF-8).

    Args:
        text: for example a class name or a file name.
        keep: characters that stay unchanged, for example a newline.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _is_hidden(c) else ascii(c)[1:-1] for c in text)


def _is_hidden(character: str) -> bool:
    return character not in _JOINERS and unicodedata.category(character) in _HIDDEN


def error_line(text: str) -> str:
    """Returns a message as one line of bounded length, safe on a terminal; cuts long words in the middle."""
    words = (_cut(word, LONGEST_WORD) for word in text.split())
    return visible(_cut(" ".join(words), LONGEST_LINE))


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 4
    return f"{text[:head]}...({len(text) - head - tail} characters)...{text[-tail:]}"


def width(text: str) -> int:
    """Returns the width of a text in terminal columns: two for wide characters (East Asian), none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def terminal_width() -> int | None:
    """Returns the columns of the terminal (or COLUMNS if set); None if standard output is not a terminal."""
    try:
        shown = sys.stdout is not None and sys.stdout.isatty()
    except ValueError:  # closed
        return None
    return shutil.get_terminal_size().columns if shown else None


def columns(rows: Sequence[Sequence[str]], limit: int | None) -> str:
    """Returns rows as lines with aligned columns, the first row underlined.

    Args:
        rows: cells of one line each; the first row is the header.
        limit: columns of the terminal; cells of the widest columns wrap until the table fits. None wraps nothing.
    """
    widths = [max(width(row[i]) for row in rows) for i in range(len(rows[0]))]
    if limit is not None:
        widths = _squeezed(widths, limit)
    lines = [line for row in rows[:1] for line in _wrapped_row(row, widths)]
    lines.append("  ".join("-" * size for size in widths))
    lines += [line for row in rows[1:] for line in _wrapped_row(row, widths)]
    return "\n".join(lines)


def _squeezed(widths: list[int], limit: int) -> list[int]:
    """Narrows the widest columns until the row fits, or until none is wider than :data:`NARROWEST`."""
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
    """Yields lines of at most ``size`` columns, broken at spaces if possible; drops only spaces at line breaks."""
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
    """Returns the number of characters that fit into ``size`` columns; at least one."""
    used = 0
    for number, character in enumerate(text):
        used += _columns(character)
        if used > size:
            return max(1, number)
    return len(text)
