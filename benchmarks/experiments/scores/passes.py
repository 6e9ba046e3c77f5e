"""Forward passes of a focal model under any candidate; what is before the first selection is computed once for all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gft_edge.benchmarks.experiments.scores.candidates import Candidate, State
from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.model.focal_block import FocalBlock
from gft_edge.model.gft import FocalGFT
from gft_edge.model.selection import gather_all, select_patches, token_indices


@dataclass(frozen=True)
class Setting:
    """Which blocks select, and how many patches they keep."""

    stages: tuple[int, ...]
    budget: TokenBudget

    @property
    def id(self) -> str:
        """Names it in files, for example ``2.3.4 144-72-72``."""
        return f"{'.'.join(map(str, self.stages))} {self.budget.id}"

    def of(self, config: GFTConfig) -> GFTConfig:
        """Returns a configuration that selects so."""
        return dataclasses.replace(config, stages=self.stages, budget=self.budget)


@dataclass(frozen=True)
class Entry:
    """What a block has of a batch with every patch.

    Attributes:
        block: its number, from 1.
        x: tokens that enter it, (B, T, C).
        projected: normalised tokens, queries, keys and values, (B, T, C) each.
        grid: rows and columns of the patches.
    """

    block: int
    x: Tensor
    projected: tuple[Tensor, Tensor, Tensor, Tensor]
    grid: tuple[int, int]


def places_of(entry: Entry) -> State:
    """Returns what a score may know at an entry, where every patch is there."""
    rows, cols = entry.grid
    return State(entry.block, 0, entry.grid, torch.arange(rows * cols).expand(len(entry.x), -1))


def full_pass(model: FocalGFT, images: Tensor, blocks: Sequence[int]) -> tuple[dict[int, Entry], Tensor]:
    """Runs the network with every patch.

    Args:
        model: in eval mode.
        images: normalised, (B, 3, H, W).
        blocks: numbers of the blocks to stop at.

    Returns:
        an entry for each of the blocks, and what the classifier reads, (B, C).
    """
    x, prefix = model.embed(images), model.num_prefix_tokens
    entries: dict[int, Entry] = {}
    for number, block in enumerate(model.blocks, start=1):
        assert isinstance(block, FocalBlock)
        z, q, k, v = _project(block, x)
        if number in blocks:
            entries[number] = Entry(number, x, (z, q, k, v), model.config.grid)
        if number == len(model.blocks):
            x, q = x[:, :prefix], q[:, :prefix]
        x = _attended(block, x, q, k, v)
    return entries, model.forward_head(model.norm(x), pre_logits=True)


def pruned_pass(model: FocalGFT, entry: Entry, setting: Setting, candidate: Candidate) -> tuple[Tensor, Tensor]:
    """Runs the rest of the network with the patches that a candidate chooses.

    Args:
        model: in eval mode.
        entry: of the first selecting block.
        setting: whose first selecting block is the entry's.
        candidate: ranks the patches.

    Returns:
        what the classifier reads, (B, C), and the positions that stayed to the end, (B, K).
    """
    prefix = model.num_prefix_tokens
    keep: Mapping[int, int] = dict(zip(setting.stages, setting.budget.keep))
    x, depth, selection = entry.x, len(model.blocks), 0
    positions = places_of(entry).positions
    all_patches = positions.shape[1]
    for number in range(entry.block, depth + 1):
        block = model.blocks[number - 1]
        assert isinstance(block, FocalBlock)
        z, q, k, v = entry.projected if number == entry.block else _project(block, x)
        patches = positions.shape[1]
        if number == depth:  # nothing reads the patches afterwards
            x, q = x[:, :prefix], q[:, :prefix]
        elif keep.get(number, patches) < patches:
            state = State(number, selection, entry.grid, positions)
            kept = select_patches(candidate.score(z, q, k, v, block.attn.num_heads, prefix, state), keep[number])
            x, q = gather_all((x, q), token_indices(kept, prefix))
            positions, selection = positions.gather(1, kept), selection + 1
        weight = all_patches / patches if candidate.weighs else 1.0
        x = _attended(block, x, q, k, v, None if weight == 1 else _bias(k, prefix, weight))
    return model.forward_head(model.norm(x), pre_logits=True), positions


def _project(block: FocalBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = block.norm1(x)
    q, k, v = block.attn.project(z)
    return z, q, k, v


def _bias(k: Tensor, prefix: int, weight: float) -> Tensor:
    """Returns what is added to the attention scores, (1, 1, 1, T), so that each patch counts as ``weight`` equal ones."""
    bias = k.new_zeros(1, 1, 1, k.shape[1])
    bias[..., prefix:] = math.log(weight)
    return bias


def _attended(block: FocalBlock, x: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns the block's output for the rows of x and q, (B, R, C) each, that attend to all keys and values."""
    if bias is None:
        attended = block.attn.attend(q, k, v)
    else:
        q, k, v = (t.unflatten(2, (block.attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
    x = x + block.ls1(block.attn.proj(attended))
    return x + block.ls2(block.mlp(block.norm2(x)))
