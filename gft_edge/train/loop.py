"""The training loop: elastic token budgets, mixed precision, accumulation, averaging, several processes, exact resume."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

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
from gft_edge.config.recipe import Recipe, TrainSection
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import ImageSet, Subset, match_labels, open_images, readable, split_names
from gft_edge.data.trained import not_trained_on, write_trained
from gft_edge.data.training import training_batches
from gft_edge.errors import CheckFailed, ConfigError, DataError
from gft_edge.files import writing
from gft_edge.locks import locked
from gft_edge.model.adapt import adapt_weights
from gft_edge.model.backbone import architecture_of
from gft_edge.model.build import build_model
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.runtime.finite import require_finite
from gft_edge.train.distributed import Workers, barrier, parallel, total, workers
from gft_edge.train.log import Pace, cut_log, training_log
from gft_edge.train.optim import make_optimizer, set_rate, step_in_backward
from gft_edge.train.schedule import learning_rate, seed_step, step_budgets
from gft_edge.train.state import BEST, STATE, Parts, Progress, restore_state, save_state, started_without_state

logger = logging.getLogger(__name__)

Batches = Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]


@torch.no_grad()
def count_right(model: nn.Module, batches: Batches, budgets: Sequence[TokenBudget | None]) -> tuple[list[int], int]:
    """Right answers at each budget and the number of images, over all processes; leaves the model's mode alone.

    Args:
        model: in any mode; evaluated in eval mode.
        batches: preprocessed images and labels, read once.
        budgets: None is the model's own.

    Raises:
        CheckFailed: logits that are NaN or infinite.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    counts = torch.zeros(len(budgets) + 1, dtype=torch.float64)
    for images, labels in batches:
        tensor = torch.from_numpy(images).to(device)
        for index, budget in enumerate(budgets):
            logits = model(tensor, budget).float().cpu().numpy()
            require_finite(logits, "evaluation" if budget is None else f"evaluation at {budget.id}")
            counts[index] += int((logits.argmax(axis=1) == labels).sum())
        counts[-1] += len(labels)
    model.train(was_training)
    *right, images_seen = (int(value) for value in total(counts).tolist())
    return right, images_seen


def evaluate_torch(model: nn.Module, batches: Batches, budget: TokenBudget | None) -> float:
    """Share of right answers at one budget; see :func:`count_right`."""
    right, images = count_right(model, batches, [budget])
    return right[0] / images


@dataclasses.dataclass(frozen=True)
class _Data:
    """Training images, this process's share of the validation images, and what is wrong with unreadable files.

    ``notes`` says how the images were found and what was left out.
    """

    images: ImageSet
    spec: PreprocessSpec
    config: GFTConfig
    val: ImageSet
    notes: tuple[str, ...]
    unreadable: set[str]

    def score(self, model: nn.Module) -> dict[str, float]:
        """Validation accuracy at the full and at the configured budget, all processes together."""
        batches = evaluation_batches(self.val, self.spec, problem=self.unreadable.add)
        right, images = count_right(model, batches, [self.config.full_budget, self.config.budget])
        return {"val_top1_full": right[0] / images, "val_top1_budget": right[1] / images, "val_images": images}


def _open_data(recipe: Recipe, group: Workers) -> _Data:
    """Raises ConfigError or DataError when recipe, data and starting checkpoint do not fit each other."""
    settings, name = recipe.train, recipe.data.name
    _require_val(name)
    probe = open_images(name, "train", recipe.data.train_images, 96, settings.seed)
    config = recipe.model.resolve(len(probe.labels))
    spec = PreprocessSpec(config.image_size, config.image_size)
    if settings.init:
        initial = read_info(resolve_checkpoint(settings.init))
        spec = dataclasses.replace(initial.preprocess, height=config.image_size, width=config.image_size)
    size = config.image_size
    # Only rendered images depend on the size; files are listed once.
    images = open_images(name, "train", recipe.data.train_images, size, settings.seed) if _rendered(name) else probe
    images = readable(images)
    if len(images) < settings.batch_size:
        raise ConfigError(
            f"data {name}: {len(images)} training images are fewer than one batch of {settings.batch_size}; lower "
            "train.batch_size"
        )
    held_out = match_labels(open_images(name, "val", recipe.data.eval_images, size, settings.seed), images.labels, name)
    if settings.init:
        held_out = not_trained_on(held_out, resolve_checkpoint(settings.init), "val", name)
    unreadable: set[str] = set()
    # One readable image is enough to know, now rather than after the training.
    if next(evaluation_batches(held_out, spec, 1, unreadable.add), None) is None:
        raise DataError(f"data {name}: none of its validation images can be read ({min(unreadable)})")
    share = Subset(held_out, tuple(range(group.rank, len(held_out), group.count)))
    notes = tuple(dict.fromkeys((*images.notes, *held_out.notes)))
    return _Data(images, spec, config, share, notes, unreadable)


