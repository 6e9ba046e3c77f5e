"""Sizes of a run, and the place where it runs."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gft_edge.budget import PREFIX_TOKENS, TokenBudget
from gft_edge.config.model import GFTConfig, preset

SECONDS: Mapping[str, float] = types.MappingProxyType(
    {
        "inference": 50.0,
        "resolution": 12.0,
        "training": 30.0,
        "kernels": 10.0,
        "numerics": 20.0,
        "pieces": 15.0,
        "compiled": 40.0,
        "compile": 110.0,
    }
)
"""Parts of a run in their order, with the most seconds of each."""
MOST_SECONDS = 235.0
"""Of a whole run: the last part has what the others leave."""


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Attributes:
        name: ``"full"`` or ``"quick"``; a process started for one part finds its sizes by it.
        config: the focal model; the plain ViT and the peers have its sizes.
        large: the focal model on large images, with an early cut, for the part ``resolution``.
        large_batches: images per request in that part.
        batches: images per request in the part ``inference``.
        merging_batch: the one batch at which ToMe is timed as well.
        compiled_batches: images per request in the part ``compiled``.
        training_batch: images per training step.
        rounds: interleaved measurements of each candidate.
        least_ms: a measurement repeats its request until it is at least this long.
        images: evaluation images of the part ``numerics``.
    """

    name: str
    config: GFTConfig
    large: GFTConfig
    large_batches: tuple[int, ...] = (1, 32)
    batches: tuple[int, ...] = (1, 8, 64, 256)
    merging_batch: int = 64
    compiled_batches: tuple[int, ...] = (1, 8, 64)
    training_batch: int = 64
    rounds: int = 16
    least_ms: float = 8.0
    images: int = 256


@dataclass(frozen=True)
class Place:
    """The device that computes.

    Attributes:
        device: where.
        dtype: of weights and images in inference: float16 on a GPU, float32 on a CPU.
    """

    device: torch.device
    dtype: torch.dtype

    @property
    def is_gpu(self) -> bool:
        """True on a CUDA device, where requests become CUDA graphs and are timed by events."""
        return self.device.type == "cuda"

    @classmethod
    def here(cls) -> Place:
        """Returns the first GPU, or else the CPU."""
        gpu = torch.cuda.is_available()
        return cls(torch.device("cuda", 0), torch.float16) if gpu else cls(torch.device("cpu"), torch.float32)


def full_scale() -> Scale:
    """Returns the sizes of ``gft_base`` and ``gft_base_448`` against ViT-B."""
    return Scale("full", preset("gft_base"), preset("gft_base_448"))


def quick_scale() -> Scale:
    """Returns a model of four narrow blocks and few rounds: shows that everything runs; its times mean nothing."""
    budget = TokenBudget((27, 18, 9), 36)
    config = preset("gft_tiny", image_size=96, embed_dim=96, depth=4, stages=(1, 2, 3), budget=budget, num_classes=10)
    large = dataclasses.replace(config, image_size=128, budget=TokenBudget((27, 18, 9), 64))
    return Scale(
        "quick",
        config,
        large,
        large_batches=(2,),
        batches=(1, 4),
        merging_batch=4,
        compiled_batches=(2,),
        training_batch=4,
        rounds=3,
        least_ms=0.5,
        images=16,
    )


def named_scale(name: str) -> Scale:
    """Returns the scale of that name."""
    return {"full": full_scale, "quick": quick_scale}[name]()


def aligned(budget: TokenBudget, multiple: int, up: bool) -> TokenBudget:
    """Returns the budget whose numbers of tokens (patches and class token) are the next multiples, all up or all down.

    :meth:`TokenBudget.align` takes the nearest ones; here both directions are timed.
    """

    def count(k: int) -> int:
        tokens = k + PREFIX_TOKENS
        return (-(-tokens // multiple) if up else tokens // multiple) * multiple - PREFIX_TOKENS

    return TokenBudget(tuple(min(count(k), budget.num_patches) for k in budget.keep), budget.num_patches)


def reason(error: Exception) -> str:
    """Returns an error in one line, for the record."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
