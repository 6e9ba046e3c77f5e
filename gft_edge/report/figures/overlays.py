"""Pictures of a prediction: the image, its GALA map, and the patches that each stage kept.

This module also runs on boards: numpy draws the panels, and Pillow, which boards need to read images, writes text and files.
"""

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
PAPER = 232  # grey level of dropped patches
HEADING, TITLE, LEGEND = 30, 24, 28
"""Heights of the parts around the panels, in pixels."""
BAR_LEFT = 36
"""Pixels from the edge of the map's panel to its colour scale."""
INK = (31, 41, 55)
MAP_TITLE = "GALA map"

INFERNO = np.array(
    [(0, 0, 4), (51, 10, 94), (115, 27, 109), (176, 47, 91), (229, 92, 48), (252, 166, 10), (252, 255, 164)], np.float32
)
"""Seven stops of matplotlib's "inferno" (public domain), dark to bright: (7, 3) levels of 0 to 255."""


def overlay(
    image: npt.NDArray[np.uint8], prediction: Prediction, manifest: DeploymentManifest
) -> npt.NDArray[np.uint8]:
    """Returns panels side by side: image, GALA map of the first stage, and per stage the image with dropped patches faded.

    Args:
        image: input of the network, (height, width, 3) uint8.
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
    """Returns an image (height, width, 3) and several of its importance maps (rows, cols), side by side."""
    return _beside([_enlarge(image), *(_enlarge(_colors(importance)) for importance in maps)])


def _beside(panels: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    gap = np.full((PANEL, GAP, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (gap, panel)][1:], axis=1)


def write_overlay(
    path: Path, image: npt.NDArray[np.uint8], prediction: Prediction, manifest: DeploymentManifest
) -> None:
    """Writes :func:`overlay` as a PNG file, with the class and its probability, titles of the panels and a legend.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    panels = overlay(image, prediction, manifest)
    titles = ["image", *([MAP_TITLE] if prediction.importance else [])]
    titles += [
        f"stage {stage}: {int(mask.sum())} of {mask.size}" for stage, mask in enumerate(prediction.kept, start=1)
    ]
    write_png(path, captioned(panels, f"{label_text(prediction)}, {prediction.probability:.1%}", titles))


def label_text(prediction: Prediction) -> str:
    """Returns the predicted class in letters of Pillow's own font; its number if the font lacks a letter."""
    label = " ".join(prediction.label.split())
    latin = label.isprintable() and label.isascii() and len(label) <= 40
    return label if latin else f"class {int(np.argmax(prediction.logits))}"


def captioned(panels: npt.NDArray[np.uint8], heading: str, titles: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Returns panels with a heading, a title above each one, and a colour scale below the map.

    Args:
        panels: from :func:`overlay`, (PANEL, W, 3).
        heading: first line.
        titles: one per panel; the scale is below the panel :data:`MAP_TITLE`.

    Returns:
        (HEADING + TITLE + PANEL + LEGEND, W, 3) uint8

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtraError("Pillow", "report") from None
    width = panels.shape[1]
    page = np.full((HEADING + TITLE + PANEL + LEGEND, width, 3), 255, np.uint8)
    page[HEADING + TITLE : HEADING + TITLE + PANEL] = panels
    bar = (PANEL // 3, 10)
    lefts = [number * (PANEL + GAP) for number in range(len(titles))]
    heat = lefts[titles.index(MAP_TITLE)] if MAP_TITLE in titles else None
    left = 0
    if heat is not None:
        levels = np.linspace(0, 1, bar[0], dtype=np.float32)
        top, left = page.shape[0] - LEGEND + 9, heat + BAR_LEFT
        page[top : top + bar[1], left : left + bar[0]] = _shades(levels)[None]
    drawn = Image.fromarray(page)
    pen = ImageDraw.Draw(drawn)
    large, small = ImageFont.load_default(20), ImageFont.load_default(16)
    pen.text((2, HEADING // 2), heading, fill=INK, font=large, anchor="lm")
    for start, title in zip(lefts, titles):
        pen.text((start + 2, HEADING + TITLE // 2), title, fill=INK, font=small, anchor="lm")
    if heat is not None:
        middle = page.shape[0] - LEGEND + 14
        pen.text((left - 6, middle), "low", fill=INK, font=small, anchor="rm")
        pen.text((left + bar[0] + 6, middle), "high (log)", fill=INK, font=small, anchor="lm")
    return np.asarray(drawn)


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
    """Resizes to PANEL x PANEL by nearest neighbour, so that patches stay sharp."""
    rows = np.arange(PANEL) * image.shape[0] // PANEL
    cols = np.arange(PANEL) * image.shape[1] // PANEL
    return image[rows][:, cols]


def _colors(importance: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Maps importance (rows, cols) to colours (rows, cols, 3), by its logarithm over the whole range of values.

    Importance is a softmax of scores at a low temperature, so its logarithm is linear in the scores; a linear scale would
    show only the largest patch. Values that are 0 or non-finite are one step darker than the smallest positive one.
    """
    values = np.asarray(importance, np.float64)
    usable = np.isfinite(values) & (values > 0)
    if not usable.any():
        return np.broadcast_to(_shades(np.zeros(1, np.float32)), (*values.shape, 3)).copy()
    level = np.log(np.where(usable, values, values[usable].min() / np.e))
    return _shades((level - level.min()) / max(float(level.max() - level.min()), 1e-6))


def _shades(levels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Maps levels (...) from 0 to 1 to colours (..., 3), dark to bright."""
    scaled = levels * (len(INFERNO) - 1)
    low = np.minimum(scaled.astype(int), len(INFERNO) - 2)
    part = (scaled - low)[..., None]
    return (INFERNO[low] * (1 - part) + INFERNO[low + 1] * part).astype(np.uint8)
