"""Output of programs, read from files of any encoding, without terminal colours."""

from __future__ import annotations

import re
from pathlib import Path

from gft_edge.errors import GFTEdgeError
from gft_edge.files import decode_text

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def clean(text: str) -> str:
    """Removes colour codes of terminals, and zero bytes, which a board leaves after a loss of power."""
    return _ANSI.sub("", text).replace("\x00", "")


def read_log_text(path: Path, what: str, error: type[GFTEdgeError]) -> str:
    """Reads a recorded log; bytes that are invalid in its encoding become replacement characters.

    Args:
        path: in UTF-8, or in UTF-16 as Windows PowerShell 5.1 writes it.
        what: name of the log in messages.
        error: class to raise.

    Raises:
        GFTEdgeError: of that class, if the file cannot be read.
    """
    try:
        return clean(decode_text(path.read_bytes(), errors="replace"))
    except OSError as problem:
        raise error(f"{what} {path}: cannot be read ({problem.strerror or problem})") from None
