"""Reads TOML and JSON tables and fills dataclasses from them, all problems reported at once."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from gft_edge.errors import ConfigError, MissingExtraError, did_you_mean
from gft_edge.files import decode_text, parse_json
from gft_edge.storage.filekinds import FileKind, kind_of

T = TypeVar("T")


def read_table(path: Path, what: str) -> Any:
    """Reads a TOML file, or a JSON file if the name ends in .json; skips a byte order mark.

    Raises:
        ConfigError: the file cannot be read, is not text, or is not in that language.
        MissingExtraError: TOML on Python 3.10 without tomli.
    """
    try:
        data = path.read_bytes()
        return parse_json(data) if path.suffix.lower() == ".json" else loads_toml(decode_text(data))
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{what} {path}: cannot be read: it is not text in UTF-8 or UTF-16 ({error.reason})"
        ) from None
    except ValueError as error:
        kind = kind_of(path)
        if kind not in (FileKind.TEXT, FileKind.JSON, FileKind.UNKNOWN):
            raise ConfigError(f"{what} {path}: expected TOML or JSON, it is {kind}") from None
        raise ConfigError(f"{what} {path}: {shortened(str(error))}") from None


_QUOTED_OR_COMMENT = re.compile(r"""("[^"\n]*"|'[^'\n]*')|#[^\n]*""")
_MAX_KEY_PARTS = 32


def loads_toml(text: str) -> dict[str, Any]:
    """Parses TOML, with the standard library or tomli.

    Raises:
        ValueError: the text is not TOML, is nested too deeply, or has a key of very many parts, which takes quadratic time.
        MissingExtraError: Python 3.10 without tomli.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise MissingExtraError("tomli", "train") from None
    plain = _QUOTED_OR_COMMENT.sub(lambda match: '""' if match[1] else "", text)
    if any(part.count(".") > _MAX_KEY_PARTS for part in re.split(r"[,=\[\]{}\n]", plain)):
        raise ValueError(f"a key of more than {_MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def shortened(text: str) -> str:
    """Shortens a text for a message by cutting out its middle."""
    return text if len(text) <= 120 else f"{text[:60]} ... {text[-30:]}"


def _shown(value: object) -> str:
    try:
        return shortened(repr(value))
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"


def parse_scalar(text: str) -> Any:
    """Parses a JSON value; returns the text itself if it is not one."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def load_dataclass(cls: type[T], data: Any, where: str) -> T:
    """Fills a (nested, frozen) dataclass from plain values.

    Raises:
        ConfigError: every unknown key, missing key and wrong type in one message.
    """
    problems: list[str] = []
    value = _fill(cls, data, "", problems)
    if problems:
        raise ConfigError(f"{where}: " + "; ".join(problems))
    return typing.cast(T, value)


def _fill(cls: Any, data: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(data, Mapping):
        problems.append(f"{path or 'top level'}: expected a table, found {_shown(data)}")
        return None
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            problems.append(f"unknown key {path}{shortened(str(key))}{did_you_mean(str(key), fields)}")
    values = {}
    before = len(problems)
    for name, spec in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{path}{name}", problems)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            problems.append(f"missing key {path}{name}")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ConfigError as error:
        problems.append(f"{path.rstrip('.')}: {error}" if path else str(error))
        return None


def _convert(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _fill(hint, value, f"{path}.", problems)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        hint = next(a for a in args if a is not type(None))
        return _convert(hint, value, path, problems)
    if origin is Literal:
        if value not in args:
            choices = ", ".join(repr(a) for a in args)
            hint_text = did_you_mean(value, [str(a) for a in args]) if isinstance(value, str) else ""
            problems.append(f"{path} must be one of {choices}, found {_shown(value)}{hint_text}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            problems.append(f"{path} must be a list, found {_shown(value)}")
            return ()
        return tuple(_convert(args[0], item, f"{path}[{i}]", problems) for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            problems.append(f"{path} is too large for a number, found {_shown(value)}")
            return 0.0
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        problems.append(f"{path} must be of type {hint.__name__}, found {_shown(value)}")
    return value
