"""Pictures of what a model looked at: the image, its importance map, and the patches each stage kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import MissingExtraError
from gft_edge.files import replacing
from gft_edge.manifest import DeploymentManifest
from gft_edge.runtime.classifier import Prediction

PANEL = 192
GAP = 8
FADED = 0.12
PAPER = 232  # what dropped patches fade to

# Seven stops of matplotlib's "inferno" (public domain), dark to bright.
_INFERNO = np.array(
    [(0, 0, 4), (51, 10, 94), (115, 27, 109), (176, 47, 91), (229, 92, 48), (252, 166, 10), (252, 255, 164)], np.float32
)


def overlay(
    image: npt.NDArray[np.uint8], prediction: Prediction, manifest: DeploymentManifest
) -> npt.NDArray[np.uint8]:
    """Panels side by side: image, importance at the first stage, and per stage the image with dropped patches faded.

    Args:
        image: as the network sees it, (height, width, 3) uint8.
        prediction: with maps.
        manifest: of the artefact.

    Returns:
        (PANEL, width of all panels, 3) uint8
    """
    panels = [_enlarge(image)]
    if prediction.importance:
        heat = _enlarge(_colors(prediction.importance[0])).astype(np.float32)
        panels.append((0.75 * heat + 0.25 * _enlarge(image).mean(axis=2, keepdims=True)).astype(np.uint8))
    for mask in prediction.kept:
        keep = _enlarge(mask[..., None].astype(np.uint8)).astype(np.float32)
        shown = _enlarge(image) * keep + (FADED * _enlarge(image) + (1 - FADED) * PAPER) * (1 - keep)
        panels.append(shown.astype(np.uint8))
    return _beside(panels)


def map_panels(image: npt.NDArray[np.uint8], maps: Sequence[npt.NDArray[np.floating[Any]]]) -> npt.NDArray[np.uint8]:
    """An image (height, width, 3) and several importance maps (rows, cols) of it, side by side."""
    return _beside([_enlarge(image), *(_enlarge(_colors(importance)) for importance in maps)])


def _beside(panels: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    gap = np.full((PANEL, GAP, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (gap, panel)][1:], axis=1)


def write_overlay(
    path: Path, image: npt.NDArray[np.uint8], prediction: Prediction, manifest: DeploymentManifest
) -> None:
    """Writes :func:`overlay` as a PNG file.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    write_png(path, overlay(image, prediction, manifest))


def write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Writes an RGB image (H, W, 3) as a PNG file.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "report") from None
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _enlarge(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Nearest-neighbour to PANEL x PANEL, so that patches stay sharp."""
    rows = np.arange(PANEL) * image.shape[0] // PANEL
    cols = np.arange(PANEL) * image.shape[1] // PANEL
    return image[rows][:, cols]


def _colors(importance: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """(rows, cols) to (rows, cols, 3): logarithmic, since importance is a sharp softmax."""
    level = np.log(np.maximum(importance, importance.max() * 1e-4))
    level = (level - level.min()) / max(float(level.max() - level.min()), 1e-6) * (len(_INFERNO) - 1)
    low = np.minimum(level.astype(int), len(_INFERNO) - 2)
    part = (level - low)[..., None]
    return (_INFERNO[low] * (1 - part) + _INFERNO[low + 1] * part).astype(np.uint8)
