"""Opens the data of a training: images, labels, preprocessing, and each process's share of the validation images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gft_edge.checkpoint import read_info, resolve_checkpoint
from gft_edge.config.model import GFTConfig, preset
from gft_edge.config.recipe import Recipe
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import ImageSet, Subset, match_labels, open_images, readable, split_names
from gft_edge.data.scenes import MarkWindows, Scenes
from gft_edge.data.sets import Kept
from gft_edge.data.trained import not_trained_on
from gft_edge.data.training import BatchOptions, training_batches
from gft_edge.errors import ConfigError, DataError
from gft_edge.model.build import logits_function
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.accuracy import measure_accuracy
from gft_edge.train.distributed import Workers, total
from gft_edge.train.schedule import Phase, phases

FEW_IMAGES = 4
"""Whose step is timed: one of a whole batch may take a minute on a CPU."""
KEPT_BYTES = 1 << 28
"""Of validation images kept in memory between evaluations."""


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Images of a training.

    Attributes:
        images: training images of all processes.
        spec: preprocessing.
        config: model configuration that fits the data.
        val: this process's share of the validation images.
        notes: how the images were found and which were left out.
        unreadable: messages about unreadable files; grows during the training.
    """

    images: ImageSet
    spec: PreprocessSpec
    config: GFTConfig
    val: ImageSet
    notes: tuple[str, ...]
    unreadable: set[str]

    def score(self, model: nn.Module) -> dict[str, float]:
        """Returns validation accuracy at the full and at the configured budget over all processes; keeps the model's mode.

        Raises:
            CheckFailed: logits are NaN or infinite.
        """
        budgets = (self.config.full_budget, self.config.budget)
        models = [(f"evaluation at {budget.id}", logits_function(model, budget)) for budget in budgets]
        was_training = model.training
        model.eval()
        try:
            found = measure_accuracy(models, self.val, self.images.labels, self.spec, self.unreadable.add)
            counts = [found[0].right, found[1].right, found[0].count]
        except DataError:  # no image of this share can be read; the other processes have theirs
            counts = [0, 0, 0]
        finally:
            model.train(was_training)
        full, pruned, images = (int(count) for count in total(torch.tensor(counts, dtype=torch.float64)).tolist())
        return {"val_top1_full": full / images, "val_top1_budget": pruned / images, "val_images": images}

    def batches(self, recipe: Recipe, group: Workers, steps: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this process's batches on its device, ``accumulate`` per step, interleaved with those of other processes.

        A curriculum changes how the images are drawn, not their order, so a run can begin at any step.
        """
        settings = recipe.train
        per_step = settings.accumulate * group.count
        options = BatchOptions(
            settings.batch_size, settings.seed, recipe.data.augment, recipe.data.num_workers, group.device
        )
        for images, side, part in self._phases(recipe, steps):
            spec = dataclasses.replace(self.spec, height=side, width=side) if side else self.spec
            own = [
                step * per_step + micro * group.count + group.rank
                for step in part
                for micro in range(settings.accumulate)
            ]
            yield from training_batches(images, spec, own, options, self.unreadable.add)

    def few_images(self, recipe: Recipe, group: Workers) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields one small batch that this process prepares."""
        size = min(FEW_IMAGES, recipe.train.batch_size)
        options = BatchOptions(size, recipe.train.seed, recipe.data.augment, 0, group.device)
        return training_batches(self.images, self.spec, [0], options, self.unreadable.add)

    def _phases(self, recipe: Recipe, steps: range) -> list[tuple[ImageSet, int, range]]:
        """Returns images, side of their windows (0 for whole images) and steps of each phase."""
        if not recipe.data.curriculum:
            return [(self.images, 0, steps)]
        found = phases(recipe.data.curriculum, recipe.train, steps)
        return [(in_phase(self.images, phase), int(phase[3]), part) for phase, part in found]


def open_training_data(recipe: Recipe, group: Workers) -> TrainingData:
    """Opens the images of a recipe.

    Raises:
        ConfigError, DataError: recipe, data and starting checkpoint do not fit each other.
    """
    settings, name = recipe.train, recipe.data.name
    _require_val(name)
    size = recipe.model.image_size or preset(recipe.model.preset).image_size
    images = readable(open_images(name, "train", recipe.data.train_images, size, settings.seed))
    config = recipe.model.resolve(len(images.labels))
    spec = PreprocessSpec(config.image_size, config.image_size)
    if settings.init:
        initial = read_info(resolve_checkpoint(settings.init))
        spec = dataclasses.replace(initial.preprocess, height=config.image_size, width=config.image_size)
    if len(images) < settings.batch_size:
        raise ConfigError(
            f"data {name}: {len(images)} training images are fewer than one batch of {settings.batch_size}; lower "
            "train.batch_size"
        )
    _check_curriculum(images, recipe, config)
    held_out = match_labels(open_images(name, "val", recipe.data.eval_images, size, settings.seed), images.labels, name)
    if settings.init:
        held_out = not_trained_on(held_out, resolve_checkpoint(settings.init), "val", name)
    unreadable: set[str] = set()
    # Fail now, not after the training, when no validation image is readable.
    if next(evaluation_batches(held_out, spec, 1, unreadable.add), None) is None:
        raise DataError(f"data {name}: none of its validation images can be read ({min(unreadable)})")
    share = Kept(Subset(held_out, tuple(range(group.rank, len(held_out), group.count))), KEPT_BYTES)
    notes = tuple(dict.fromkeys((*images.notes, *held_out.notes)))
    return TrainingData(images, spec, config, share, notes, unreadable)


def _require_val(name: str) -> None:
    """Raises DataError for a folder that has training images but no validation images."""
    splits = split_names(name)
    if "train" in splits and "val" not in splits:
        raise DataError(
            f"data {name}: has training images but none for validation, and training needs both; a class of two images or "
            "more gives one, or a folder named val or test beside train"
        )


def in_phase(images: ImageSet, phase: Phase) -> Scenes | MarkWindows:
    """Returns scenes, or windows of them, as a phase of a curriculum draws them.

    Raises:
        ConfigError: the images are no scenes, or the marks of the phase do not fit.
    """
    if not isinstance(images, Scenes):
        raise ConfigError("data.curriculum is for data 'scenes' alone; leave it out")
    _, scale, distractors, side = phase
    drawn = dataclasses.replace(images, scale=scale, distractors=int(distractors))
    return MarkWindows(drawn, int(side)) if side else drawn


def _check_curriculum(images: ImageSet, recipe: Recipe, config: GFTConfig) -> None:
    """Raises ConfigError for a curriculum that does not fit images and model, or whose last phase is not the task itself."""
    for number, phase in enumerate(recipe.data.curriculum):
        side = int(phase[3])
        if side and (config.stem != "conv" or side % config.patch_size):
            raise ConfigError(
                f"data.curriculum[{number}]: windows of {side} px need a model with stem 'conv' and patches that divide them, "
                f"found stem {config.stem!r} and patches of {config.patch_size} px"
            )
        try:
            last = in_phase(images, phase)
        except ConfigError as error:
            raise ConfigError(
                f"data.curriculum[{number}]: {error}" if isinstance(images, Scenes) else str(error)
            ) from None
        if number == len(recipe.data.curriculum) - 1 and last != images:
            assert isinstance(images, Scenes)
            raise ConfigError(
                f"data.curriculum[{number}]: the last phase must be the task itself, scale 1, {images.distractors} distractors "
                f"and whole images, found {list(phase[1:])}"
            )
