"""SmoothQuant: scales down outlier channels of a LayerNorm's output and scales up the weights that read them.

Xiao et al., 2023 (arXiv 2211.10438): channel j is divided by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha). Here s_j is rounded
to a power of two, so that dividing the norm's weight and bias and multiplying the columns of the linear layer leaves every
result of the full-precision model unchanged to the bit: the logits, the scores that rank patches and the maps. Exact scores of a
quantized layer are unchanged likewise, since they read its weights and the norm's output.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from gft_edge.errors import ConfigError, DataError
from gft_edge.model.focal_block import FocalBlock
from gft_edge.quant.modules import makes_logits
from gft_edge.quant.policy import QuantPolicy


@dataclass(frozen=True)
class Fold:
    """A LayerNorm and the linear layer that alone reads its output."""

    norm: nn.LayerNorm
    linear: nn.Linear


READERS = {"norm1": "attn.qkv", "norm2": "mlp.fc1"}
"""Names of a block's norms and of the layers that read them."""


def folds(model: nn.Module, policy: QuantPolicy) -> dict[str, Fold]:
    """Returns the LayerNorms of blocks, by name, whose reader the policy quantizes."""
    found = {}
    blocks = ((name, module) for name, module in model.named_modules() if isinstance(module, (Block, FocalBlock)))
    for (name, block), (norm, reader) in itertools.product(blocks, READERS.items()):
        layer, linear = block.get_submodule(norm), block.get_submodule(reader)
        fits = isinstance(layer, nn.LayerNorm) and isinstance(linear, nn.Linear)
        if fits and policy.is_quantized(f"{name}.{reader}") and makes_logits(model, name):
            found[f"{name}.{norm}"] = Fold(layer, linear)
    return found


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
        scale = smoothing(largest[name], fold.linear.weight.abs().amax(dim=0), float(policy.smoothquant))
        fold.norm.weight.div_(scale)
        if fold.norm.bias is not None:
            fold.norm.bias.div_(scale)
        fold.linear.weight.mul_(scale)
    return model


def smoothing(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Returns the powers of two next to max|x|^alpha / max|w|^(1 - alpha) per channel, (C,); 1 where either is dead."""
    exact = inputs.pow(alpha) / weights.pow(1 - alpha)
    exact = torch.where((inputs > 0) & (weights > 0) & exact.isfinite() & (exact > 0), exact, 1.0)
    return torch.exp2(exact.log2().round().clamp(-24, 24))
