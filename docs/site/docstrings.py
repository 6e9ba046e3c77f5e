"""Reads docstrings as they are written here, for griffe: roles, and entries of several names."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:func|class|meth|data|mod|attr|exc):`~?([\w.]+)(?:\(\))?`")
SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)", re.MULTILINE)


class Docstrings(Extension):
    """Replaces what griffe does not know in every docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Replaces it in one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(docstring: str) -> str:
    """Returns a docstring in which ``:func:`package.name``` is a link or code, and ``a, b: text`` an entry for each name."""
    return SHARED.sub(_entries, ROLE.sub(_link, docstring))


def _link(role: re.Match[str]) -> str:
    """Returns code that is a link where the site has the name."""
    name = role[1]
    return f'<autoref identifier="{name}" optional><code>{name.rpartition(".")[2]}</code></autoref>'


def _entries(entry: re.Match[str]) -> str:
    indent, names, text = entry.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
