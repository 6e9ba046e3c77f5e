"""Trains the plain network on smaller images, from the weights of a checkpoint; resumable."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gft_edge.benchmarks.experiments.resolution.curriculum import fitting_curriculum
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import (
    CheckpointInfo,
    load_weights,
    read_info,
    read_weights,
    resolve_checkpoint,
    save_checkpoint,
)
from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection
from gft_edge.data.datasets import open_images
from gft_edge.data.sets import ImageSet, Kept
from gft_edge.data.training import BatchOptions, training_batches
from gft_edge.errors import ConfigError
from gft_edge.evaluation import torch_threads
from gft_edge.files import writing
from gft_edge.model.adapt import adapt_weights
from gft_edge.model.build import build_model, logits_function
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.runtime.accuracy import measure_accuracy
from gft_edge.train.log import cut_log, training_log
from gft_edge.train.optim import make_optimizer, set_rate
from gft_edge.train.schedule import Phase, learning_rate, phases, pixels_seen, seed_step
from gft_edge.train.state import STATE, Progress, TrainingState, restore_state, save_state
from gft_edge.train.steps import Stepper
from gft_edge.train.training_data import in_phase

TRAIN_IMAGES = 2_000_000
"""Of rendered data; of files all are taken."""
KEPT_BYTES = 1 << 27
SAVE_EVERY = 25


@dataclass(frozen=True)
class PlainOptions:
    """Settings of the training of the plain network.

    Attributes:
        steps, batch_size: optimiser steps and images in each.
        lr: highest learning rate; it warms up over a twentieth of the steps and falls on a cosine by the pixels seen.
        eval_every, eval_images: validation while it trains; after 0 steps only at the end.
        seed: of the order of the images.
        threads: of torch.
    """

    steps: int = 1000
    batch_size: int = 48
    lr: float = 5e-4
    eval_every: int = 100
    eval_images: int = 400
    seed: int = 1
    threads: int = 1


def plain_config(config: GFTConfig, size: int) -> GFTConfig:
    """Returns a focal configuration on images of ``size`` pixels that keeps every patch: the plain ViT.

    Raises:
        ConfigError: the size is no multiple of a patch, or not below the model's own.
    """
    patch = config.patch_size
    if not patch < size < config.image_size or size % patch:
        raise ConfigError(
            f"size {size}: must be a multiple of {patch} px, the side of a patch, above {patch} px and below the model's "
            f"{config.image_size} px"
        )
    return every_patch(config, size)


def every_patch(config: GFTConfig, size: int) -> GFTConfig:
    """Returns a focal configuration at another size whose budget keeps every patch."""
    budget = TokenBudget.full(len(config.stages), (size // config.patch_size) ** 2)
    return dataclasses.replace(config, image_size=size, budget=budget)


def smaller_spec(spec: PreprocessSpec, size: int) -> PreprocessSpec:
    """Returns the preprocessing of the same images to another size."""
    return dataclasses.replace(spec, height=size, width=size)


def train_plain(
    start: str | Path,
    size: int,
    data: str,
    out: Path,
    options: PlainOptions | None = None,
    track: Track = silent,
    report: Callable[[str], None] = lambda line: None,
) -> CheckpointInfo:
    """Trains a checkpoint's weights as a plain network on the same images at ``size`` pixels, and writes a checkpoint folder.

    An interrupted training continues in its folder. The images are drawn in the size that the checkpoint was trained on and then
    resized, as the test images will be. Scenes begin with windows and larger marks, see :func:`fitting_curriculum`.

    Args:
        start: folder of a focal checkpoint, or ``"builtin"``.
        size: pixels.
        data: name of the training data.
        out: folder of the checkpoint, its state and log.jsonl.
        options: defaults where None.
        track: shows progress.
        report: receives lines of text.

    Raises:
        ConfigError: the size does not fit, or the folder holds a training with other settings.
        CheckFailed: the loss is NaN or infinite.
    """
    options = options or PlainOptions()
    path = resolve_checkpoint(start)
    first = read_info(path)
    config, spec = plain_config(first.model, size), smaller_spec(first.preprocess, size)
    images = open_images(data, "train", TRAIN_IMAGES, first.model.image_size)
    held_out = Kept(open_images(data, "val", options.eval_images, first.model.image_size), KEPT_BYTES)
    recipe = _recipe(path, data, fitting_curriculum(images, first.model, size), config, options)
    settings = recipe.train
    model = build_model(config)
    load_weights(model, adapt_weights(read_weights(path), first.model, config), f"checkpoint {path}")
    optimizer = make_optimizer(model, config, settings)
    state = TrainingState(model.train(), optimizer, torch.amp.GradScaler("cpu", enabled=False), None)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    progress = restore_state(out, recipe, state, torch.device("cpu")) if (out / STATE).exists() else Progress()
    if progress.step:
        report(f"{out}: continues after step {progress.step}")
    cut_log(out, progress.step)

    def score() -> float:
        model.eval()
        try:
            return measure_accuracy([(str(out), logits_function(model))], held_out, first.labels, spec)[0].top1
        finally:
            model.train()

    steps = range(progress.step, settings.steps)
    batches = _batches(images, first.model.image_size, spec, recipe, steps)
    seen = pixels_seen(recipe.data.curriculum, settings, first.model.image_size)
    stepper = Stepper(model, state, config, settings, None)
    sums, began = torch.zeros(3, dtype=torch.float64), time.monotonic()
    with torch_threads(options.threads), training_log(out, True, False) as write:
        for step in track(steps, "train", len(steps)):
            batch = next(batches)
            seed_step(settings.seed, step, 0)  # after the loader, which draws from torch when it starts
            rate = learning_rate(settings, step, seen)
            set_rate(state.optimizer, rate)
            sums += stepper.step([batch], step)
            progress.step = done = step + 1
            last = done == settings.steps
            if last or (settings.eval_every and done % settings.eval_every == 0):
                stepper.watch.finish()
                loss, right, count = sums.tolist()
                sums.zero_()
                row = {"step": done, "loss": loss / count, "train_top1": right / count, "lr": rate}
                row |= {"seconds": time.monotonic() - began, "val_top1": score()}
                write(row)
                report(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
            if last or done % SAVE_EVERY == 0:
                save_state(out, recipe, state, progress)
        metrics = {"val_top1": score(), "steps": settings.steps}
    # The model of the recipe is the starting checkpoint's, not a preset's.
    settings_used = {name: part for name, part in recipe.to_json().items() if name != "model"}
    info = CheckpointInfo(config, first.labels, spec, metrics, {"recipe": settings_used})
    save_checkpoint(out, info, model.eval())
    return info


def _recipe(path: Path, data: str, curriculum: tuple[Phase, ...], config: GFTConfig, options: PlainOptions) -> Recipe:
    """Returns the settings of the training, by which its state knows whether it fits."""
    settings = TrainSection(
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        min_lr=min(1e-5, options.lr),
        weight_decay=0.03,
        warmup_steps=max(1, options.steps // 20),
        label_smoothing=0.05,
        elastic=False,
        precision="bf16",
        eval_every=options.eval_every,
        checkpoint_every=SAVE_EVERY,
        seed=options.seed,
        threads=options.threads,
        init=str(path),
    )
    model = ModelSection(image_size=config.image_size, budget=config.budget.id)
    return Recipe(model, DataSection(data, TRAIN_IMAGES, options.eval_images, curriculum=curriculum), settings)


def _batches(
    images: ImageSet, whole: int, spec: PreprocessSpec, recipe: Recipe, steps: range
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches of these steps; a window is resized by the same factor as the whole image."""
    settings = recipe.train
    options = BatchOptions(settings.batch_size, settings.seed, num_workers=0)
    curriculum = recipe.data.curriculum
    for phase, part in phases(curriculum, settings, steps) if curriculum else [((0.0, 1.0, 0.0, 0.0), steps)]:
        window = int(phase[3])
        side = window * spec.height // whole if window else spec.height
        drawn = in_phase(images, phase) if curriculum else images
        yield from training_batches(drawn, smaller_spec(spec, side), part, options)
