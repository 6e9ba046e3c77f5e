"""What is timed: the plain ViT, the focal model in several settings, and its peers, all with one set of weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gft_edge.benchmarks.experiments.gpu.scale import Place, aligned
from gft_edge.benchmarks.experiments.peers import evit, tome
from gft_edge.benchmarks.experiments.peers.vit_sizes import VitSizes
from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.model.backbone import timm_vit
from gft_edge.model.build import build_model
from gft_edge.model.macs import count_macs

VIT, GFT = "ViT", "GFT"
EVIT, EVIT_FUSED, EVIT_MACS = "EViT, same patches", "EViT, same patches, fused attention", "EViT, equal MACs"
TOME, TOME_MACS = "ToMe, same patches", "ToMe, equal MACs"
FULL = "GFT, every patch"
SCORES = ("class-row", "row-gala", "column-gala")
"""Scores other than the preset's own."""
MULTIPLE = 8
"""Of tokens in the aligned budgets: rows of FP16 tiles."""


@dataclass(frozen=True)
class Candidate:
    """A network and how it is called.

    Attributes:
        model: module.
        macs: multiply-accumulates of one image.
        options: arguments besides the images.
    """

    model: nn.Module
    macs: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, images: Tensor) -> Tensor:
        """Returns logits (B, classes) of images (B, 3, H, W)."""
        found = self.model(images, **self.options)
        return found if isinstance(found, Tensor) else found.logits


Makers = dict[str, Callable[[], Candidate]]
"""By name; one that cannot be built raises when it is called and does not stop the others."""


class Family:
    """The networks of one configuration, all on one place and with one set of weights.

    Args:
        config: of the focal model.
        place: device and type of the weights.
    """

    def __init__(self, config: GFTConfig, place: Place) -> None:
        self.config, self.place = config, place
        self.sizes = VitSizes.of(config, config.num_classes)
        torch.manual_seed(0)
        with place.device:  # initialisation on the device takes a fraction of the time
            self.vit = timm_vit(config, False, 0.0, num_classes=config.num_classes)
        self.vit.eval().requires_grad_(False).to(place.dtype)
        self._focal: dict[GFTConfig, nn.Module] = {}

    def focal(self, **changes: Any) -> nn.Module:
        """Returns the focal model with the weights of the plain ViT, and some fields of its configuration changed."""
        config = dataclasses.replace(self.config, **changes)
        if config not in self._focal:
            with self.place.device:
                model = build_model(config).to(self.place.dtype)
            model.load_state_dict(self.vit.state_dict())
            self._focal[config] = model.eval().requires_grad_(False)
        return self._focal[config]

    def images(self, batch: int) -> Tensor:
        """Returns random images (batch, 3, H, W)."""
        side = self.config.image_size
        return torch.randn(batch, 3, side, side, device=self.place.device, dtype=self.place.dtype)

    def gft(self, budget: TokenBudget | None = None, maps: bool = False, **changes: Any) -> Candidate:
        """Returns the focal model at a budget, its own by default."""
        budget = budget or self.config.budget
        macs = count_macs(dataclasses.replace(self.config, **changes), budget)
        return Candidate(self.focal(**changes), macs, {"budget": budget, "maps": maps})

    def plain(self) -> Candidate:
        """Returns the plain ViT."""
        return Candidate(self.vit, tome.count_macs([0] * self.config.depth, self.sizes))

    def evit(self, keep: Sequence[int], places: Sequence[int], fused: bool = False) -> Candidate:
        """Returns EViT that keeps so many patches in these blocks."""
        return Candidate(evit.EViT(self.vit, keep, places, fused), evit.count_macs(keep, self.sizes, places))

    def tome(self, merged: Sequence[int]) -> Candidate:
        """Returns ToMe that merges so many pairs in each block."""
        return Candidate(tome.ToMe(self.vit, merged), tome.count_macs(merged, self.sizes))

    def main(self) -> Makers:
        """Returns the plain ViT, the focal model, and EViT with the same patches kept and at equal multiply-accumulates."""
        config = self.config
        same = config.budget.keep, config.stages
        places = evit.places(config)
        return {
            VIT: self.plain,
            GFT: self.gft,
            EVIT: lambda: self.evit(*same),
            EVIT_FUSED: lambda: self.evit(*same, fused=True),
            EVIT_MACS: lambda: self.evit(evit.keep_counts(count_macs(config), self.sizes, places), places),
        }

    def variants(self) -> Makers:
        """Returns the focal model with other scores, budgets of aligned token counts, maps, and every patch."""
        config = self.config
        budgets = [aligned(config.budget, MULTIPLE, up) for up in (True, False)]
        return {
            **{f"GFT, {score}": functools.partial(self.gft, score=score) for score in SCORES},
            **{f"GFT {budget.id}": functools.partial(self.gft, budget) for budget in budgets},
            "GFT, maps": lambda: self.gft(maps=True),
            FULL: lambda: self.gft(config.full_budget),
        }

    def merging(self) -> Makers:
        """Returns ToMe with as many tokens after each block as the focal model, and at equal multiply-accumulates."""
        return {
            TOME: lambda: self.tome(tome.same_tokens(self.config)),
            TOME_MACS: lambda: self.tome(tome.schedule(count_macs(self.config), self.sizes)),
        }
