"""Reads small kernel files that may be absent, forbidden or asleep."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """Returns the text of a file without surrounding blanks and NULs; None when it cannot be read.

    None also covers EAGAIN, which sensors of power-gated units answer.
    """
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \t\r\n")
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """Returns the decimal integer in a file; None when it cannot be read or is none."""
    text = read_text(path)
    if text is None or len(text) > 20 or not text.lstrip("-").isascii() or not text.lstrip("-").isdigit():
        return None
    return int(text) if text.count("-") <= 1 else None
