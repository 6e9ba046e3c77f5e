"""Recipes: model, data and settings of a training, as dataclasses filled from TOML or JSON."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig, preset
from gft_edge.config.reader import load_dataclass, parse_scalar, read_table
from gft_edge.errors import ConfigError

Augment = Literal["none", "light", "published", "published-food", "modern"]


@dataclass(frozen=True)
class ModelSection:
    """``[model]`` of a recipe: a preset and changes to it.

    Args:
        preset: name of the configuration to start from.
        backbone: timm name of another Vision Transformer of the preset's width, depth and heads; for the preset of a
            baseline such as ``resnet50``, of any classifier.
        patch_size, image_size: pixels.
        num_classes: optional; if given it must equal the data set's number of classes.
        embed_dim, depth, num_heads: width, number of blocks, heads; for a smaller student, say.
        stages: the blocks that select patches, counted from 1.
        budget: counts or shares of patches kept.
        score: what ranks the patches, one of :data:`gft_edge.config.model.SCORES`.
        num_prefix_tokens: the backbone's tokens before the patches: 1, with a distillation token 2, with four registers 5.
        pretrained: start from timm's pretrained weights of the backbone (needs network or timm's cache).
    """

    preset: str = "gft_typeface"
    backbone: str | None = None
    patch_size: int | None = None
    num_classes: int | None = None
    image_size: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    stages: tuple[int, ...] | None = None
    budget: str | None = None
    score: str | None = None
    num_prefix_tokens: int | None = None
    pretrained: bool = False

    def resolve(self, num_classes: int) -> GFTConfig:
        """Returns the configuration for a data set of ``num_classes`` classes."""
        if self.num_classes not in (None, num_classes):
            raise ConfigError(
                f"model.num_classes is {self.num_classes}, the data has {num_classes} classes; leave it out"
            )
        overrides: dict[str, Any] = {"num_classes": num_classes}
        sizes = ("patch_size", "image_size", "embed_dim", "depth", "num_heads", "num_prefix_tokens")
        for name in ("backbone", *sizes, "stages", "score"):
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
    """``[data]`` of a recipe.

    Args:
        name: argument of :func:`gft_edge.data.datasets.open_images`.
        train_images, eval_images: how many to train on and to measure the accuracy with.
        augment: kind of augmentation.
        num_workers: processes that prepare images; 0 uses the training process itself. By default all processors but one
            when a GPU trains, else a quarter of them.
        curriculum: of scenes alone: phases of the training, each the share of steps where it begins, the scale of the marks,
            the number of distractors and the side in pixels of a window around the mark, 0 or left out for whole images. The
            last phase is the task itself. Evaluation is always on the task itself.
    """

    name: str = "typefaces"
    train_images: int = 100_000
    eval_images: int = 1_600
    augment: Augment = "none"
    num_workers: int | None = None
    curriculum: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least {least}, found {value}"
            for name, least in (("train_images", 1), ("eval_images", 1), ("num_workers", 0))
            if (value := getattr(self, name)) is not None and value < least
        ]
        problems += self._curriculum_problems()
        if problems:
            raise ConfigError("; ".join(problems))
        whole = tuple((*row, 0.0)[:4] for row in self.curriculum)
        object.__setattr__(self, "curriculum", whole)

    def _curriculum_problems(self) -> list[str]:
        for number, row in enumerate(self.curriculum):
            if len(row) not in (3, 4):
                return [
                    f"curriculum[{number}] must be [share of steps, mark scale, distractors] or the same with the side of a "
                    f"window, found {list(row)}"
                ]
            scale, distractors, window = (*row[1:], 0.0)[:3]
            if not 0 < scale < math.inf:
                return [f"curriculum[{number}]: the mark scale must be above 0 and finite, found {scale:g}"]
            if not (0 <= distractors < math.inf and distractors == int(distractors)):
                return [f"curriculum[{number}]: distractors must be a whole number from 0, found {distractors:g}"]
            if not (0 <= window < math.inf and window == int(window)):
                return [f"curriculum[{number}]: the side of a window must be a whole number from 0, found {window:g}"]
        starts = [row[0] for row in self.curriculum]
        if starts and (starts[0] != 0 or starts[-1] >= 1 or any(not a < b for a, b in itertools.pairwise(starts))):
            return [f"curriculum: its shares of steps must rise from 0 to below 1, found {starts}"]
        return []


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
        mixup, cutmix: alphas of their beta distributions (timm); 0 is off. Both pair the images of a batch: its size must be even.
        ema: decay of a moving average of the weights, which is then evaluated and saved; 0 is off.
        early_stop: stop after this many evaluations without improvement; 0 is off.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` with a loss scaler (autocast; importance stays float32).
        tensorboard: also write the log for TensorBoard.
        recompute: recompute each block's activations in the backward pass instead of keeping them.
        step_in_backward: update each weight as soon as its gradient exists and free the gradient; the same result, for
            one backward pass per step without clipping.
        elastic: train at full and sampled token budgets, so that one checkpoint serves every budget; without it, at the
            model's own budget alone.
        elastic_start: share of the steps after which sampled budgets begin.
        elastic_samples: sampled budgets per step: 1 takes the smallest and a random one in turn, 2 takes both.
        smallest_ratio: the smallest budget, as a share of the default budget's counts.
        align: weight of the alignment loss, 0 is off: at steps with a sampled budget the scores of the selecting blocks learn
            which patches the pass with every patch relied on; see :mod:`gft_edge.distill.alignment`.
        eval_every, checkpoint_every: in steps; 0 means only at the end.
        seed: fixes weights, data order and budgets.
        threads: torch threads; 0 leaves torch's default.
        deterministic: use only operations on a GPU that give the same weights in every run; a CPU always does.
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
    align: float = 0.0
    eval_every: int = 0
    checkpoint_every: int = 200
    seed: int = 0
    threads: int = 0
    deterministic: bool = True
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
        for name in ("min_lr", "weight_decay", "mixup", "cutmix", "grad_clip", "align"):
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
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            problems.append(f"batch_size must be even with mixup or cutmix, which pair images, found {self.batch_size}")
        if self.align and not self.elastic:
            problems.append("align needs elastic = true: it learns from the pass with every patch")
        if problems:
            raise ConfigError("; ".join(problems))


LEAST_MASK = 0.3
"""Share of the patches below which a masked teacher costs accuracy: at 0.15 a random choice taught worse than no teacher at all."""


@dataclass(frozen=True)
class DistillSection:
    """``[distill]`` of a recipe: a teacher and what is learned from it, added to the loss of the labels.

    Args:
        teacher: checkpoint folder, or ``"builtin"``; any model, with the same classes as the data.
        loss: against the teacher's answers: ``"kl"`` (divergence), ``"dist"`` (correlation over classes and over images) or
            ``"hard"`` (the teacher's class as label).
        temperature: divides the logits of both, for ``"kl"`` and ``"dist"``.
        weight: of that loss.
        label_weight: of the cross-entropy with the labels.
        answers: ``"live"`` runs the teacher in every step; ``"stored"`` runs it once and reads its answers from a file in every
            further training on the same images.
        answers_file: of stored answers; ``answers.safetensors`` in the output folder by default.
        top_k: classes of an image whose answers are stored; the rest is spread evenly.
        masked: a focal teacher sees only the patches that the student ranks highest.
        mask_keep: share of the patches that a masked teacher sees, at least 0.3.
        feature_weight: of the difference between the teacher's features and those of the student, lifted to their width.
        map_weight: of the divergence of the student's scores from the teacher's map.
        map: of a focal teacher: ``"importance"`` (GALA map of its first selecting block with every patch) or ``"rollout"``
            (attention that reaches the class token through all blocks).
        map_temperature: divides the student's standardised scores.
        ranking_weight: of the order in which the teacher's map ranks the patches that the student may keep.
        consistency_weight: of the smaller budgets of elastic training, which learn from the full one.
    """

    teacher: str
    loss: Literal["kl", "dist", "hard"] = "kl"
    temperature: float = 4.0
    weight: float = 1.0
    label_weight: float = 1.0
    answers: Literal["live", "stored"] = "live"
    answers_file: str | None = None
    top_k: int = 10
    masked: bool = False
    mask_keep: float = 0.5
    feature_weight: float = 0.0
    map_weight: float = 0.0
    map: Literal["importance", "rollout"] = "importance"
    map_temperature: float = 1.0
    ranking_weight: float = 0.0
    consistency_weight: float = 1.0

    def __post_init__(self) -> None:
        weights = [name for name in (f.name for f in dataclasses.fields(self)) if name.endswith("weight")]
        problems = [
            f"{name} must be at least 0 and finite, found {getattr(self, name)}"
            for name in weights
            if not 0 <= getattr(self, name) < math.inf
        ]
        for name in ("temperature", "map_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                problems.append(f"{name} must be above 0 and finite, found {getattr(self, name)}")
        if not self.teacher:
            problems.append("teacher is empty; give a checkpoint folder")
        if self.top_k < 1:
            problems.append(f"top_k must be at least 1, found {self.top_k}")
        if self.mask_keep > 1:
            problems.append(f"mask_keep must be at most 1, found {self.mask_keep}")
        if not self.mask_keep >= LEAST_MASK:
            problems.append(
                f"mask_keep must be at least {LEAST_MASK}, found {self.mask_keep}: a teacher that sees less misleads"
            )
        if self.answers == "stored":
            problems += [
                f"{name} needs the teacher in every step, stored answers have classes alone; set answers = 'live' or leave it out"
                for name in ("masked", "feature_weight", "map_weight", "ranking_weight")
                if getattr(self, name)
            ]
        elif self.answers_file is not None:
            problems.append("answers_file needs answers = 'stored'")
        if self.masked and (self.map_weight or self.ranking_weight):
            problems.append("masked leaves the teacher no map of every patch; leave out map_weight and ranking_weight")
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def reads_map(self) -> bool:
        """Whether the teacher's map is needed."""
        return bool(self.map_weight or self.ranking_weight)


@dataclass(frozen=True)
class Recipe:
    """A whole training: model, data, settings and, for a distillation, the teacher."""

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    train: TrainSection = field(default_factory=TrainSection)
    distill: DistillSection | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as plain JSON values; without a teacher it has no ``distill``."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        if self.distill is None:
            del data["distill"]
        return data


def packaged_recipe(name: str) -> Path:
    """Returns the place of the package's recipe of a name such as ``image-folder``, whether there is one or not."""
    return Path(__file__).parents[1] / "builtin" / "recipes" / f"{name.removesuffix('.toml')}.toml"


def shipped_recipe(path: Path) -> Path | None:
    """Returns the package's recipe for a path that does not exist but names one, such as ``recipes/image-folder.toml``."""
    shipped = packaged_recipe(path.name)
    return shipped if not path.exists() and path.parent.name in ("", "recipes") and shipped.is_file() else None


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
