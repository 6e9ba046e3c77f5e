"""The training loop: AdamW, warm-up and cosine, label smoothing, sampled token budgets, exact resume."""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gft_edge.budget import MIN_TOKENS, TokenBudget
from gft_edge.checkpoint import (
    CheckpointInfo,
    load_weights,
    read_info,
    read_weights,
    resolve_checkpoint,
    save_checkpoint,
)
from gft_edge.config import GFTConfig, Recipe, TrainSection
from gft_edge.data.datasets import evaluation_batches, open_images, require_labels, training_batches
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import replacing
from gft_edge.model.build import build_model
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.train.metrics import accuracy

logger = logging.getLogger(__name__)

STATE = "state.pt"
LOG = "log.jsonl"


def learning_rate(train: TrainSection, step: int) -> float:
    """Linear warm-up over ``warmup_steps``, then a cosine from ``lr`` to ``min_lr`` at the last step."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    done = (step - train.warmup_steps) / max(1, train.steps - 1 - train.warmup_steps)
    return train.min_lr + 0.5 * (train.lr - train.min_lr) * (1 + math.cos(math.pi * min(done, 1.0)))


def sampled_budgets(config: GFTConfig, train: TrainSection, step: int) -> list[TokenBudget]:
    """Budgets of one step after the full one: the smallest, one drawn between, or both; fixed by seed and step.

    Elastic training: the full budget learns from the labels, the others from the full one's logits.
    """
    if not train.elastic or not config.stages or step < train.elastic_start * train.steps:
        return []
    num_patches = config.num_patches
    smallest = [max(MIN_TOKENS, int(k * train.smallest_ratio)) for k in config.budget.keep]
    rng = np.random.default_rng([train.seed, 7, step])
    low = np.array(smallest) / num_patches
    # One share of the way from smallest to full, jittered per stage, then made non-increasing.
    way = np.clip(rng.random() + rng.uniform(-0.15, 0.15, len(low)), 0, 1)
    drawn = np.minimum.accumulate(np.maximum(((low + way * (1 - low)) * num_patches).astype(int), smallest))
    both = [TokenBudget(tuple(smallest), num_patches), TokenBudget(tuple(int(k) for k in drawn), num_patches)]
    return both if train.elastic_samples == 2 else [both[step % 2]]


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels only, not on norms, biases, position embedding or class token."""
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or name in ("pos_embed", "cls_token") or name.endswith("smooth.weight")
        (rest if plain else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    budgets: list[TokenBudget],
    full: TokenBudget,
    train: TrainSection,
) -> tuple[float, float]:
    """One optimiser step; returns the loss at the full budget and the share of correct answers."""
    images, labels = batch
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=train.precision == "bf16")
    optimizer.zero_grad(set_to_none=True)
    with autocast:
        logits = model(images, full).float()
    loss = F.cross_entropy(logits, labels, label_smoothing=train.label_smoothing)
    if not math.isfinite(loss.item()):
        raise ArithmeticError(f"loss is {loss.item()}; lower train.lr or raise train.warmup_steps")
    loss.backward()
    teacher = logits.detach().softmax(dim=1)
    for budget in budgets:
        with autocast:
            student = model(images, budget).float()
        F.cross_entropy(student, teacher).backward()
    nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip)
    optimizer.step()
    return loss.item(), accuracy(logits.detach().numpy(), labels.numpy())


@torch.no_grad()
def evaluate_torch(
    model: nn.Module,
    batches: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]],
    budget: TokenBudget | None,
) -> float:
    """Share of correct answers over preprocessed batches; leaves the model in the mode it was in."""
    was_training = model.training
    model.eval()
    right = total = 0
    for images, labels in batches:
        logits = model(torch.from_numpy(images), budget)
        right += int((logits.argmax(1).numpy() == labels).sum())
        total += len(labels)
    model.train(was_training)
    return right / total


