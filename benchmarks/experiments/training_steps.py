"""Training steps of the plain ViT and the focal model: that of ``gft-edge train``, and the usual loop of PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import TrainSection
from gft_edge.errors import CheckFailed
from gft_edge.model.backbone import timm_vit
from gft_edge.model.baselines import TimmClassifier
from gft_edge.model.build import build_model
from gft_edge.train.optim import make_optimizer
from gft_edge.train.state import TrainingState
from gft_edge.train.steps import Stepper
from gft_edge.train.watch import LossWatch

Step = Callable[[], Tensor]
"""Takes a step; returns a tensor on the device."""


class PlainViT(TimmClassifier):
    """timm's Vision Transformer in the sizes of a focal model, as ``gft-edge train`` trains a baseline."""

    def __init__(self, config: GFTConfig) -> None:
        nn.Module.__init__(self)
        self.config = GFTConfig(config.backbone, config.image_size, config.num_classes, variant="timm")
        self.network = timm_vit(config, False, 0.0, num_classes=config.num_classes)


def focal(config: GFTConfig, pruned: bool = True) -> nn.Module:
    """Returns the focal model; its own budget keeps every patch unless ``pruned``."""
    return build_model(config if pruned else dataclasses.replace(config, budget=config.full_budget))


class _Unwatched(LossWatch):
    def see(self, loss: Tensor, step: int) -> None:
        pass


def train_step(model: nn.Module, images: Tensor, labels: Tensor, watched: bool = True) -> Step:
    """Returns the step of ``gft-edge train`` in BF16 at the model's own budget: label smoothing, clipped gradients, AdamW.

    Args:
        model: :class:`PlainViT` or :func:`focal`, in training mode on its device.
        images, labels: of every step.
        watched: check the loss as the training does, which reads its value.
    """
    config = model.config
    assert isinstance(config, GFTConfig)
    settings = TrainSection(batch_size=len(images), lr=1e-5, precision="bf16", elastic=False)
    state = TrainingState(model, make_optimizer(model, config, settings), _no_scaler(images), None)
    watch = (LossWatch if watched else _Unwatched)(lambda loss, step: CheckFailed(f"loss is {loss} at step {step}"))
    stepper = Stepper(model, state, config, settings, None, watch)
    return lambda: stepper.step([(images, labels)], 0)


def usual_step(network: Callable[[Tensor], Tensor], weights: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """Returns a step as a script of PyTorch takes it: autocast in BF16, cross-entropy, backward pass, fused AdamW.

    It can be captured in a CUDA graph.

    Args:
        network: computes logits.
        weights: module whose parameters it trains.
        images, labels: of every step.
    """
    device = images.device.type
    optimizer = torch.optim.AdamW(weights.parameters(), lr=1e-5, fused=True, capturable=device == "cuda")

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _no_scaler(images: Tensor) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(images.device.type, enabled=False)
