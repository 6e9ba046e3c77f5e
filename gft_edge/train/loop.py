"""The training loop: builds and starts a model, runs its steps, evaluates, logs, saves, resumes exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

from gft_edge.checkpoint import (
    CheckpointInfo,
    load_weights,
    read_info,
    read_weights,
    resolve_checkpoint,
    save_checkpoint,
)
from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import Recipe
from gft_edge.data.trained import write_trained
from gft_edge.distill.alignment import taught_blocks
from gft_edge.distill.distiller import Distiller, open_distiller
from gft_edge.distill.lift import folded
from gft_edge.errors import ConfigError
from gft_edge.files import writing
from gft_edge.model.adapt import adapt_weights
from gft_edge.model.backbone import architecture_of
from gft_edge.model.build import build_model
from gft_edge.model.gft import FocalGFT
from gft_edge.progress import Track, silent
from gft_edge.storage.locks import locked
from gft_edge.train.determinism import deterministic
from gft_edge.train.distributed import Workers, barrier, parallel, total, workers
from gft_edge.train.estimate import estimate_line, seconds_per_step
from gft_edge.train.log import Pace, cut_log, training_log
from gft_edge.train.optim import make_optimizer, set_rate, step_in_backward
from gft_edge.train.schedule import learning_rate, pixels_seen, seed_step
from gft_edge.train.state import (
    BEST,
    STATE,
    Progress,
    TrainingState,
    restore_state,
    save_state,
    started_without_state,
)
from gft_edge.train.steps import Stepper, make_mixup
from gft_edge.train.training_data import TrainingData, open_training_data

Report = Callable[[str], None]
"""Receives a line of text."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """The fixed facts of one training in one process.

    Attributes:
        recipe: model, data and settings.
        out: folder of the checkpoint.
        data: opened images, with the model's configuration.
        group: this process among all.
        state: model, optimiser, scaler and averages.
        report: receives lines of text.
        stepper: class that takes the steps.
        distiller: has the teacher, if there is one.
    """

    recipe: Recipe
    out: Path
    data: TrainingData
    group: Workers
    state: TrainingState
    report: Report
    stepper: type[Stepper]
    distiller: Distiller | None = None


def train(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    track: Track = silent,
    report: Report = lambda line: None,
    stop_after: int | None = None,
    stepper: type[Stepper] = Stepper,
) -> CheckpointInfo:
    """Trains by a recipe and writes a checkpoint folder.

    Under torchrun every process calls this; gradients are averaged, the first process writes. A step takes
    ``batch_size * accumulate`` images in each process.

    Args:
        recipe: model, data and settings.
        out: folder of the checkpoint, log.jsonl, state.pt (for resuming) and, with ``eval_every``, ``best``.
        resume: continue from state.pt; the result equals that of an uninterrupted run bit by bit, on a GPU if
            ``train.deterministic`` is on. A training that stopped before its first state restarts in its folder.
        track: progress display.
        report: receives a line of text now and then.
        stop_after: stop at this step of the schedule, with the state saved.
        stepper: takes the steps; another class may do less, to measure the rest.

    Raises:
        ConfigError: the recipe does not fit its data or its teacher, differs from the one being resumed, or another process
            trains into ``out``.
        ArtifactError: there is no state to resume, or no teacher.
        CheckFailed: the loss is NaN or infinite.
    """
    settings = recipe.train
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with workers() as group, _exclusive(out, group) as new, _repeatable(recipe, group):
        data = open_training_data(recipe, group)
        for note in data.notes if group.is_first else ():
            report(f"data: {note}")
        model, config = _started_model(recipe, data.config, group)
        say = report if group.is_first else lambda line: None
        distiller = open_distiller(recipe, model, config, data.spec, data.images, out, group.count, say)
        state = _state(model, recipe, config)
        run = _Run(recipe, out, dataclasses.replace(data, config=config), group, state, report, stepper, distiller)
        progress = _resumed(run, new) if resume else Progress()
        if settings.step_in_backward:
            if group.count > 1:
                raise ConfigError(
                    "train.step_in_backward is for one process: gradients are averaged after a backward pass"
                )
            step_in_backward(run.state.optimizer)
        data.unreadable.update(progress.unreadable)
        if group.is_first:
            write_trained(out, data.images, out, *([resolve_checkpoint(settings.init)] if settings.init else []))
            cut_log(out, progress.step)
        barrier()
        if group.is_first:
            report(_estimate(run, settings.steps - progress.step))
        first, started = progress.step, time.monotonic()
        _run_steps(run, progress, track, stop_after)
        return _finish(run, progress, first, started)


def _repeatable(recipe: Recipe, group: Workers) -> contextlib.AbstractContextManager[None]:
    if not recipe.train.deterministic:
        return contextlib.nullcontext()
    return deterministic(group.device, "set train.deterministic to false, and two runs may differ")


def _started_model(recipe: Recipe, config: GFTConfig, group: Workers) -> tuple[Any, GFTConfig]:
    """Builds the model with its first weights; returns it with its configuration, which names timm's architecture."""
    settings = recipe.train
    torch.manual_seed(settings.seed)
    model = build_model(config, recipe.model.pretrained, settings.drop_path)
    if settings.align and not (isinstance(model, FocalGFT) and taught_blocks(model)):
        raise ConfigError("train.align needs a focal model with a stage before its last block; set train.align to 0")
    config = dataclasses.replace(config, backbone=architecture_of(model, config.backbone))
    if settings.init:
        start = resolve_checkpoint(settings.init)
        try:
            weights = adapt_weights(read_weights(start), read_info(start).model, config)
        except ConfigError as error:
            raise ConfigError(f"train.init {settings.init}: {error}") from None
        load_weights(model, {**model.state_dict(), **weights}, f"checkpoint {start}")
    model.to(group.device).train()
    if settings.recompute:
        _recompute(model, config)
    return model, config


