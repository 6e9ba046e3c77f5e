"""Finds the lines of the fields in a protobuf text, which protobuf's own reader does not tell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

_TOKEN = re.compile(r"""\#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[\w.+-]+|[{}\[\]<>:,;]|\n""")
_CLOSING = {"{": "}", "<": ">", "[": "]"}

Token = tuple[str, int]


def field_lines(text: str) -> dict[str, int]:
    """Returns the line of every field, counted from 1, by its path: ``max_batch_size``, ``input[0]``, ``input[0].dims``.

    Messages have a number, values have none; the first of several values counts. A text that protobuf reads is expected.
    """
    lines: dict[str, int] = {}
    _fields(_tokens(text), "", "", lines)
    return lines


def line_of(lines: dict[str, int], path: str) -> int:
    """Returns the line of a field, or of the message that it is missing from; 0 for a file without both."""
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return lines.get(path, 0)


def _tokens(text: str) -> Iterator[Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "\n":
            line += 1
        elif not token.startswith("#"):
            yield token, line


def _fields(tokens: Iterator[Token], end: str, prefix: str, lines: dict[str, int]) -> None:
    """Reads the fields of a message up to its end."""
    counts: Counter[str] = Counter()
    name, line = "", 0
    for token, number in tokens:
        if token == end:
            return
        if token in ("{", "<"):
            _message(tokens, token, f"{prefix}{name}", counts, line, lines)
        elif token == "[":
            lines.setdefault(f"{prefix}{name}", line)
            for inner, at in tokens:
                if inner == "]":
                    break
                if inner in ("{", "<"):
                    _message(tokens, inner, f"{prefix}{name}", counts, at, lines)
        elif token == ":":
            lines.setdefault(f"{prefix}{name}", line)
        elif token not in (",", ";") and token[0] not in "\"'":
            name, line = token, number


def _message(
    tokens: Iterator[Token], opening: str, path: str, counts: Counter[str], line: int, lines: dict[str, int]
) -> None:
    own = f"{path}[{counts[path]}]"
    counts[path] += 1
    lines[own] = line
    lines.setdefault(path, line)
    _fields(tokens, _CLOSING[opening], f"{own}.", lines)
