"""SmoothQuant: scales down outlier channels of a LayerNorm's output and scales up the weights that read them.

Xiao et al., 2023 (arXiv 2211.10438): channel j is divided by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha). Here s_j is rounded
to a power of two, so that dividing the norm's weight and bias and multiplying the columns of the linears leaves every
result of the full-precision model unchanged to the bit: the logits, and the importance that GALA computes from queries and keys.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from gft_edge.errors import ConfigError, DataError
from gft_edge.model.focal_block import FocalBlock
from gft_edge.quant.policy import QuantPolicy


@dataclass(frozen=True)
class Fold:
    """A LayerNorm and all linear layers that read its output."""

    norm: nn.LayerNorm
    linears: tuple[nn.Linear, ...]


def folds(model: nn.Module, policy: QuantPolicy) -> dict[str, Fold]:
    """Returns the LayerNorms, by name, whose readers the policy quantizes."""
    found = {}
    for name, module in model.named_modules():
        for norm, readers in _readers(module).items():
            if any(policy.is_quantized(f"{name}.{reader}") for reader in readers):
                linears = tuple(module.get_submodule(reader) for reader in readers)
                layer = module.get_submodule(norm)
                if isinstance(layer, nn.LayerNorm) and all(isinstance(linear, nn.Linear) for linear in linears):
                    found[f"{name}.{norm}"] = Fold(layer, linears)
    return found


def _readers(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Returns all layers that read a norm, by norm of a block."""
    if isinstance(module, (Block, FocalBlock)):  # scores and importance read the weights of attn.qkv too
        return {"norm1": ("attn.qkv",), "norm2": ("mlp.fc1",)}
    return {}


@torch.no_grad()
def smooth(model: nn.Module, batches: Iterable[npt.NDArray[np.float32]], policy: QuantPolicy) -> nn.Module:
    """Returns a copy with more even channels where the policy quantizes; its results are the same, to the bit.

    Args:
        model: in eval mode, float32; left untouched.
        batches: preprocessed calibration images, (B, 3, H, W) each.
        policy: with the strength alpha.

    Raises:
        ConfigError: the policy has no alpha, or there is no LayerNorm to fold into.
        DataError: no images.
    """
    if policy.smoothquant is None:
        raise ConfigError("smoothquant: the policy gives no strength")
    model = copy.deepcopy(model)
    found = folds(model, policy)
    if not found:
        raise ConfigError("smoothquant: no quantized linear layer of this model reads a LayerNorm")
    largest: dict[str, Tensor] = {}

    def watch(name: str, output: Tensor) -> None:
        magnitudes = output.abs().flatten(0, -2).amax(dim=0)
        largest[name] = torch.maximum(largest[name], magnitudes) if name in largest else magnitudes

    handles = [
        fold.norm.register_forward_hook(lambda _, __, output, name=name: watch(name, output))
        for name, fold in found.items()
    ]
    for images in batches:
        model(torch.from_numpy(images))
    for handle in handles:
        handle.remove()
    if not largest:
        raise DataError("calibration: no images")
    for name, fold in found.items():
        weights = torch.stack([linear.weight.abs().amax(dim=0) for linear in fold.linears]).amax(dim=0)
        scale = smoothing(largest[name], weights, float(policy.smoothquant))
        fold.norm.weight.div_(scale)
        if fold.norm.bias is not None:
            fold.norm.bias.div_(scale)
        for linear in fold.linears:
            linear.weight.mul_(scale)
    return model


def smoothing(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Returns the powers of two next to max|x|^alpha / max|w|^(1 - alpha) per channel, (C,); 1 where either is dead."""
    exact = inputs.pow(alpha) / weights.pow(1 - alpha)
    exact = torch.where((inputs > 0) & (weights > 0) & exact.isfinite() & (exact > 0), exact, 1.0)
    return torch.exp2(exact.log2().round().clamp(-24, 24))