def _recompute(model: Any, config: GFTConfig) -> None:
    try:
        model.set_grad_checkpointing()
    except (AttributeError, AssertionError):  # timm's networks refuse in either way
        raise ConfigError(f"train.recompute: timm's {config.backbone} cannot recompute activations") from None


def _state(model: nn.Module, recipe: Recipe, config: GFTConfig) -> TrainingState:
    settings, device = recipe.train, next(model.parameters()).device
    return TrainingState(
        model,
        make_optimizer(model, config, settings),
        torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16"),
        ModelEmaV3(model, decay=settings.ema) if settings.ema else None,
    )


@contextlib.contextmanager
def _exclusive(out: Path, group: Workers) -> Iterator[bool]:
    """Creates the folder if it is missing and holds its lock in the first process; yields whether it is new.

    A folder that was created here and stays empty is removed.
    """
    new = not out.exists()
    barrier()  # no process creates the folder before every process has looked
    if not group.is_first:
        yield new
        return
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out, wait=0):
            yield new
    finally:
        if new:
            with contextlib.suppress(OSError):  # not empty: the training has begun
                out.rmdir()


def _resumed(run: _Run, new: bool) -> Progress:
    """Restores the saved state; starts at the first step where an earlier training stopped before it saved one."""
    restarting = not new and not (run.out / STATE).exists() and started_without_state(run.out)
    barrier()  # no process writes before every process has looked
    if restarting:
        if run.group.is_first:
            run.report(f"{run.out}: no state was saved yet; the training starts from the beginning")
        return Progress()
    return restore_state(run.out, run.recipe, run.state, run.group.device)


def _estimate(run: _Run, steps: int) -> str:
    """Returns how long the steps will take, in words."""
    batches = run.data.few_images(run.recipe, run.group)
    return estimate_line(seconds_per_step(run.state.model, run.data.config, run.recipe, batches), steps)


