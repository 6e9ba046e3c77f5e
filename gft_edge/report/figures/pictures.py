"""Pictures as data URLs of limited size, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

MOST_BYTES = 40_000_000


def data_url(file: Path, widest: int) -> str | None:
    """Returns a picture as a PNG data URL of at most ``widest`` pixels per side; None if it cannot be read."""
    from PIL import Image

    try:
        if file.stat().st_size > MOST_BYTES:
            return None
        with warnings.catch_warnings(), Image.open(file) as opened:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = opened.convert("RGB")
            picture.thumbnail((widest, widest))
            out = io.BytesIO()
            picture.save(out, format="PNG")
    except Exception:  # decoders of Pillow raise any type, and a damaged picture must not stop the page
        return None
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
