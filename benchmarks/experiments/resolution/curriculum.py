"""Curriculum of the plain network on smaller images, and how many images a training has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import TrainSection
from gft_edge.data.scenes import Scenes
from gft_edge.data.sets import ImageSet
from gft_edge.errors import ConfigError
from gft_edge.train.schedule import Phase, phases
from gft_edge.train.training_data import in_phase

LARGER = 1.25
"""Factor of the mark's side in the first phase."""
STARTS = (0.0, 0.1, 0.5, 0.7)
"""Share of the steps where the phases begin: larger marks in small windows, small windows, large windows, whole images."""
SMALL_WINDOW, LARGE_WINDOW = 4, 2
"""Side of the image over that of a window."""


def fitting_curriculum(images: ImageSet, config: GFTConfig, size: int) -> tuple[Phase, ...]:
    """Returns the phases of a training on images that are resized to ``size`` pixels; none for other data than scenes.

    Windows that do not hold the mark, or are no whole number of patches when they are resized, are left out.

    Args:
        images: training images in their full size.
        config: of the model on full images.
        size: pixels of the resized images.
    """
    if not isinstance(images, Scenes):
        return ()
    whole = images.size
    wanted = zip(STARTS, (LARGER, 1.0, 1.0, 1.0), (SMALL_WINDOW, SMALL_WINDOW, LARGE_WINDOW, 0))
    found: list[Phase] = []
    for start, scale, part in wanted:
        window = whole // part if part else 0
        phase = (start if found else 0.0, scale, float(images.distractors), float(window))
        if not window or _fits(images, phase, config, size):
            found.append(phase)
    return tuple(found)


def _fits(images: Scenes, phase: Phase, config: GFTConfig, size: int) -> bool:
    window = int(phase[3])
    if config.stem != "conv" or window * size % images.size or window * size // images.size % config.patch_size:
        return False
    try:
        in_phase(images, phase)
    except ConfigError:
        return False
    return True


def images_seen(curriculum: Sequence[Phase], settings: TrainSection, steps: int) -> dict[str, int]:
    """Returns how many windows and whole images the first steps of a training take."""
    if not curriculum:
        return {"windows": 0, "whole": steps * settings.batch_size * settings.accumulate}
    seen = {"windows": 0, "whole": 0}
    for phase, part in phases(curriculum, settings, range(steps)):
        seen["windows" if phase[3] else "whole"] += len(part) * settings.batch_size * settings.accumulate
    return seen


def recorded_images(provenance: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, int] | None:
    """Returns how many windows and whole images a checkpoint has seen by its own record; None if it has none."""
    try:
        recipe = provenance["recipe"]
        known = {name: recipe["train"][name] for name in ("steps", "batch_size", "accumulate")}
        curriculum = [tuple((*row, 0.0)[:4]) for row in recipe["data"].get("curriculum", ())]
        return images_seen(curriculum, TrainSection(**known), metrics.get("steps", known["steps"]))
    except (KeyError, TypeError, AttributeError, ConfigError):
        return None
