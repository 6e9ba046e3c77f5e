"""Model configuration, presets, and recipes: dataclasses filled from TOML or JSON, all problems reported at once."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from gft_edge.budget import NO_BUDGET, TokenBudget
from gft_edge.errors import ConfigError, MissingExtraError
from gft_edge.filekinds import kind_of
from gft_edge.files import decode_text, parse_json

T = TypeVar("T")
Augment = Literal["none", "light", "published", "published-food", "modern"]
Variant = Literal["focal", "published", "timm", "transfg"]
BASELINES: tuple[Variant, ...] = ("timm", "transfg")
"""Models without stages, for comparison; their sizes are those of their backbone."""


@dataclass(frozen=True)
class GFTConfig:
    """What a model is: its backbone, where its stages stand, and the budget it runs at by default.

    Args:
        backbone: timm name of a Vision Transformer; the sizes below override the named model's own. For the baselines,
            of any classifier (``"timm"``) or of a Vision Transformer (``"transfg"``), taken as it is: the sizes are 0.
        image_size, patch_size: pixels; the image must hold a whole number of patches.
        num_classes: outputs of the classifier.
        embed_dim, depth, num_heads: width, number of blocks, heads.
        stages: after how many blocks each stage stands, 1 to ``depth``; increasing (focal) or all the same (published).
        budget: default token budget, one count per stage.
        variant: ``"focal"`` (selection matters), ``"published"`` (reproduces the published code), or a baseline without
            stages: ``"timm"`` (any classifier of timm), ``"transfg"`` (a Vision Transformer with TransFG's part selection).
        stem: ``"linear"`` patch embedding or ``"conv"`` (strided 3x3 convolutions).

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if self.variant not in typing.get_args(Variant):
            choices = ", ".join(repr(name) for name in typing.get_args(Variant))
            raise ConfigError(f"model configuration: variant must be one of {choices}, found {self.variant!r}")
        sizes = ["image_size", "num_classes"]
        if not self.is_baseline:
            sizes += ["patch_size", "embed_dim", "depth", "num_heads"]
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
        if self.stem != "linear":
            set_names.append("stem")
        return [
            f"variant {self.variant!r} is its backbone as it is and has no stages: leave out {', '.join(set_names)}"
        ] * bool(set_names)

    def _gft_problems(self, wrong_sizes: bool) -> list[str]:
        problems = []
        if not wrong_sizes:
            if self.image_size % self.patch_size:
                problems.append(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
            elif self.budget.num_patches != self.num_patches:
                problems.append(f"budget is for {self.budget.num_patches} patches, the image has {self.num_patches}")
            if self.embed_dim % self.num_heads:
                problems.append(f"embed_dim {self.embed_dim} is no multiple of num_heads {self.num_heads}")
            if any(not 1 <= after <= self.depth for after in self.stages):
                problems.append(f"stages must stand after blocks 1 to {self.depth}, found {list(self.stages)}")
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
        """Whether this is a model for comparison, without stages and without a token budget."""
        return self.variant in BASELINES

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

    def parse_budget(self, text: str) -> TokenBudget:
        """``"full"``, or what :meth:`TokenBudget.parse` reads.

        Raises:
            ConfigError: no budget, or one for a model without stages.
        """
        if text in ("full", self.budget.id):
            return self.full_budget if text == "full" else self.budget
        if self.is_baseline:
            raise ConfigError(f"token budget {text!r}: a model of variant {self.variant!r} has no stages; leave it out")
        return TokenBudget.parse(text, self.num_patches)

    def to_json(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**data, "stages": list(self.stages), "budget": self.budget.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GFTConfig:
        """The inverse of :meth:`to_json`."""
        return load_dataclass(cls, data, "model configuration")


def _preset(backbone: str, embed_dim: int, num_heads: int) -> GFTConfig:
    return GFTConfig(
        backbone=backbone,
        image_size=224,
        patch_size=16,
        num_classes=1000,
        embed_dim=embed_dim,
        depth=12,
        num_heads=num_heads,
        stages=(2, 4, 6),
        budget=TokenBudget.from_ratios((0.75, 0.5, 0.25), 196),
    )


PRESETS: Mapping[str, GFTConfig] = types.MappingProxyType(
    {
        "gft_base": _preset("vit_base_patch16_224", 768, 12),
        "gft_small": _preset("vit_small_patch16_224", 384, 6),
        "gft_tiny": _preset("vit_tiny_patch16_224", 192, 3),
        "gft_base_published": dataclasses.replace(
            _preset("vit_base_patch16_224", 768, 12), num_classes=100, stages=(8, 8, 8), variant="published"
        ),
        "gft_typeface": GFTConfig(
            backbone="vit_tiny_patch16_224",
            image_size=96,
            patch_size=8,
            num_classes=16,
            embed_dim=128,
            depth=6,
            num_heads=4,
            stages=(2, 3, 4),
            budget=TokenBudget.from_ratios((0.75, 0.5, 0.25), 144),
            stem="conv",
        ),
        "vit_base": GFTConfig("vit_base_patch16_224", 224, 1000, variant="timm"),
        "vit_small": GFTConfig("vit_small_patch16_224", 224, 1000, variant="timm"),
        "vit_tiny": GFTConfig("vit_tiny_patch16_224", 224, 1000, variant="timm"),
        "deit_base": GFTConfig("deit_base_patch16_224", 224, 1000, variant="timm"),
        "deit_small": GFTConfig("deit_small_patch16_224", 224, 1000, variant="timm"),
        "resnet50": GFTConfig("resnet50", 224, 1000, variant="timm"),
        "transfg_base": GFTConfig("vit_base_patch16_224", 224, 1000, variant="transfg"),
    }
)
"""Named configurations; ``gft_typeface`` is the built-in task's, those not called gft are baselines."""


def preset(name: str, **overrides: Any) -> GFTConfig:
    """The preset of that name with some fields replaced.

    A changed image size, patch size or stages list keeps the preset's shares of patches unless ``budget`` is given.

    Raises:
        ConfigError: no such preset (with the nearest name), or the overrides do not fit.
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


@dataclass(frozen=True)
class ModelSection:
    """``[model]`` of a recipe: a preset and what to change in it.

    Args:
        preset: name of the configuration to start from.
        backbone: timm name of another Vision Transformer of the preset's width, depth and heads; for the preset of a
            baseline such as ``resnet50``, of any classifier.
        patch_size, image_size: pixels.
        num_classes: that of the data; needed nowhere, checked where given.
        stages: after how many blocks each stage stands.
        budget: counts or shares of patches kept.
        pretrained: start from timm's pretrained weights of the backbone (needs network or timm's cache).
    """

    preset: str = "gft_typeface"
    backbone: str | None = None
    patch_size: int | None = None
    num_classes: int | None = None
    image_size: int | None = None
    stages: tuple[int, ...] | None = None
    budget: str | None = None
    pretrained: bool = False

    def resolve(self, num_classes: int) -> GFTConfig:
        """The configuration for a data set of ``num_classes`` classes."""
        if self.num_classes not in (None, num_classes):
            raise ConfigError(
                f"model.num_classes is {self.num_classes}, the data has {num_classes} classes; leave it out"
            )
        overrides: dict[str, Any] = {"num_classes": num_classes}
        for name in ("backbone", "patch_size", "image_size", "stages"):
            if getattr(self, name) is not None:
                overrides[name] = getattr(self, name)
        if self.budget is not None:
            base = preset(self.preset)
            if base.is_baseline:
                raise ConfigError(f"model.budget: preset {self.preset!r} has no stages; leave it out")
            side = (self.image_size or base.image_size) // (self.patch_size or base.patch_size)
            overrides["budget"] = TokenBudget.parse(self.budget, side * side)
        return preset(self.preset, **overrides)


@dataclass(frozen=True)
class DataSection:
    """``[data]`` of a recipe: ``name`` as :func:`gft_edge.data.datasets.open_images` takes it."""

    name: str = "typefaces"
    train_images: int = 100_000
    eval_images: int = 1_600
    augment: Augment = "none"
    num_workers: int = 1

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least {least}, found {getattr(self, name)}"
            for name, least in (("train_images", 1), ("eval_images", 1), ("num_workers", 0))
            if getattr(self, name) < least
        ]
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True)
class TrainSection:
    """``[train]`` of a recipe.

    Args:
        steps, batch_size: optimiser steps and images in each.
        lr, min_lr, weight_decay, warmup_steps: AdamW with linear warm-up and a cosine to ``min_lr``.
        label_smoothing: of the cross-entropy.
        accumulate: batches whose gradients one step sums up; a step takes ``batch_size * accumulate`` images (and as
            many in every other process under torchrun).
        layer_decay: factor of the learning rate from one layer to the one before it; 1 is off.
        grad_clip: largest gradient norm; 0 is off.
        drop_path: stochastic depth at the last block, rising linearly from 0 at the first.
        mixup, cutmix: alphas of their beta distributions (timm); 0 is off.
        ema: decay of a moving average of the weights, which is then what is evaluated and saved; 0 is off.
        early_stop: stop after so many evaluations without improvement; 0 is off.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` with a loss scaler (autocast; importance stays float32).
        tensorboard: also write the log for TensorBoard.
        recompute: compute each block's activations anew in the backward pass instead of keeping them.
        step_in_backward: update each weight as soon as its gradient is there and free the gradient; the same result, for
            one backward pass per step without clipping.
        elastic: train at full and sampled token budgets, so that one checkpoint serves every budget; without it, at the
            model's own budget alone.
        elastic_start: share of the steps after which sampled budgets begin.
        elastic_samples: sampled budgets per step: 1 takes the smallest and a random one in turn, 2 takes both.
        smallest_ratio: the smallest budget, as a share of the default budget's counts.
        eval_every, checkpoint_every: in steps; 0 means only at the end.
        seed: fixes weights, data order and budgets.
        threads: torch threads; 0 leaves torch's default.
        init: start from this checkpoint folder, or from ``"builtin"``.
    """

    steps: int = 1000
    batch_size: int = 64
    lr: float = 1e-3
    min_lr: float = 1e-6
    weight_decay: float = 0.05
    warmup_steps: int = 100
    label_smoothing: float = 0.1
    accumulate: int = 1
    layer_decay: float = 1.0
    grad_clip: float = 1.0
    drop_path: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    early_stop: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tensorboard: bool = False
    recompute: bool = False
    step_in_backward: bool = False
    elastic: bool = True
    elastic_start: float = 0.0
    elastic_samples: int = 1
    smallest_ratio: float = 0.6
    eval_every: int = 0
    checkpoint_every: int = 200
    seed: int = 0
    threads: int = 0
    init: str | None = None

    def __post_init__(self) -> None:
        problems = []
        for name in ("steps", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("warmup_steps", "eval_every", "checkpoint_every", "threads", "seed", "early_stop"):
            if getattr(self, name) < 0:
                problems.append(f"{name} must not be negative, found {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            problems.append(f"lr must be above 0 and finite, found {self.lr}")
        if self.step_in_backward:
            needed = {"elastic": False, "accumulate": 1, "grad_clip": 0}
            against = [
                f"{name} = {str(value).lower()}" for name, value in needed.items() if getattr(self, name) != value
            ]
            if self.precision == "fp16":
                against.append("another precision than fp16")
            if against:
                problems.append(f"step_in_backward needs {', '.join(against)}")
        for name in ("drop_path", "ema"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"{name} must be 0 to below 1, found {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            problems.append(f"layer_decay must be above 0 and at most 1, found {self.layer_decay}")
        if self.early_stop and not self.eval_every:
            problems.append("early_stop needs eval_every")
        for name in ("min_lr", "weight_decay", "mixup", "cutmix", "grad_clip"):
            if not 0 <= getattr(self, name) < math.inf:
                problems.append(f"{name} must be at least 0 and finite, found {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            problems.append(f"label_smoothing must be 0 to below 1, found {self.label_smoothing}")
        if not 0 <= self.elastic_start <= 1:
            problems.append(f"elastic_start must be 0 to 1, found {self.elastic_start}")
        if self.elastic_samples not in (1, 2):
            problems.append(f"elastic_samples must be 1 or 2, found {self.elastic_samples}")
        if not 0 < self.smallest_ratio <= 1:
            problems.append(f"smallest_ratio must be above 0 and at most 1, found {self.smallest_ratio}")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True)
class Recipe:
    """A whole training: what, on which data, how."""

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    train: TrainSection = field(default_factory=TrainSection)

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return data


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a TOML or JSON recipe and applies ``section.key=value`` overrides.

    Raises:
        ConfigError: unreadable file or any number of unknown keys and wrong values, all in one message.
        MissingExtraError: TOML on Python 3.10 without tomli.
    """
    data = read_table(path, "recipe")
    for override in overrides:
        key, separator, value = override.partition("=")
        names = key.strip().split(".")
        if not separator or len(names) != 2:
            raise ConfigError(f"--set {override!r}: expected section.key=value, for example train.lr=0.001")
        if isinstance(data, dict) and isinstance(data.setdefault(names[0], {}), dict):
            data[names[0]][names[1]] = parse_scalar(value.strip())
    return load_dataclass(Recipe, data, f"recipe {path}")


def read_table(path: Path, what: str) -> Any:
    """Reads a TOML file, or a JSON file where the name ends so; a byte order mark is passed over.

    Raises:
        ConfigError: unreadable, no text, or not of that language.
        MissingExtraError: TOML on Python 3.10 without tomli.
    """
    try:
        data = path.read_bytes()
        return parse_json(data) if path.suffix.lower() == ".json" else loads_toml(decode_text(data))
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path}: cannot be read: it is no text in UTF-8 or UTF-16 ({error.reason})") from None
    except ValueError as error:
        kind = kind_of(path)
        if kind not in ("a text file", "a JSON file", "a file of an unknown kind"):
            raise ConfigError(f"{what} {path}: expected TOML or JSON, it is {kind}") from None
        raise ConfigError(f"{what} {path}: {shortened(str(error))}") from None


_QUOTED_OR_COMMENT = re.compile(r"""("[^"\n]*"|'[^'\n]*')|#[^\n]*""")
_MAX_KEY_PARTS = 32


def loads_toml(text: str) -> dict[str, Any]:
    """Parses TOML, with the standard library or tomli.

    Raises:
        ValueError: it is none, or is nested too deeply; keys of very many parts take the library quadratic time.
        MissingExtraError: Python 3.10 without tomli.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise MissingExtraError("tomli", "train") from None
    plain = _QUOTED_OR_COMMENT.sub(lambda match: '""' if match[1] else "", text)
    if any(part.count(".") > _MAX_KEY_PARTS for part in re.split(r"[,=\[\]{}\n]", plain)):
        raise ValueError(f"a key of more than {_MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def shortened(text: str, length: int = 120) -> str:
    """A text for a message, its middle left out where it is long."""
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 4 :]}"


def _shown(value: object) -> str:
    try:
        return shortened(repr(value))
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"


def parse_scalar(text: str) -> Any:
    """A JSON value, or the text itself where it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def load_dataclass(cls: type[T], data: Any, where: str) -> T:
    """Fills a (nested, frozen) dataclass from plain values.

    Raises:
        ConfigError: every unknown key, missing key and wrong type in one message.
    """
    problems: list[str] = []
    value = _fill(cls, data, "", problems)
    if problems:
        raise ConfigError(f"{where}: " + "; ".join(problems))
    return typing.cast(T, value)


def _fill(cls: Any, data: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(data, Mapping):
        problems.append(f"{path or 'top level'}: expected a table, found {_shown(data)}")
        return None
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            problems.append(f"unknown key {path}{shortened(str(key))}{did_you_mean(str(key), fields)}")
    values = {}
    before = len(problems)
    for name, spec in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{path}{name}", problems)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            problems.append(f"missing key {path}{name}")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ConfigError as error:
        problems.append(f"{path.rstrip('.')}: {error}" if path else str(error))
        return None


def _convert(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _fill(hint, value, f"{path}.", problems)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        hint = next(a for a in args if a is not type(None))
        return _convert(hint, value, path, problems)
    if origin is Literal:
        if value not in args:
            choices = ", ".join(repr(a) for a in args)
            hint_text = did_you_mean(value, [str(a) for a in args]) if isinstance(value, str) else ""
            problems.append(f"{path} must be one of {choices}, found {_shown(value)}{hint_text}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            problems.append(f"{path} must be a list, found {_shown(value)}")
            return ()
        return tuple(_convert(args[0], item, f"{path}[{i}]", problems) for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            problems.append(f"{path} is too large for a number, found {_shown(value)}")
            return 0.0
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        problems.append(f"{path} must be of type {hint.__name__}, found {_shown(value)}")
    return value
