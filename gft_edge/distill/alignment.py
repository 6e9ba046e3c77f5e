"""Alignment: a block's score learns the importance of each patch, read from a pass with every patch and its gradients.

No gradient passes through the choice of patches, so the loss of a pruned pass alone does not say which patch should have been
kept. The attention of the later blocks, weighted by its gradient, does; ``benchmarks/TEACHING.md`` has the measured gain.

Notation: B images, T tokens, N patches, H heads, d channels per head, C = H d.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gft_edge.distill.losses import map_loss
from gft_edge.model.focal_block import FocalBlock
from gft_edge.model.gft import FocalGFT
from gft_edge.model.scores import SCORES

TEMPERATURE = 1.0
"""Of the standardised scores in training."""


class BlockTrace(NamedTuple):
    """One block in a pass with every patch.

    Attributes:
        tokens: that enter it, (B, T, C).
        q, k, v: its queries, keys and values, (B, T, C) each.
        token_gradient: of the loss with respect to the tokens that enter, (B, T, C).
        attended_gradient: of the loss with respect to the output of the attention, before its projection, (B, T, C).
    """

    tokens: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    token_gradient: Tensor
    attended_gradient: Tensor


Traces = Mapping[int, BlockTrace]
"""By the number of the block, from 1."""
Target = Callable[[Traces, int, int, int], Tensor]
"""Maps traces, the number of a selecting block, heads and tokens before the patches to importances (B, N), none negative."""


def trace(model: FocalGFT, images: Tensor, labels: Tensor) -> dict[int, BlockTrace]:
    """Runs a pass with every patch and its backward pass from the loss to the first selecting block.

    No parameter receives a gradient, and no running mean of a norm changes.

    Args:
        model: its mode is the same afterwards.
        images: normalised, (B, 3, H, W).
        labels: classes, (B,), or class shares, (B, classes).

    Returns:
        The first selecting block and those after it, detached.
    """
    first = model.config.stages[0]
    entered: dict[int, Tensor] = {}
    projected: dict[int, tuple[Tensor, ...]] = {}
    attended: dict[int, Tensor] = {}
    hooks = []

    def enters(number: int) -> Callable[..., Any]:
        def hook(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            x = arguments[0]
            entered[number] = x.detach().requires_grad_() if number == first else x
            return (entered[number], *arguments[1:])

        return hook

    def attends(number: int) -> Callable[..., Any]:
        def hook(module: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            projected[number], attended[number] = arguments, output

        return hook

    for number, block in enumerate(model.blocks, start=1):
        if number >= first:
            assert isinstance(block, FocalBlock)
            hooks.append(block.register_forward_pre_hook(enters(number)))
            hooks.append(block.attn.attend.register_forward_hook(attends(number)))
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            logits = model(images, model.config.full_budget)
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, [*entered.values(), *attended.values()])
    finally:
        model.train(was_training)
        for one in hooks:
            one.remove()
    traces = {}
    for place, (number, tokens) in enumerate(entered.items()):
        q, k, v = (t.detach() for t in projected[number])
        traces[number] = BlockTrace(tokens.detach(), q, k, v, gradients[place], gradients[len(entered) + place])
    return traces


def gradient_attention(traces: Traces, number: int, heads: int, prefix: int) -> Tensor:
    """Returns the attention that a patch receives in the later blocks, weighted by how much more of it lowers the loss.

    Sum over blocks, heads and rows of max(0, -A dL/dA) (after Chefer et al., 2021, arXiv 2103.15679). dL/dA_ij is the product of
    the gradient at the output of row i with the value of j.
    """
    total: Tensor | float = 0.0
    for later, of in traces.items():
        if later > number:
            slope = by_head(of.attended_gradient, heads) @ by_head(of.v, heads).transpose(2, 3)
            total = total + (-attention_of(of, heads) * slope).clamp_min(0).sum(dim=(1, 2))
    assert isinstance(total, Tensor)
    return total[:, prefix:]


def taught_blocks(model: FocalGFT) -> list[int]:
    """Returns the selecting blocks whose choice is read afterwards: those before the last block."""
    return [number for number in model.config.stages if number < model.config.depth]


def model_alignment(model: FocalGFT, images: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean over the selecting blocks of :func:`alignment_loss` with :func:`gradient_attention` as target.

    The targets take a forward and a backward pass of the images with every patch.

    Args:
        model: selects before its last block.
        images: normalised, (B, 3, H, W).
        labels: classes, (B,), or class shares, (B, classes).
    """
    traces = trace(model, images, labels)
    losses = []
    for number in taught_blocks(model):
        block = model.blocks[number - 1]
        assert isinstance(block, FocalBlock)
        target = gradient_attention(traces, number, block.attn.num_heads, block.num_prefix_tokens)
        losses.append(alignment_loss(block, traces[number].tokens, target, TEMPERATURE))
    return torch.stack(losses).mean()


def alignment_loss(block: FocalBlock, tokens: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Returns :func:`gft_edge.distill.losses.map_loss` of a block's score and a target.

    The gradient reaches the weights that make queries and keys, and nothing else.

    Args:
        block: that selects.
        tokens: that enter it, (B, T, C).
        target: importance of its patches, (B, N), none negative.
        temperature: above 0.
    """
    q, k, _ = block.attn.project(block.norm1(tokens).detach())
    scores = SCORES[block.score](q, k, block.attn.num_heads, block.num_prefix_tokens)
    return map_loss(scores, target, temperature)


def by_head(tokens: Tensor, heads: int) -> Tensor:
    """Returns (B, T, C) as (B, H, T, d)."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def attention_of(of: BlockTrace, heads: int) -> Tensor:
    """Returns the attention matrices of a block, (B, H, T, T)."""
    q, k = by_head(of.q, heads), by_head(of.k, heads)
    return (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=3)
