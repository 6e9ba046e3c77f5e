"""Creates the optimiser and its parameter groups."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import TrainSection
from gft_edge.model.baselines import TimmClassifier


def parameter_groups(model: nn.Module, config: GFTConfig, train: TrainSection) -> list[dict[str, Any]]:
    """Returns groups with ``weight_decay`` and ``lr_scale``.

    Only matrices and kernels decay, not norms, biases, position embedding and single tokens. Layer-wise decay: the
    rate of a layer is ``layer_decay`` to the power of its distance from the classifier. timm defines the layers of a baseline.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    if isinstance(model, TimmClassifier):
        plain = model.network.no_weight_decay() if hasattr(model.network, "no_weight_decay") else ()
        layers = param_groups_layer_decay(model.network, train.weight_decay, plain, layer_decay=train.layer_decay)
        # Two of each layer. Those of equal settings become one, since the optimiser launches by groups.
        for layer in layers:
            groups[layer["weight_decay"], layer["lr_scale"]] += layer["params"]
    else:
        gft: Any = model
        undecayed = gft.no_weight_decay()
        for name, parameter in model.named_parameters():
            decay = 0.0 if parameter.ndim < 2 or name in undecayed else train.weight_decay
            groups[decay, train.layer_decay ** (config.depth + 1 - gft.layer_of(name))].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def make_optimizer(model: nn.Module, config: GFTConfig, train: TrainSection) -> torch.optim.Optimizer:
    """Returns AdamW with betas 0.9 and 0.98, fused."""
    return torch.optim.AdamW(parameter_groups(model, config, train), lr=train.lr, betas=(0.9, 0.98), fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets each group's learning rate to ``rate`` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def step_in_backward(optimizer: torch.optim.Optimizer) -> None:
    """Makes every backward pass update each weight as its gradient arrives and free that gradient.

    The optimiser skips weights without a gradient, so each of its steps updates one weight. The result is the same; the
    full set of gradients is never held in memory.
    """

    def update(parameter: Tensor) -> None:
        optimizer.step()
        parameter.grad = None

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.register_post_accumulate_grad_hook(update)