def _run_steps(run: _Run, progress: Progress, track: Track, stop_after: int | None) -> None:
    """Runs all steps after ``progress.step``; logs, evaluates, saves."""
    settings, config, group, state = run.recipe.train, run.data.config, run.group, run.state
    first = progress.step
    last = settings.steps if stop_after is None else min(settings.steps, stop_after)
    network = parallel(state.model, group, unused=config.variant == "published")
    mixup = make_mixup(settings, config)
    stepper = run.stepper(network, state, config, settings, mixup, distiller=run.distiller)
    batches = run.data.batches(run.recipe, group, range(first, last))
    seen = pixels_seen(run.recipe.data.curriculum, settings, config.image_size)
    log_every = min(50, max(1, settings.steps // 16))
    sums = torch.zeros(3, dtype=torch.float64, device=group.device)
    started = time.monotonic()
    pace = Pace(last - first)
    steps: Iterable[int] = range(first, last)
    if group.is_first:
        steps = track(steps, "train", last - first)
    with training_log(run.out, group.is_first, settings.tensorboard) as write:
        for step in steps:
            micro = [next(batches) for _ in range(settings.accumulate)]
            seed_step(settings.seed, step, group.rank)  # after the loader, which draws from torch when it starts
            set_rate(state.optimizer, learning_rate(settings, step, seen))
            sums += stepper.step(micro, step)
            progress.step = done = step + 1
            if group.is_first and (line := pace.step()):
                run.report(line)
            evaluating = bool(settings.eval_every) and done % settings.eval_every == 0
            saving = bool(settings.checkpoint_every) and done % settings.checkpoint_every == 0
            if done % log_every == 0 or done == last or evaluating or saving:
                stepper.watch.finish()
            if done % log_every == 0 or done == last or evaluating:
                loss, right, count = total(sums).tolist()
                sums.zero_()
                row = {
                    "step": done,
                    "loss": loss / count,
                    "train_top1": right / count,
                    "lr": learning_rate(settings, step, seen),
                }
                row["seconds"] = time.monotonic() - started
                if evaluating:
                    row |= _evaluate(run, progress)
                write(row)
                if group.is_first:
                    run.report(", ".join(f"{k} {v:.4g}" for k, v in row.items()))
            stopping = bool(settings.early_stop) and progress.stale >= settings.early_stop
            if group.is_first and (done == last or saving or stopping):
                progress.unreadable = sorted(run.data.unreadable)
                if run.distiller is not None:
                    run.distiller.finish()
                save_state(run.out, run.recipe, state, progress)
            if stopping:
                if group.is_first:
                    run.report(f"no improvement in {progress.stale} evaluations: stopped at step {done}")
                break


def _evaluate(run: _Run, progress: Progress) -> dict[str, float]:
    """Returns validation accuracy; keeps the best checkpoint and counts evaluations without improvement."""
    model, data = run.state.evaluated, run.data
    row = data.score(model)
    score = row["val_top1_budget"]
    if run.recipe.train.elastic:  # the checkpoint serves every budget
        score = (score + row["val_top1_full"]) / 2
    if score > progress.best:
        progress.best, progress.stale = score, 0
        if run.group.is_first:
            metrics: dict[str, Any] = {**row, "steps": progress.step}
            recipe = {"recipe": run.recipe.to_json()}
            info = CheckpointInfo(data.config, data.images.labels, data.spec, metrics, recipe)
            with folded(model):
                save_checkpoint(run.out / BEST, info, model)
            write_trained(run.out / BEST, None, run.out)
    else:
        progress.stale += 1
    return row


def _finish(run: _Run, progress: Progress, first: int, started: float) -> CheckpointInfo:
    """Evaluates and saves the trained model."""
    data, model = run.data, run.state.evaluated
    metrics: dict[str, Any] = data.score(model)
    metrics |= {
        "unreadable_images": len(data.unreadable),
        "budget": data.config.budget.id,
        "steps": progress.step,
    }
    provenance = {
        "recipe": run.recipe.to_json(),
        "data": {"train_images": len(data.images), "notes": list(data.notes)},
        "torch": torch.__version__,
        "timm": timm.__version__,
        "machine": platform.machine(),
        "processes": run.group.count,
        "seconds": time.monotonic() - started,
        "first_step": first,
    }
    info = CheckpointInfo(data.config, data.images.labels, data.spec, metrics, provenance)
    for text in sorted(data.unreadable):
        run.report(f"left out: {text}")
    if run.group.is_first:
        with folded(model):
            save_checkpoint(run.out, info, model)
    barrier()
    return info
