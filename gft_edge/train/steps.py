"""Takes optimiser steps: elastic budgets, mixed precision, accumulation, mixup and weight averaging."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from timm.data import Mixup
from timm.models.vision_transformer import VisionTransformer
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import TrainSection
from gft_edge.distill.alignment import model_alignment
from gft_edge.distill.distiller import Distiller
from gft_edge.distill.losses import label_loss, teacher_loss
from gft_edge.errors import CheckFailed
from gft_edge.model.baselines import TimmClassifier
from gft_edge.model.gft import FocalGFT, StageMaps
from gft_edge.train.casts import Place, cast_weights, places_of
from gft_edge.train.schedule import step_budgets
from gft_edge.train.state import TrainingState
from gft_edge.train.watch import LossWatch
from gft_edge.train.windows import window_logits

ALIGNED = 4
"""One image of so many gives the scores a target: a target costs a further pass with every patch."""


def _diverged(loss: float, step: int) -> CheckFailed:
    return CheckFailed(f"loss is {loss} at step {step}; lower train.lr or raise train.warmup_steps")


@dataclass(frozen=True)
class Stepper:
    """Takes the steps of one training.

    Args:
        network: computes logits; the model itself, or wrapped for several processes.
        state: model, optimiser, scaler and averages.
        config: of the model.
        settings: of the recipe.
        mixup: mixes images and labels; see :func:`make_mixup`.
        watch: checks the losses; call its ``finish`` before the model is used.
        distiller: has a teacher; None trains with the labels alone. Windows are learned from labels.
    """

    network: nn.Module
    state: TrainingState
    config: GFTConfig
    settings: TrainSection
    mixup: Mixup | None
    watch: LossWatch = field(default_factory=lambda: LossWatch(_diverged))
    distiller: Distiller | None = None

    def step(self, batches: Sequence[tuple[Tensor, Tensor]], number: int) -> Tensor:
        """Takes one optimiser step; returns loss and right answers summed over its images, and their number, on the device.

        Nothing in it makes the host wait for a GPU to finish this step.

        Raises:
            CheckFailed: the loss of this step, on a GPU that of the last one, is NaN or infinite.
        """
        settings, state = self.settings, self.state
        windows = batches[0][0].shape[-1] < self.config.image_size
        distiller = None if windows else self.distiller
        passes = [self.config.full_budget] if windows else step_budgets(self.config, settings, number)
        state.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, dtype=torch.float64, device=batches[0][0].device)
        for micro, (images, labels) in enumerate(batches):
            targets: Tensor = labels
            if self.mixup is not None:
                images, targets = self.mixup(images, labels)
            # Gradients are exchanged once per step, with the last backward pass.
            waiting = contextlib.ExitStack()
            if isinstance(self.network, nn.parallel.DistributedDataParallel):
                waiting.enter_context(self.network.no_sync())
            with waiting:
                teacher: Tensor | None = None
                for index, budget in enumerate(passes):
                    if micro == len(batches) - 1 and index == len(passes) - 1:
                        waiting.close()
                    maps = distiller is not None and distiller.needs_maps and index == 0
                    stages: list[StageMaps] = []
                    with self._weights(maps):  # until the backward pass ends: recomputed blocks read them again
                        with _autocast(images, settings):
                            if windows:
                                logits = window_logits(self.network, images, self.config, settings.seed, number)
                            elif maps:
                                logits, stages = self.network(images, budget, maps=True)
                            else:
                                logits = self.network(images, budget)
                        logits = logits.float()
                        if index == 0:
                            smoothing = settings.label_smoothing if self.mixup is None else 0.0  # Mixup smooths targets
                            loss = label_loss(logits, targets, smoothing)
                            if distiller is not None:
                                with _autocast(images, settings):
                                    loss = distiller.loss(loss, logits, images, stages, number * len(batches) + micro)
                            right = (logits.detach().argmax(1) == labels).sum()
                            sums[0] += loss.detach().double() * len(labels)
                            sums[1] += right
                            sums[2] += len(labels)
                            if len(passes) > 1:
                                teacher = logits.detach().softmax(dim=1)
                        else:
                            assert teacher is not None
                            loss = teacher_loss(logits, teacher)
                            if distiller is not None:
                                loss = distiller.consistency(loss)
                        state.scaler.scale(_share(loss, len(batches))).backward()
                    if settings.align and index == 0 and len(passes) > 1:
                        state.scaler.scale(_share(self._alignment(images, targets), len(batches))).backward()
        self.watch.see(sums[0], number)
        state.scaler.unscale_(state.optimizer)
        if settings.grad_clip:
            nn.utils.clip_grad_norm_(state.model.parameters(), settings.grad_clip, foreach=True)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if isinstance(state.average, ModelEmaV3):
            state.average.update(state.model)
        return sums

    @functools.cached_property
    def _places(self) -> list[Place]:
        model = self.state.model
        plain = isinstance(model, TimmClassifier) and isinstance(model.network, VisionTransformer)
        return places_of(model) if plain or isinstance(model, FocalGFT) else []

    def _weights(self, maps: bool) -> contextlib.AbstractContextManager[None]:
        """Casts the weights of a pass together, unless it computes maps, which read float32 weights."""
        if self.settings.precision == "fp32" or maps:
            return contextlib.nullcontext()
        return cast_weights(self._places, _half(self.settings))

    def _alignment(self, images: Tensor, targets: Tensor) -> Tensor:
        """Returns the weighted alignment loss of a part of a batch; its gradient reaches queries and keys alone."""
        model, count = self.state.model, -(-len(images) // ALIGNED)
        assert isinstance(model, FocalGFT)
        with _autocast(images, self.settings):
            return self.settings.align * model_alignment(model, images[:count], targets[:count])


def _half(settings: TrainSection) -> torch.dtype:
    return torch.float16 if settings.precision == "fp16" else torch.bfloat16


def _autocast(images: Tensor, settings: TrainSection) -> torch.autocast:
    return torch.autocast(images.device.type, dtype=_half(settings), enabled=settings.precision != "fp32")


def _share(loss: Tensor, batches: int) -> Tensor:
    """Returns a loss over the number of batches; without a division, whose launches cost time, where it is one."""
    return loss if batches == 1 else loss / batches


def make_mixup(settings: TrainSection, config: GFTConfig) -> Mixup | None:
    """Returns timm's Mixup for a recipe with mixup or cutmix, else None."""
    if not settings.mixup and not settings.cutmix:
        return None
    return Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        label_smoothing=settings.label_smoothing,
        num_classes=config.num_classes,
    )
