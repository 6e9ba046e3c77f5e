"""Pictures of an image beside importance maps of several models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.constants import TEMPERATURE
from gft_edge.report.figures.overlays import map_panels, write_png


def write_map_picture(path: Path, image: npt.NDArray[np.uint8], maps: Sequence[npt.NDArray[Any]]) -> None:
    """Writes a PNG file: the image and each map, side by side.

    Args:
        path: of the file.
        image: (height, width, 3).
        maps: importance (rows, cols), drawn on the scale of the scores, which its sharp softmax hides.
    """
    write_png(path, map_panels(image, [importance**TEMPERATURE for importance in maps]))