def train(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    track: Track = silent,
    report: Callable[[str], None] = lambda line: None,
    stop_after: int | None = None,
) -> CheckpointInfo:
    """Trains by a recipe and writes a checkpoint folder.

    Args:
        recipe: what, on which data, how.
        out: folder of the checkpoint, log.jsonl and state.pt (what resuming needs).
        resume: go on from state.pt; the result equals that of an uninterrupted run.
        track: progress display.
        report: receives a line of text now and then.
        stop_after: leave off after this many steps of the schedule, with the state saved.

    Raises:
        ConfigError: the recipe does not fit its data, or is not the one being resumed.
        ArtifactError: nothing to resume.
    """
    settings = recipe.train
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    probe = open_images(recipe.data.name, "train", recipe.data.train_images, 96, settings.seed)
    config = recipe.model.resolve(len(probe.labels))
    spec = PreprocessSpec(config.image_size, config.image_size)
    if settings.init:
        start = resolve_checkpoint(settings.init)
        initial = read_info(start)
        spec = initial.preprocess
        if initial.model != config:
            raise ConfigError(f"train.init {settings.init}: that checkpoint is of another model than the recipe's")
    size = config.image_size
    images = open_images(recipe.data.name, "train", recipe.data.train_images, size, settings.seed)
    if len(images) < settings.batch_size:
        raise ConfigError(f"data: {len(images)} training images are fewer than one batch of {settings.batch_size}")
    held_out = open_images(recipe.data.name, "val", recipe.data.eval_images, size, settings.seed)
    require_labels(held_out, images.labels, recipe.data.name)
    val = list(evaluation_batches(held_out, spec))

    model = build_model(config)
    if settings.init:
        load_weights(model, read_weights(start), f"checkpoint {start}")
    model.train()
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.98), fused=True
    )
    first = _restore(out, recipe, model, optimizer) if resume else 0
    last = settings.steps if stop_after is None else min(settings.steps, stop_after)
    full = TokenBudget.full(len(config.stages), config.num_patches) if config.stages else config.budget
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    losses: list[tuple[float, float]] = []
    log_every = min(50, max(1, settings.steps // 16))
    batches = training_batches(
        images,
        spec,
        settings.batch_size,
        range(first, last),
        settings.seed,
        recipe.data.augment,
        recipe.data.num_workers,
    )
    with (out / LOG).open("a", encoding="utf-8") as log:
        for step, batch in zip(range(first, last), track(batches, "train", last - first)):
            rate = learning_rate(settings, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            budgets = sampled_budgets(config, settings, step)
            losses.append(_train_step(model, optimizer, batch, budgets, full, settings))
            done = step + 1
            if done % log_every == 0 or done == last:
                loss, top1 = np.mean(losses, axis=0)
                losses.clear()
                row = {"step": done, "loss": float(loss), "train_top1": float(top1), "lr": rate}
                row["seconds"] = time.monotonic() - started
                if settings.eval_every and done % settings.eval_every == 0:
                    row["val_top1_full"] = evaluate_torch(model, val, full)
                    row["val_top1_budget"] = evaluate_torch(model, val, config.budget)
                log.write(json.dumps(row) + "\n")
                log.flush()
                report(", ".join(f"{k} {v:.4g}" for k, v in row.items()))
            if done == last or (settings.checkpoint_every and done % settings.checkpoint_every == 0):
                _save_state(out, recipe, model, optimizer, done)
    metrics = {
        "val_images": len(held_out),
        "val_top1_full": evaluate_torch(model, val, full),
        "val_top1_budget": evaluate_torch(model, val, config.budget),
        "budget": config.budget.id,
        "steps": last,
    }
    provenance = {
        "recipe": recipe.to_json(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "machine": platform.machine(),
        "seconds": time.monotonic() - started,
        "first_step": first,
    }
    info = CheckpointInfo(config, images.labels, spec, metrics, provenance)
    save_checkpoint(out, info, model)
    return info


def _save_state(out: Path, recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {
        "step": step,
        "recipe": json.dumps(recipe.to_json(), sort_keys=True),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    with replacing(out / STATE) as temporary:
        torch.save(state, temporary)


def _restore(out: Path, recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    file = out / STATE
    try:
        state = torch.load(file, weights_only=True)
        step, text = int(state["step"]), state["recipe"]
        weights, moments, rng = state["model"], state["optimizer"], state["rng"]
    except FileNotFoundError:
        raise ArtifactError(f"resume: {file} does not exist; start without --resume") from None
    except Exception as error:  # torch.load raises whatever the damaged bytes lead it to
        raise ArtifactError(
            f"resume: {file} is damaged ({type(error).__name__}); start again in another folder"
        ) from None
    if text != json.dumps(recipe.to_json(), sort_keys=True):
        raise ConfigError(f"resume: {file} was made by another recipe or other --set values")
    load_weights(model, weights, f"resume: {file}")
    optimizer.load_state_dict(moments)
    torch.set_rng_state(rng)
    return step
