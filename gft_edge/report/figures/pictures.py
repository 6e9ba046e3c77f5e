"""Pictures as data URLs of limited size, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import Any

from gft_edge.report.figures.overlays import GAP, HEADING, LEGEND, PANEL, TITLE

MOST_BYTES = 40_000_000
_OPTIONS: dict[str, dict[str, Any]] = {"png": {}, "jpeg": {"quality": 90, "subsampling": 0}}
"""Of each kind: PNG holds every pixel; JPEG makes panels of photographs several times as small."""


def data_url(file: Path, widest: int) -> str | None:
    """Returns a picture as a PNG data URL of at most ``widest`` pixels per side; None if it cannot be read."""
    picture = _opened(file)
    if picture is None:
        return None
    picture.thumbnail((widest, widest))
    return _url(picture, "png")


def panel_urls(file: Path) -> list[str] | None:
    """Returns each panel of a picture of :func:`gft_edge.report.figures.overlays.write_overlay` as a data URL.

    Returns None if the picture cannot be read or does not have that size.
    """
    picture = _opened(file)
    if picture is None or picture.height != HEADING + TITLE + PANEL + LEGEND or (picture.width + GAP) % (PANEL + GAP):
        return None
    top = HEADING + TITLE
    return [
        _url(picture.crop((left, top, left + PANEL, top + PANEL)), "png", "jpeg")
        for left in range(0, picture.width, PANEL + GAP)
    ]


def _opened(file: Path) -> Any:
    """Returns an image of Pillow in RGB; None if it cannot be read."""
    from PIL import Image

    try:
        if file.stat().st_size > MOST_BYTES:
            return None
        with warnings.catch_warnings(), Image.open(file) as opened:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return opened.convert("RGB")
    except Exception:  # decoders of Pillow raise any type, and a damaged picture must not stop the page
        return None


def _url(picture: Any, *kinds: str) -> str:
    """Returns the shortest data URL among kinds of files."""
    found = {}
    for kind in kinds:
        out = io.BytesIO()
        picture.save(out, format=kind, **_OPTIONS[kind])
        found[kind] = out.getvalue()
    kind = min(found, key=lambda name: len(found[name]))
    return f"data:image/{kind};base64,{base64.b64encode(found[kind]).decode()}"
