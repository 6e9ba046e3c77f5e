"""Reads the configuration file of DeepStream's Gst-nvinfer: a GLib key file.

The rules are those of ``g_key_file_load_from_data``: groups in brackets, ``key=value``, comments on lines of their own. A ``#``
after a value belongs to the value, blanks before a value are skipped, blanks after it stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from gft_edge.errors import ConfigError
from gft_edge.files import decode_text

T = TypeVar("T")
PROPERTY = "property"
_SPACE = " \t\v\f\r"
_GROUP = re.compile(r"\[([^\[\]\x00-\x1f]+)\]\s*")
_KEY = re.compile(r"[^=\[\]]+")


@dataclass(frozen=True)
class NvinferConfig:
    """A configuration of nvinfer, with the line of every value.

    Attributes:
        path: of the file; names in it are relative to its folder.
        values: text and line, counted from 1, by group and key.
    """

    path: Path
    values: dict[str, dict[str, tuple[str, int]]]

    def text(self, key: str, default: str = "") -> str:
        """Returns the text of a key of the group of properties, as all methods do."""
        return self.values.get(PROPERTY, {}).get(key, (default, 0))[0]

    def line(self, key: str) -> int:
        """Returns the line of a key, 0 if it is not there."""
        return self.values.get(PROPERTY, {}).get(key, ("", 0))[1]

    def place(self, key: str) -> str:
        """Returns words for messages: file, line and key."""
        line = self.line(key)
        return f"{self.path}, line {line}: {key}" if line else f"{self.path}: {key}"

    def integer(self, key: str, default: int) -> int:
        """Returns a whole number.

        Raises:
            ConfigError: it is none.
        """
        text = self.text(key, str(default))
        if not re.fullmatch(r"[+-]?\d{1,9}\s*", text, re.ASCII):
            raise ConfigError(f"{self.place(key)} must be a whole number, found {text!r}")
        return int(text)

    def number(self, key: str, default: float) -> float:
        """Returns a number.

        Raises:
            ConfigError: it is none, or not finite.
        """
        return _number(self.text(key, repr(default)), self.place(key))

    def numbers(self, key: str) -> tuple[float, ...]:
        """Returns a list of numbers separated by ``;``, empty if the key is not there.

        Raises:
            ConfigError: an entry is no number.
        """
        entries = self.text(key).split(";")
        return tuple(_number(entry, self.place(key)) for entry in _without_last_empty(entries))

    def flag(self, key: str) -> bool:
        """Returns a truth value, written 1, 0, true or false; False if the key is not there.

        Raises:
            ConfigError: another word.
        """
        text = self.text(key, "0").rstrip(_SPACE)
        if text not in ("0", "1", "true", "false"):
            raise ConfigError(f"{self.place(key)} must be 0 or 1, found {text!r}")
        return text in ("1", "true")

    def changed(self, **values: str | None) -> NvinferConfig:
        """Returns a copy with other values in the group of properties, ``_`` for ``-`` in their keys; None removes a key."""
        new = {name.replace("_", "-"): value for name, value in values.items()}
        kept = {key: value for key, value in self.values.get(PROPERTY, {}).items() if key not in new}
        added = {key: (value, 0) for key, value in new.items() if value is not None}
        return replace(self, values={**self.values, PROPERTY: {**kept, **added}})

    def file(self, key: str) -> Path | None:
        """Returns the path of a file that a key names, None if the key is not there."""
        text = self.text(key)
        return self.path.parent / text if text else None


def read_config(path: str | Path) -> NvinferConfig:
    """Reads a configuration file.

    Raises:
        ConfigError: unreadable, in YAML, or with a line that is no group, pair or comment; the line is named.
    """
    path = Path(path)
    if path.suffix.lower() in (".yml", ".yaml"):
        raise ConfigError(
            f"nvinfer configuration {path}: only the form with [property] and key=value is read, not YAML"
        )
    try:
        text = decode_text(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"nvinfer configuration {path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"nvinfer configuration {path}: is not text in UTF-8 ({error.reason})") from None
    return NvinferConfig(path, parse_config(text, path))


def parse_config(text: str, path: Path) -> dict[str, dict[str, tuple[str, int]]]:
    """Parses the text of a configuration; ``path`` is for messages.

    Raises:
        ConfigError: naming the first line that nvinfer cannot read, or a key that is there twice.
    """
    values: dict[str, dict[str, tuple[str, int]]] = {}
    group: dict[str, tuple[str, int]] | None = None
    for number, raw in enumerate(text.split("\n"), 1):
        where = f"nvinfer configuration {path}, line {number}"
        line = raw.removesuffix("\r").lstrip(_SPACE)
        if not line or line.startswith("#"):
            continue
        if match := _GROUP.fullmatch(line):
            group = values.setdefault(match[1], {})
            continue
        key, equals, value = line.partition("=")
        key = key.rstrip(_SPACE)
        if not equals or not _KEY.fullmatch(key):
            raise ConfigError(f"{where}: expected [group], key=value or a comment, found {line[:60]!r}")
        if group is None:
            raise ConfigError(f"{where}: {key} stands before the first group; begin the file with [{PROPERTY}]")
        if key in group:
            raise ConfigError(f"{where}: {key} is there twice, first in line {group[key][1]}; remove one")
        group[key] = (value.lstrip(_SPACE), number)
    return values


def format_config(groups: Iterable[tuple[str, Iterable[tuple[str, object]]]], heading: Iterable[str] = ()) -> str:
    """Returns the text of a configuration; a key that begins with ``#`` becomes a comment line."""
    lines = [f"# {line}".rstrip() for line in heading]
    for group, pairs in groups:
        lines += ["", f"[{group}]"]
        lines += [f"# {value}" if key.startswith("#") else f"{key}={value}" for key, value in pairs]
    return "\n".join(lines) + "\n"


def _number(text: str, place: str) -> float:
    if not re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?\s*", text, re.ASCII):
        raise ConfigError(f"{place} must be a number, found {text!r}")
    return float(text)


def _without_last_empty(entries: list[T]) -> list[T]:
    return entries[:-1] if not entries[-1] else entries
