"""Forward passes of a focal model under any candidate; what is before the first selection is computed once for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gft_edge.benchmarks.experiments.scores.candidates import Candidate, State, column_mean, fused_weights
from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.distill.losses import standardised
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
        depths: sum over the blocks before of the standardised column means, (B, P).
        grid: rows and columns of the patches.
    """

    block: int
    x: Tensor
    projected: tuple[Tensor, Tensor, Tensor, Tensor]
    depths: Tensor
    grid: tuple[int, int]


def places_of(entry: Entry) -> State:
    """Returns what a score may know at an entry, where every patch is there."""
    positions = torch.arange(entry.depths.shape[1]).expand(len(entry.depths), -1)
    return State(entry.block, 0, entry.grid, positions, entry.depths)


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
    depths = torch.zeros(len(x), x.shape[1] - prefix, dtype=x.dtype)
    entries: dict[int, Entry] = {}
    for number, block in enumerate(model.blocks, start=1):
        assert isinstance(block, FocalBlock)
        z, q, k, v = _project(block, x)
        entry = Entry(number, x, (z, q, k, v), depths, model.config.grid)
        if number in blocks:
            entries[number] = entry
        if number < max(blocks):
            means = column_mean(z, q, k, v, block.attn.num_heads, prefix, places_of(entry))
            depths = depths + standardised(means)
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
    first_prefix = prefix = model.num_prefix_tokens
    keep: Mapping[int, int] = dict(zip(setting.stages, setting.budget.keep))
    x, depths, depth, selection = entry.x, entry.depths, len(model.blocks), 0
    positions = places_of(entry).positions
    for number in range(entry.block, depth + 1):
        block = model.blocks[number - 1]
        assert isinstance(block, FocalBlock)
        heads = block.attn.num_heads
        z, q, k, v = entry.projected if number == entry.block else _project(block, x)
        if number == depth:  # nothing reads the patches afterwards
            x, q = x[:, :first_prefix], q[:, :first_prefix]
        else:
            state = State(number, selection, entry.grid, positions, depths)
            if candidate.reads_depths:
                depths = depths + standardised(column_mean(z, q, k, v, heads, prefix, state))
            wanted = keep.get(number, positions.shape[1])
            if wanted < positions.shape[1]:
                kept = select_patches(candidate.score(z, q, k, v, heads, prefix, state), wanted)
                rows, fused = token_indices(kept, prefix), None
                if candidate.fuses:
                    weights = fused_weights(q, k, heads, prefix, kept).unsqueeze(1)
                    fused = [weights @ tokens[:, prefix:] for tokens in (x, q)]
                x, q = gather_all((x, q), rows)
                if fused is not None:  # it stands before the patches, so that no later selection ranks it
                    x, q = (torch.cat((t[:, :prefix], f, t[:, prefix:]), dim=1) for t, f in zip((x, q), fused))
                    prefix += 1
                positions, depths, selection = positions.gather(1, kept), depths.gather(1, kept), selection + 1
        x = _attended(block, x, q, k, v)
    return model.forward_head(model.norm(x), pre_logits=True), positions


def _project(block: FocalBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = block.norm1(x)
    q, k, v = block.attn.project(z)
    return z, q, k, v


def _attended(block: FocalBlock, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns the block's output for the rows of x and q, (B, R, C) each, that attend to all keys and values."""
    x = x + block.ls1(block.attn.proj(block.attn.attend(q, k, v)))
    return x + block.ls2(block.mlp(block.norm2(x)))
