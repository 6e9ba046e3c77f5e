"""Checks JSON values against a form, so that pages can rely on their types.

A form is plain data: a mapping of keys to forms, a list with the form of every item, a :class:`Table` of one form under any
keys, or a :class:`Leaf`. :class:`Maybe` allows null and absence. The check returns a copy with exactly the keys of the form.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.errors import ArtifactError
from gft_edge.files import read_json
from gft_edge.storage.seals import SEAL, read_sealed

LONGEST_TEXT = 20_000
LARGEST_NUMBER = 1e18
MOST_BYTES = 200_000_000
SHOWN = 40


@dataclass(frozen=True)
class Leaf:
    """A value without parts.

    Args:
        kind: the kind of value, for messages ("a number").
        read: returns the value to use, or raises ValueError.
    """

    kind: str
    read: Callable[[object], Any]


@dataclass(frozen=True)
class Maybe:
    """A form that allows null and absence; both become None."""

    form: Any


@dataclass(frozen=True)
class Table:
    """An object with any keys whose values all have one form."""

    form: Any


@dataclass(frozen=True)
class Pair:
    """A list of exactly two items of one form."""

    form: Any


def printable(text: str) -> str:
    """Returns the text without control characters and lone surrogates, cut to at most :data:`LONGEST_TEXT` characters."""
    cut = text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "..."
    if cut.isprintable():
        return cut
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in cut
    )


def cleaned(data: Any) -> Any:
    """Returns JSON data with every text made printable."""
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, dict):
        return {printable(key): cleaned(part) for key, part in data.items()}
    return [cleaned(part) for part in data] if isinstance(data, list) else data


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return printable(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    if not math.isfinite(value) or abs(value) > LARGEST_NUMBER:
        raise ValueError
    return value


def _amount(value: object) -> float:
    number = _number(value)
    if number < 0:
        raise ValueError
    return number


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_NUMBER:
        raise ValueError
    return value


def _share(value: object) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def one_of(*words: str) -> Leaf:
    """Returns the form of a text that is one of the words."""

    def read(value: object) -> str:
        if value not in words or not isinstance(value, str):
            raise ValueError
        return value

    return Leaf(f"one of {', '.join(words)}", read)


TEXT = Leaf("a text", _text)
NUMBER = Leaf("a finite number", _number)
AMOUNT = Leaf("a finite number of 0 or more", _amount)
COUNT = Leaf("a whole number of 0 or more", _count)
SHARE = Leaf("a share from 0 to 1", _share)
FLAG = Leaf("true or false", _flag)
ANY = Leaf("anything", lambda value: value)


def checked(value: object, form: Any, where: str) -> Any:
    """Returns a copy of a JSON value with exactly the keys of the form.

    Args:
        value: from json.loads.
        form: required structure.
        where: name of the value in messages.

    Raises:
        ArtifactError: names the entry that is missing or has another type.
    """
    if isinstance(form, Maybe):
        return None if value is None else checked(value, form.form, where)
    if isinstance(form, Leaf):
        try:
            return form.read(value)
        except (ValueError, OverflowError):
            raise ArtifactError(f"{where}: expected {form.kind}, found {_shown(value)}") from None
    if isinstance(form, (list, Pair)):
        if not isinstance(value, list) or (isinstance(form, Pair) and len(value) != 2):
            wanted = "a list" if isinstance(form, list) else "a list of two"
            raise ArtifactError(f"{where}: expected {wanted}, found {_shown(value)}")
        item = form[0] if isinstance(form, list) else form.form
        return [checked(part, item, f"{where}[{number}]") for number, part in enumerate(value)]
    if not isinstance(value, dict):
        raise ArtifactError(f"{where}: expected an object, found {_shown(value)}")
    if isinstance(form, Table):
        return {printable(key): checked(part, form.form, f"{where}.{printable(key)}") for key, part in value.items()}
    for key, part in form.items():
        if key not in value and not isinstance(part, Maybe):
            raise ArtifactError(f"{where}: has no entry {key!r}")
    return {key: checked(value.get(key), part, f"{where}.{key}") for key, part in form.items()}


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object of at most :data:`MOST_BYTES`.

    Raises:
        ArtifactError: the file is unreadable, too large, or not a JSON object.
    """
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise ArtifactError(f"file {path}: {path.stat().st_size / 1e6:.0f} MB is too large for a result file")
    data = read_json(path, "file")
    if SEAL in data:  # other readers of sealed files check the seal too
        return read_sealed(path, "file", "make it again")
    return data


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
