"""Model configurations and presets."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gft_edge.budget import NO_BUDGET, PREFIX_TOKENS, TokenBudget
from gft_edge.config.reader import load_dataclass
from gft_edge.errors import ConfigError, did_you_mean

Variant = Literal["focal", "published", "timm", "transfg"]
SCORES = ("column-mean", "column-gala", "row-gala", "class-row", "random")
"""Names of the scores that rank patches; ``gft_edge.model.scores`` computes them."""
ADOPTED_SCORE = "class-row"
"""The best one for weights that were never trained with dropped patches (``benchmarks/SCORES.md``): the class token of such a
network has learned what to read. Training with dropped patches makes the scores equal, and the first one is the cheapest."""
GALA_SCORE = "row-gala"
"""The score that ranks as GALA maps show, the published form."""
BASELINES: tuple[Variant, ...] = ("timm", "transfg")
"""Models without stages, for comparison; their sizes are those of their backbone."""


@dataclass(frozen=True)
class GFTConfig:
    """Configuration of a model: its backbone, the blocks that select patches, and its default token budget.

    Args:
        backbone: timm name of a Vision Transformer; the sizes below override the named model's own. For the baselines,
            of any classifier (``"timm"``) or of a Vision Transformer (``"transfg"``), unchanged: the sizes are 0.
        image_size, patch_size: pixels; the image must hold a whole number of patches.
        num_classes: outputs of the classifier.
        embed_dim, depth, num_heads: width, number of blocks, heads.
        stages: focal: the blocks that select patches, counted from 1, increasing. Published: after how many blocks the stages
            stand, all the same number.
        budget: default token budget, one count per stage.
        variant: ``"focal"`` (selection matters), ``"published"`` (reproduces the published code), or a baseline without
            stages: ``"timm"`` (any classifier of timm), ``"transfg"`` (a Vision Transformer with TransFG's part selection).
        stem: ``"linear"`` patch embedding or ``"conv"`` (strided 3x3 convolutions).
        score: what ranks the patches of a focal model, one of :data:`SCORES`.
        num_prefix_tokens: tokens before the patches: the class token, with a distillation token 2, with registers more.

    Raises:
        ConfigError: listing every problem found.
    """

    backbone: str
    image_size: int
    num_classes: int
    patch_size: int = 0
    embed_dim: int = 0
    depth: int = 0
    num_heads: int = 0
    stages: tuple[int, ...] = ()
    budget: TokenBudget = NO_BUDGET
    variant: Variant = "focal"
    stem: Literal["linear", "conv"] = "linear"
    score: str = SCORES[0]
    num_prefix_tokens: int = PREFIX_TOKENS

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if self.variant not in typing.get_args(Variant):
            choices = ", ".join(repr(name) for name in typing.get_args(Variant))
            raise ConfigError(f"model configuration: variant must be one of {choices}, found {self.variant!r}")
        sizes = ["image_size", "num_classes"]
        if not self.is_baseline:
            sizes += ["patch_size", "embed_dim", "depth", "num_heads", "num_prefix_tokens"]
        problems = []
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                problems.append(f"{name} must be a positive integer, found {value!r}")
        if self.is_baseline:
            problems += self._baseline_problems()
        else:
            problems += self._gft_problems(bool(problems))
        if problems:
            raise ConfigError("model configuration: " + "; ".join(problems))

    def _baseline_problems(self) -> list[str]:
        set_names = [n for n in ("patch_size", "embed_dim", "depth", "num_heads", "stages") if getattr(self, n)]
        if self.budget != NO_BUDGET:
            set_names.append("budget")
        defaults = {"stem": "linear", "score": SCORES[0], "num_prefix_tokens": PREFIX_TOKENS}
        set_names += [name for name, default in defaults.items() if getattr(self, name) != default]
        return [
            f"variant {self.variant!r} is the unchanged backbone and has no stages: leave out {', '.join(set_names)}"
        ] * bool(set_names)

    def _gft_problems(self, wrong_sizes: bool) -> list[str]:
        problems = []
        if not wrong_sizes:
            if self.image_size % self.patch_size:
                problems.append(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
            elif self.budget.num_patches != self.num_patches:
                problems.append(f"budget is for {self.budget.num_patches} patches, the image has {self.num_patches}")
            if self.embed_dim % self.num_heads:
                problems.append(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
            if any(not 1 <= after <= self.depth for after in self.stages):
                problems.append(f"stages must be blocks 1 to {self.depth}, found {list(self.stages)}")
        if not self.stages:
            problems.append("stages must name at least one block")
        elif self.variant == "published":
            if len(set(self.stages)) != 1:
                problems.append(
                    f"stages of variant 'published' all stand after the same block, found {list(self.stages)}"
                )
            if self.stem != "linear":
                problems.append("variant 'published' has a linear stem")
        elif list(self.stages) != sorted(set(self.stages)):
            problems.append(f"stages must be increasing, found {list(self.stages)}")
        if len(self.stages) != len(self.budget.keep):
            problems.append(f"budget {self.budget.id} has {len(self.budget.keep)} counts for {len(self.stages)} stages")
        if self.score not in SCORES:
            problems.append(
                f"unknown score {self.score!r}{did_you_mean(self.score, SCORES)}; there are: {', '.join(SCORES)}"
            )
        if self.variant == "published" and (self.score != SCORES[0] or self.num_prefix_tokens != PREFIX_TOKENS):
            problems.append(
                "variant 'published' has its own score and one class token: leave out score, num_prefix_tokens"
            )
        if self.stem not in ("linear", "conv"):
            problems.append(f"stem must be 'linear' or 'conv', found {self.stem!r}")
        if self.stem == "conv" and not problems and not wrong_sizes:
            if self.patch_size < 4 or self.patch_size & (self.patch_size - 1):
                problems.append(
                    f"stem 'conv' needs a patch_size that is a power of two, 4 or more, found {self.patch_size}"
                )
            if self.embed_dim < 16:
                problems.append(f"stem 'conv' needs an embed_dim of at least 16, found {self.embed_dim}")
        return problems

    @property
    def is_baseline(self) -> bool:
        """True for a model for comparison, without stages and without a token budget."""
        return self.variant in BASELINES

    @property
    def is_distilled(self) -> bool:
        """True for DeiT's models with a distillation token and a second classifier; timm has the word in their names."""
        return "distilled" in self.backbone

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid; none for a baseline."""
        side = self.image_size // self.patch_size if self.patch_size else 0
        return side, side

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        rows, cols = self.grid
        return rows * cols

    @property
    def full_budget(self) -> TokenBudget:
        """The budget at which no stage drops a patch."""
        return TokenBudget.full(len(self.stages), self.num_patches)

    def selecting_stages(self, budget: TokenBudget) -> list[int]:
        """Returns the stages, from 0, that drop patches which a later layer would read; none of the published variant.

        These are the selections that logits depend on: the model calls a choice at each of them, and a graph without maps has no
        others.
        """
        if self.variant == "published":
            return []
        return [
            number
            for number, (block, entering, keep) in enumerate(zip(self.stages, budget.stage_inputs, budget.keep))
            if keep < entering and block < self.depth
        ]

    def parse_budget(self, text: str) -> TokenBudget:
        """Reads ``"full"`` or a text for :meth:`TokenBudget.parse`.

        Raises:
            ConfigError: the text is not a budget, or the model has no stages.
        """
        if text in ("full", self.budget.id):
            return self.full_budget if text == "full" else self.budget
        if self.is_baseline:
            raise ConfigError(f"token budget {text!r}: a model of variant {self.variant!r} has no stages; leave it out")
        return TokenBudget.parse(text, self.num_patches)

    def to_json(self) -> dict[str, Any]:
        """Returns the configuration as plain JSON values."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**data, "stages": list(self.stages), "budget": self.budget.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "model") -> GFTConfig:
        """Reads what :meth:`to_json` returns.

        Args:
            data: plain JSON values.
            where: begins the messages.

        Raises:
            ConfigError: every problem found, or the configuration is of the form that is gone.
        """
        if isinstance(data, Mapping) and data.get("variant") == "focal" and "score" not in data:
            raise ConfigError(
                f"{where}: is a focal model of the old form, with attention layers between its blocks; this version selects "
                "inside the blocks; train it again, or give the weights of its backbone to gft-edge adopt"
            )
        return load_dataclass(cls, data, where)


def conv_stem_widths(patch_size: int, embed_dim: int) -> tuple[int, ...]:
    """Returns the channels of a convolutional stem: those of the image, then those after each strided convolution."""
    num_convs = patch_size.bit_length() - 1
    return (3, *(max(embed_dim >> (num_convs - 1 - i), 16) for i in range(num_convs)))


def _preset(backbone: str, embed_dim: int, num_heads: int) -> GFTConfig:
    return GFTConfig(
        backbone=backbone,
        image_size=224,
        patch_size=16,
        num_classes=1000,
        embed_dim=embed_dim,
        depth=12,
        num_heads=num_heads,
        stages=(3, 5, 7),
        budget=TokenBudget.from_ratios((0.75, 0.5, 0.25), 196),
    )


def _large(base: GFTConfig) -> GFTConfig:
    """Returns a preset on images of 448 pixels, at about the cost of the plain ViT at 224.

    The first cut is early, because a block at all 785 tokens costs more than four at 197. With the class token 256, 128 and 64
    tokens stay: whole tiles of matrix kernels, and few enough for fused INT8 attention, which ends at 512.
    """
    return dataclasses.replace(base, image_size=448, stages=(2, 4, 6), budget=TokenBudget((255, 127, 63), 784))


def _small(image_size: int, ratios: tuple[float, ...], stages: tuple[int, ...]) -> GFTConfig:
    """Returns the model of a rendered task of 16 classes: patches of 8 pixels, 1.3 million parameters."""
    return GFTConfig(
        backbone="vit_tiny_patch16_224",
        image_size=image_size,
        patch_size=8,
        num_classes=16,
        embed_dim=128,
        depth=6,
        num_heads=4,
        stages=stages,
        budget=TokenBudget.from_ratios(ratios, (image_size // 8) ** 2),
        stem="conv",
    )


PRESETS: Mapping[str, GFTConfig] = types.MappingProxyType(
    {
        "gft_base": _preset("vit_base_patch16_224", 768, 12),
        "gft_small": _preset("vit_small_patch16_224", 384, 6),
        "gft_tiny": _preset("vit_tiny_patch16_224", 192, 3),
        "gft_base_448": _large(_preset("vit_base_patch16_224", 768, 12)),
        "gft_small_448": _large(_preset("vit_small_patch16_224", 384, 6)),
        "gft_tiny_448": _large(_preset("vit_tiny_patch16_224", 192, 3)),
        "gft_base_published": dataclasses.replace(
            _preset("vit_base_patch16_224", 768, 12), num_classes=100, stages=(8, 8, 8), variant="published"
        ),
        "gft_typeface": _small(96, (0.75, 0.5, 0.25), (2, 3, 4)),
        "gft_scenes": _small(192, (0.25, 0.125, 0.125), (1, 2, 3)),
        "vit_base": GFTConfig("vit_base_patch16_224", 224, 1000, variant="timm"),
        "vit_small": GFTConfig("vit_small_patch16_224", 224, 1000, variant="timm"),
        "vit_tiny": GFTConfig("vit_tiny_patch16_224", 224, 1000, variant="timm"),
        "deit_base": GFTConfig("deit_base_patch16_224", 224, 1000, variant="timm"),
        "deit_small": GFTConfig("deit_small_patch16_224", 224, 1000, variant="timm"),
        "resnet50": GFTConfig("resnet50", 224, 1000, variant="timm"),
        "transfg_base": GFTConfig("vit_base_patch16_224", 224, 1000, variant="transfg"),
    }
)
"""Configurations by name; ``gft_typeface`` and ``gft_scenes`` are those of rendered tasks, names without gft are baselines."""


def preset(name: str, **overrides: Any) -> GFTConfig:
    """Returns the preset of that name with some fields replaced.

    A changed image size, patch size or stages list keeps the preset's shares of patches unless ``budget`` is given.

    Raises:
        ConfigError: there is no such preset (the message has the nearest name), or the overrides do not fit.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}; there are: {', '.join(PRESETS)}")
    base = PRESETS[name]
    image_size = overrides.get("image_size", base.image_size)
    patch_size = overrides.get("patch_size", base.patch_size)
    stages = tuple(overrides.get("stages", base.stages))
    if "budget" not in overrides and isinstance(image_size, int) and isinstance(patch_size, int) and patch_size > 0:
        num_patches = (image_size // patch_size) ** 2
        if stages and num_patches != base.num_patches and len(stages) == len(base.stages):
            ratios = tuple(k / base.num_patches for k in base.budget.keep)
            overrides["budget"] = TokenBudget.from_ratios(ratios, num_patches)
    return dataclasses.replace(base, **overrides)
