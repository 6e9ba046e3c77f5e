"""Chooses a recipe for a folder of images, so that a first training needs no decision but names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from gft_edge.config.recipe import Recipe, load_recipe, packaged_recipe
from gft_edge.data.datasets import is_folder, open_images
from gft_edge.errors import ConfigError

CPU_RECIPE, GPU_RECIPE = "image-folder", "image-folder-pretrained"
EPOCHS = {CPU_RECIPE: 10, GPU_RECIPE: 30}
LEAST_STEPS, MOST_STEPS = 300, 3000
"""Few images still need some hundred steps; beyond the upper limit the user decides, by the recipe."""
EVERY_IMAGE = 1 << 30


@dataclasses.dataclass(frozen=True)
class ChosenRecipe:
    """A recipe and why it was chosen.

    Attributes:
        recipe: complete.
        why: one line for the user.
    """

    recipe: Recipe
    why: str


def choose_recipe(data: str, changes: Sequence[str] = (), gpu: bool | None = None) -> ChosenRecipe:
    """Returns the package's recipe for a folder of images, with its number of steps set by the number of images.

    On a CPU the small model of the built-in task is fine-tuned from its checkpoint; on a GPU ``gft_small`` is fine-tuned from
    timm's weights of ImageNet, which are downloaded.

    Args:
        data: folder of images.
        changes: ``section.key=value``, applied last.
        gpu: whether a GPU trains; by default whether there is one.

    Raises:
        ConfigError: the data is no folder of images; a change is unusable.
        DataError: the folder cannot be used.
    """
    if not is_folder(data):
        raise ConfigError(
            f"data {data}: a recipe is chosen for folders of images alone; give --config, for example recipes/scenes.toml"
        )
    name = GPU_RECIPE if (torch.cuda.is_available() if gpu is None else gpu) else CPU_RECIPE
    file = packaged_recipe(name)
    plain = load_recipe(file)
    images = len(open_images(data, "train", EVERY_IMAGE, plain.model.image_size or 224, plain.train.seed))
    batch = max(1, min(plain.train.batch_size, images))
    per_step = batch * plain.train.accumulate
    steps = min(max(EPOCHS[name] * images // per_step, LEAST_STEPS), MOST_STEPS)
    recipe = load_recipe(file, [f"train.steps={steps}", f"train.batch_size={batch}", *changes])
    if not any(change.partition("=")[0].strip() == "data.name" for change in changes):
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, name=data))
    why = (
        f"recipe {name} of the package ({'a GPU is here' if name == GPU_RECIPE else 'no GPU here'}): {recipe.train.steps} steps "
        f"of {recipe.train.batch_size * recipe.train.accumulate} for {images} training images; --set or --config changes it"
    )
    return ChosenRecipe(recipe, why)