def _require_val(name: str) -> None:
    """Refuses a folder with training images that has none to validate with."""
    parts = split_names(name)
    if "train" in parts and "val" not in parts:
        raise DataError(
            f"data {name}: has training images but none for validation, and training needs both; a class of two images or "
            "more gives one, or a folder named val or test beside train"
        )


def _rendered(name: str) -> bool:
    return name.partition(":")[0] == "typefaces"


def train(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    track: Track = silent,
    report: Callable[[str], None] = lambda line: None,
    stop_after: int | None = None,
) -> CheckpointInfo:
    """Trains by a recipe and writes a checkpoint folder.

    Under torchrun every process calls this; gradients are averaged, the first process writes. A step takes
    ``batch_size * accumulate`` images in each process.

    Args:
        recipe: what, on which data, how.
        out: folder of the checkpoint, log.jsonl, state.pt (what resuming needs) and, with ``eval_every``, ``best``.
        resume: go on from state.pt; the result equals that of an uninterrupted run bit by bit. A folder of a training that was
            stopped before its first state is started in again.
        track: progress display.
        report: receives a line of text now and then.
        stop_after: leave off after this many steps of the schedule, with the state saved.

    Raises:
        ConfigError: the recipe does not fit its data, or is not the one being resumed, or another process trains into ``out``.
        ArtifactError: nothing to resume.
        CheckFailed: the loss is no number any more.
    """
    settings = recipe.train
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with workers() as group, _only_writer(out, group) as new:
        data = _open_data(recipe, group)
        config = data.config
        for note in data.notes if group.is_first else ():
            report(f"data: {note}")
        torch.manual_seed(settings.seed)
        model = build_model(config, recipe.model.pretrained, settings.drop_path)
        config = dataclasses.replace(config, backbone=architecture_of(model, config.backbone))
        data = dataclasses.replace(data, config=config)
        if settings.init:
            start = resolve_checkpoint(settings.init)
            try:
                weights = adapt_weights(read_weights(start), read_info(start).model, config)
            except ConfigError as error:
                raise ConfigError(f"train.init {settings.init}: {error}") from None
            load_weights(model, {**model.state_dict(), **weights}, f"checkpoint {start}")
        model.to(group.device).train()
        if settings.recompute:
            _require_recompute(model, config)
        parts = Parts(
            model,
            make_optimizer(model, config, settings),
            torch.amp.GradScaler(group.device.type, enabled=settings.precision == "fp16"),
            ModelEmaV3(model, decay=settings.ema) if settings.ema else None,
        )
        progress = _start(out, recipe, parts, group, new, report) if resume else Progress()
        if settings.step_in_backward:
            if group.count > 1:
                raise ConfigError(
                    "train.step_in_backward is for one process: gradients are averaged after a backward pass"
                )
            step_in_backward(parts.optimizer)
        data.unreadable.update(progress.unreadable)
        if group.is_first:
            write_trained(out, data.images, out, *([resolve_checkpoint(settings.init)] if settings.init else []))
            cut_log(out, progress.step)
        barrier()
        first, started = progress.step, time.monotonic()
        _run_steps(recipe, out, data, group, parts, progress, track, report, stop_after)
        final = _evaluated(parts)
        metrics: dict[str, Any] = data.score(final)
        metrics |= {
            "unreadable_images": len(data.unreadable),
            "budget": config.budget.id,
            "steps": progress.step,
        }
        provenance = {
            "recipe": recipe.to_json(),
            "data": {"train_images": len(data.images), "notes": list(data.notes)},
            "torch": torch.__version__,
            "timm": timm.__version__,
            "machine": platform.machine(),
            "processes": group.count,
            "seconds": time.monotonic() - started,
            "first_step": first,
        }
        info = CheckpointInfo(config, data.images.labels, data.spec, metrics, provenance)
        for text in sorted(data.unreadable):
            report(f"left out: {text}")
        if group.is_first:
            save_checkpoint(out, info, final)
        barrier()
        return info


