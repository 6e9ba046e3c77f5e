"""Text that programs printed: read from files of any encoding, without the colours of a terminal."""

from __future__ import annotations

import re
from pathlib import Path

from gft_edge.errors import GFTEdgeError
from gft_edge.files import decode_text

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def clean(text: str) -> str:
    """The text without colour codes of terminals and without zero bytes, which a board that lost power leaves."""
    return _ANSI.sub("", text).replace("\x00", "")


def read_log_text(path: Path, what: str, error: type[GFTEdgeError]) -> str:
    """Reads a recorded log; bytes that are no text of its encoding become replacement characters.

    Args:
        path: UTF-8, or UTF-16 as Windows PowerShell 5.1 redirects.
        what: for the message.
        error: class to raise.

    Raises:
        GFTEdgeError: of that class, the file cannot be read.
    """
    try:
        return clean(decode_text(path.read_bytes(), errors="replace"))
    except OSError as problem:
        raise error(f"{what} {path}: cannot be read ({problem.strerror or problem})") from None
