"""Reads class names from a file and checks them."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gft_edge.errors import ConfigError
from gft_edge.files import decode_text, parse_json

BACKGROUND = ("background", "__background__", "_background_", "???", "unlabeled", "unlabelled", "void", "none", "n/a")
"""First lines of lists for detection and segmentation, which count the background as a class."""
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BLANKS = " \t\r\ufeff\u00a0\u3000\u200b\u2060"
"""Includes invisible characters: byte order marks, non-breaking spaces and spaces without width."""
_JSON_KEYS = ("id2label", "labels", "label_names", "classes", "names", "class_to_idx", "label2id")

Place = tuple[str, str]
"""A name, and its place in the file."""


def read_labels(path: Path, count: int | None = None) -> tuple[str, ...]:
    """Reads class names in the order of a model's outputs.

    Accepts one name per line, ``.csv`` (with commas or semicolons) and ``.tsv`` with a name or an index and a name per row, and
    ``.json`` with a list, or an object of names by index or of indices by name. Removes byte order marks, blanks around names
    and blank lines at the end.

    Args:
        path: a file in UTF-8, or in an encoding that :func:`gft_edge.files.decode_text` knows.
        count: outputs of the model, None for any number.

    Raises:
        ConfigError: unreadable, a line that is no name, a repeated name, or a number of names other than ``count``.
    """
    where = f"labels {path}"
    try:
        data = path.read_bytes()
        suffix = path.suffix.lower()
        if suffix == ".json":
            places = _from_json(parse_json(data), where)
        elif suffix in (".csv", ".tsv"):
            places = _from_rows(decode_text(data), "," if suffix == ".csv" else "\t", where)
        else:
            places = _from_lines(decode_text(data))
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: cannot be read: it is no UTF-8 text, save it as UTF-8") from None
    except (ValueError, csv.Error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: cannot be read ({error})") from None
    places = [(name.strip(_BLANKS), place) for name, place in places]
    while places and not places[-1][0]:
        places.pop()
    if problem := _problem(places):
        raise ConfigError(f"{where}: {problem}")
    if not places:
        raise ConfigError(f"{where}: holds no names")
    if count is not None and len(places) != count:
        cause = "; give one name for each output of the model, in their order"
        if len(places) == count + 1 and places[0][0].lower() in BACKGROUND:
            cause = f"; its first, {places[0][0]!r}, is no class of this model: remove it"
        raise ConfigError(f"{where}: holds {len(places)} names, the model has {count} classes{cause}")
    return tuple(name for name, _ in places)


def require_names(labels: Sequence[object], where: str) -> tuple[str, ...]:
    """Checks class names and returns them unchanged.

    Raises:
        ConfigError: one is no text, empty, repeated, or has a control character.
    """
    places = []
    for index, name in enumerate(labels):
        if not isinstance(name, str):
            raise ConfigError(f"{where}: label {index} is {name!r}, expected a text")
        places.append((name, f"label {index}"))
    if problem := _problem(places):
        raise ConfigError(f"{where}: {problem}")
    return tuple(name for name, _ in places)


def first_difference(one: Sequence[str], other: Sequence[str]) -> tuple[int, str, str] | None:
    """Returns the number of the first class that two lists name differently and both names, quoted; None for equal lists."""
    for number, names in enumerate(zip_longest(one, other)):
        if names[0] != names[1]:
            first, second = ("no class" if name is None else repr(name) for name in names)
            return number, first, second
    return None


def _problem(places: Sequence[Place]) -> str | None:
    seen: dict[str, str] = {}
    for name, place in places:
        if not name:
            return f"{place} is blank, expected a class name"
        if control := next((character for character in name if _is_control(character)), None):
            return f"{place} holds the control character U+{ord(control):04X}"
        if name in seen:
            return f"{place} repeats {name!r} of {seen[name]}"
        seen[name] = place
    return None


def _is_control(character: str) -> bool:
    """Returns whether a character controls a terminal or breaks a line."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS


def _from_lines(text: str) -> list[Place]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(line, f"line {number}") for number, line in enumerate(lines, start=1)]


def _from_rows(text: str, delimiter: str, where: str) -> list[Place]:
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    rows = [(number, row) for number, row in enumerate(reader, start=1) if any(cell.strip() for cell in row)]
    if delimiter == "," and _has_semicolons([row for _, row in rows]):
        return _from_rows(text, ";", where)
    if not rows or all(len(row) == 1 for _, row in rows):
        return [(row[0], f"line {number}") for number, row in rows]
    if not any(cell.strip().isdecimal() for cell in rows[0][1]):
        rows = rows[1:]  # names of the columns
    column = next((c for c in (0, 1) if all(len(row) > c and row[c].strip().isdecimal() for _, row in rows)), None)
    if column is None or any(len(row) != 2 for _, row in rows):
        raise ConfigError(f"{where}: expected one name per row, or an index and a name")
    return _ordered([(int(row[column]), row[1 - column], f"line {number}") for number, row in rows], where)


def _has_semicolons(rows: list[list[str]]) -> bool:
    """Returns whether semicolons part indices from names: Excel's .csv where the comma is the decimal sign."""
    pairs = [row[0].split(";") for row in rows if len(row) == 1]
    indexed = (any(cell.strip().isdecimal() for cell in pair) for pair in pairs[1:] or pairs)
    return bool(pairs) and len(pairs) == len(rows) and all(len(pair) == 2 for pair in pairs) and all(indexed)


def _from_json(data: Any, where: str) -> list[Place]:
    if isinstance(data, dict):
        data = next((data[key] for key in _JSON_KEYS if isinstance(data.get(key), dict | list)), data)
    if isinstance(data, list) and all(isinstance(name, str) for name in data):
        return [(name, f"entry {index}") for index, name in enumerate(data)]
    if isinstance(data, dict) and data:
        if all(key.isdecimal() and isinstance(value, str) for key, value in data.items()):
            return _ordered([(int(key), value, f"entry {key}") for key, value in data.items()], where)
        if all(isinstance(value, int) and not isinstance(value, bool) for value in data.values()):
            return _ordered([(value, key, f"entry {value}") for key, value in data.items()], where)
    raise ConfigError(f"{where}: expected a list of names, names by index, or indices by name")


def _ordered(entries: list[tuple[int, str, str]], where: str) -> list[Place]:
    entries.sort(key=lambda entry: entry[0])
    first = entries[0][0] if entries else 0
    for index, (number, _, place) in enumerate(entries, start=first):
        if number != index or first not in (0, 1):
            raise ConfigError(f"{where}: {place}: index {number}, expected {index if first in (0, 1) else 0}")
    return [(name, place) for _, name, place in entries]