@contextlib.contextmanager
def _only_writer(out: Path, group: Workers) -> Iterator[bool]:
    """Makes the folder, if it is new, and holds its lock in the first process; yields whether it is new.

    A folder that was made here and stays empty is removed.
    """
    new = not out.exists()
    barrier()  # nobody makes it before everybody has looked
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


def _start(
    out: Path, recipe: Recipe, parts: Parts, group: Workers, new: bool, report: Callable[[str], None]
) -> Progress:
    """Where to begin: behind the saved state, or at the first step where an earlier training was killed before its first one."""
    begun = not new and not (out / STATE).exists() and started_without_state(out)
    barrier()  # nobody writes before everybody has looked
    if begun:
        if group.is_first:
            report(f"{out}: no state was saved yet; the training starts from the beginning")
        return Progress()
    return restore_state(out, recipe, parts, group.device)


def _require_recompute(model: Any, config: GFTConfig) -> None:
    try:
        model.set_grad_checkpointing()
    except (AttributeError, AssertionError):  # how timm's networks say that they cannot
        raise ConfigError(f"train.recompute: timm's {config.backbone} cannot compute activations anew") from None


def _evaluated(parts: Parts) -> nn.Module:
    """What is measured and saved: the averaged weights where there are some."""
    return parts.average.module if isinstance(parts.average, ModelEmaV3) else parts.model


def _run_steps(
    recipe: Recipe,
    out: Path,
    data: _Data,
    group: Workers,
    parts: Parts,
    progress: Progress,
    track: Track,
    report: Callable[[str], None],
    stop_after: int | None,
) -> None:
    """All steps from ``progress.step`` on; logs, evaluates, saves."""
    settings, config = recipe.train, data.config
    first = progress.step
    last = settings.steps if stop_after is None else min(settings.steps, stop_after)
    network = parallel(parts.model, group, unused=config.variant == "published")
    mixup = _mixup(settings, config)
    batches = _micro_batches(recipe, data, group, range(first, last))
    log_every = min(50, max(1, settings.steps // 16))
    sums = torch.zeros(3, dtype=torch.float64)
    started = time.monotonic()
    pace = Pace(last - first)
    steps: Iterable[int] = range(first, last)
    if group.is_first:
        steps = track(steps, "train", last - first)
    with training_log(out, group.is_first, settings.tensorboard) as write:
        for step in steps:
            micro = [next(batches) for _ in range(settings.accumulate)]
            seed_step(settings.seed, step, group.rank)  # after the loader, which draws from torch when it starts
            set_rate(parts.optimizer, learning_rate(settings, step))
            sums += _step(network, parts, micro, mixup, step, data, settings)
            progress.step = done = step + 1
            if group.is_first and (line := pace.step()):
                report(line)
            evaluating = bool(settings.eval_every) and done % settings.eval_every == 0
            if done % log_every == 0 or done == last or evaluating:
                loss, right, count = total(sums).tolist()
                sums.zero_()
                row = {
                    "step": done,
                    "loss": loss / count,
                    "train_top1": right / count,
                    "lr": learning_rate(settings, step),
                }
                row["seconds"] = time.monotonic() - started
                if evaluating:
                    row |= _evaluate(recipe, out, data, group, parts, progress)
                write(row)
                if group.is_first:
                    report(", ".join(f"{k} {v:.4g}" for k, v in row.items()))
            stopping = bool(settings.early_stop) and progress.stale >= settings.early_stop
            saving = bool(settings.checkpoint_every) and done % settings.checkpoint_every == 0
            progress.unreadable = sorted(data.unreadable)
            if group.is_first and (done == last or saving or stopping):
                save_state(out, recipe, parts, progress)
            if stopping:
                report(f"no better for {progress.stale} evaluations: stopped at step {done}")
                break


def _micro_batches(recipe: Recipe, data: _Data, group: Workers, steps: range) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's batches: ``accumulate`` per step, interleaved with the other processes' ones."""
    settings = recipe.train
    per_step = settings.accumulate * group.count
    mine = [
        step * per_step + micro * group.count + group.rank for step in steps for micro in range(settings.accumulate)
    ]
    loader = training_batches(
        data.images,
        data.spec,
        settings.batch_size,
        mine,
        settings.seed,
        recipe.data.augment,
        recipe.data.num_workers,
        data.unreadable.add,
    )
    for images, labels in loader:
        yield images.to(group.device), labels.to(group.device)


def _step(
    network: nn.Module,
    parts: Parts,
    batches: list[tuple[Tensor, Tensor]],
    mixup: Mixup | None,
    step: int,
    data: _Data,
    settings: TrainSection,
) -> Tensor:
    """One optimiser step; returns loss and right answers summed over its images, and their number."""
    passes = step_budgets(data.config, settings, step)
    parts.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(3, dtype=torch.float64)
    for number, (images, labels) in enumerate(batches):
        targets: Tensor = labels
        if mixup is not None:
            images, targets = mixup(images, labels)
        # Gradients are exchanged once per step, with the last backward pass.
        waiting = contextlib.ExitStack()
        if isinstance(network, nn.parallel.DistributedDataParallel):
            waiting.enter_context(network.no_sync())
        with waiting:
            teacher: Tensor | None = None
            for index, budget in enumerate(passes):
                if number == len(batches) - 1 and index == len(passes) - 1:
                    waiting.close()
                with _autocast(images, settings):
                    logits = network(images, budget)
                logits = logits.float()
                if teacher is None:
                    smoothing = settings.label_smoothing if mixup is None else 0.0  # Mixup smooths its targets itself
                    loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
                    teacher = logits.detach().softmax(dim=1)
                    right = int((logits.detach().argmax(1) == labels).sum())
                    sums += torch.tensor([loss.item() * len(labels), right, len(labels)], dtype=torch.float64)
                else:
                    loss = F.cross_entropy(logits, teacher)
                parts.scaler.scale(loss / len(batches)).backward()
    if not math.isfinite(sums[0].item()):
        raise CheckFailed(f"loss is {sums[0].item()} at step {step}; lower train.lr or raise train.warmup_steps")
    parts.scaler.unscale_(parts.optimizer)
    if settings.grad_clip:
        nn.utils.clip_grad_norm_(parts.model.parameters(), settings.grad_clip)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    if isinstance(parts.average, ModelEmaV3):
        parts.average.update(parts.model)
    return sums


def _autocast(images: Tensor, settings: TrainSection) -> torch.autocast:
    dtype = torch.float16 if settings.precision == "fp16" else torch.bfloat16
    return torch.autocast(images.device.type, dtype=dtype, enabled=settings.precision != "fp32")


def _mixup(settings: TrainSection, config: GFTConfig) -> Mixup | None:
    if not settings.mixup and not settings.cutmix:
        return None
    return Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        label_smoothing=settings.label_smoothing,
        num_classes=config.num_classes,
    )


def _evaluate(
    recipe: Recipe, out: Path, data: _Data, group: Workers, parts: Parts, progress: Progress
) -> dict[str, float]:
    """Validation accuracy; keeps the best checkpoint and counts evaluations without improvement."""
    model = _evaluated(parts)
    row = data.score(model)
    score = row["val_top1_budget"]
    if recipe.train.elastic:  # the checkpoint has to serve every budget
        score = (score + row["val_top1_full"]) / 2
    if score > progress.best:
        progress.best, progress.stale = score, 0
        if group.is_first:
            metrics: dict[str, Any] = {**row, "steps": progress.step}
            info = CheckpointInfo(data.config, data.images.labels, data.spec, metrics, {"recipe": recipe.to_json()})
            save_checkpoint(out / BEST, info, model)
            write_trained(out / BEST, None, out)
    else:
        progress.stale += 1
    return row
