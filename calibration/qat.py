"""Quantization-aware training: the quantized model is distilled from the full-precision one.

Forward passes round as the quantized layers do; backward passes treat rounding as the identity within the range (straight-
through estimator; Bengio et al., 2013, arXiv 1308.3432). Activation ranges stay those of the calibration. Weight ranges
follow the largest weight of each channel, as they do when a checkpoint is read, so no weight is ever clipped and every weight
has a gradient. Scores and maps of a quantized block read its full-precision weights and stay in full precision.

Further steps may improve a full-precision model too. So a control is trained as well: the unquantized model, on the same
batches with the same loss, rate and number of steps, and quantized afterwards.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gft_edge.calibration.ptq import PostTrained, QuantizedModel
from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import Augment, TrainSection
from gft_edge.data.batches import Problem
from gft_edge.data.datasets import ImageSet
from gft_edge.data.training import BatchOptions, byte_batches, normalizer
from gft_edge.distill.losses import distillation_loss, label_loss
from gft_edge.errors import CheckFailed, ConfigError
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.quant.modules import follow_weights
from gft_edge.train.determinism import deterministic
from gft_edge.train.optim import make_optimizer, set_rate
from gft_edge.train.schedule import learning_rate, step_budgets
from gft_edge.train.watch import LossWatch

WARMUP_SHARE = 0.1
LAST_RATE = 0.01
"""The rate at the last step, as a share of the highest."""


@dataclass(frozen=True)
class QatSettings:
    """Settings of the training of a quantized model and its control.

    Args:
        steps, batch_size: optimiser steps and images in each.
        lr: highest rate of AdamW: linear warm-up over a tenth of the steps, then a cosine to a hundredth.
        temperature: divides the logits of teacher and student.
        label_weight: of the cross-entropy with the labels, added to the distillation; at 0 the control has nothing to learn,
            because it equals its teacher.
        grad_clip: largest gradient norm; 0 is off.
        seed: of data order and budgets.
        train_images: how many to draw from (files on disk give at most what they have).
        augment: kind of augmentation.
        num_workers: processes that prepare images, see :class:`gft_edge.data.training.BatchOptions`.

    Raises:
        ConfigError: listing every problem found.
    """

    steps: int
    batch_size: int = 32
    lr: float = 1e-5
    temperature: float = 2.0
    label_weight: float = 0.0
    grad_clip: float = 1.0
    seed: int = 0
    train_images: int = 100_000
    augment: Augment = "none"
    num_workers: int | None = None

    def __post_init__(self) -> None:
        problems = []
        try:
            self.schedule(elastic=False)
        except ConfigError as error:
            problems.append(str(error))
        if not 0 < self.temperature < math.inf:
            problems.append(f"temperature must be above 0 and finite, found {self.temperature}")
        if not 0 <= self.label_weight < math.inf:
            problems.append(f"label_weight must be at least 0 and finite, found {self.label_weight}")
        for name, least in (("train_images", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                problems.append(f"{name} must be at least {least}, found {value}")
        if problems:
            raise ConfigError("; ".join(problems))

    def schedule(self, elastic: bool) -> TrainSection:
        """Returns the settings as a recipe's section, for optimiser, rate and budgets. Weights do not decay."""
        return TrainSection(
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            min_lr=max(0.0, LAST_RATE * self.lr),
            warmup_steps=int(WARMUP_SHARE * self.steps),
            weight_decay=0.0,
            grad_clip=self.grad_clip,
            elastic=elastic,
            seed=self.seed,
        )


@dataclass
class TrainingRecord:
    """The training of one model.

    Attributes:
        steps, images: optimiser steps taken and images used.
        data_sha256: of the bytes of all images and of their labels, in their order; None before the end.
        distillation: loss at each step, mean over its budgets.
    """

    steps: int = 0
    images: int = 0
    data_sha256: str | None = None
    distillation: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; of the loss, means over the first and the last tenth of the steps."""
        data = asdict(self)
        losses = data.pop("distillation")
        tenth = max(1, len(losses) // 10)
        first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
        return {**data, "distillation_first": first, "distillation_last": last}


@dataclass(frozen=True)
class Distillation:
    """A teacher and what its students are trained on.

    Attributes:
        teacher: the full-precision model, in eval mode.
        config: of the model.
        images: to train on.
        spec: preprocessing.
        settings: of the training.
    """

    teacher: nn.Module
    config: GFTConfig
    images: ImageSet
    spec: PreprocessSpec
    settings: QatSettings


@dataclass(frozen=True)
class QatOutcome:
    """A model trained quantized, its full-precision control, the control after quantization, and the record of each training."""

    quantized: QuantizedModel
    control: nn.Module
    quantized_control: QuantizedModel
    training: TrainingRecord
    control_training: TrainingRecord


def quantization_aware(
    task: Distillation,
    start: PostTrained,
    post_training: Callable[[nn.Module], QuantizedModel],
    track: Track = silent,
    problem: Problem | None = None,
) -> QatOutcome:
    """Trains a quantized model and its control side by side.

    Args:
        task: teacher, images and settings.
        start: models that the training starts from; left untouched.
        post_training: quantizes the control as ``start.full`` was quantized.
        track: progress display.
        problem: receives images that cannot be read.

    Raises:
        CheckFailed: the loss is NaN or infinite.
        DataError: an image cannot be read and no ``problem`` callback is given.
    """
    student, control = copy.deepcopy(start.quantized.model), copy.deepcopy(start.full)
    records = fine_tune(task, (student, control), track, problem)
    trained = QuantizedModel(student, {**start.quantized.summary, "qat": asdict(task.settings)})
    return QatOutcome(trained, control, post_training(control), *records)


def _diverged(loss: float, step: int) -> CheckFailed:
    return CheckFailed(f"QAT: loss is {loss} at step {step}; lower lr (--qat-set lr=...)")


def fine_tune(
    task: Distillation, students: Sequence[nn.Module], track: Track = silent, problem: Problem | None = None
) -> list[TrainingRecord]:
    """Trains models in place, each with its own optimiser, on the same batches at the same budgets.

    Each step trains a focal model at its full budget and at a smaller one, as in elastic training, but each budget learns from
    the teacher at that budget. All models stay in eval mode, so that the trained computation is the deployed one: patches are
    chosen by their scores alone, and batch norms keep their statistics, which export folds away.

    Args: as for :func:`quantization_aware`.

    Raises:
        CheckFailed: the loss is NaN or infinite.
    """
    teacher, config, settings = task.teacher, task.config, task.settings
    schedule = settings.schedule(elastic=config.variant == "focal")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for model in (teacher, *students):
        model.to(device).eval()
    optimizers = [make_optimizer(student, config, schedule) for student in students]
    records = [TrainingRecord() for _ in students]
    digest = hashlib.sha256()
    numbers = range(settings.steps)
    options = BatchOptions(settings.batch_size, settings.seed, settings.augment, settings.num_workers, device)
    batches = byte_batches(task.images, task.spec, numbers, options, problem)
    normalize = normalizer(task.spec, device)
    watch = LossWatch(_diverged)
    courses: list[list[Tensor]] = [[] for _ in students]
    with deterministic(device, "train on the CPU, with CUDA_VISIBLE_DEVICES set to nothing"):
        for step, (pixels, labels) in zip(track(numbers, "train", settings.steps), batches):
            digest.update(pixels.numpy().tobytes() + labels.numpy().tobytes())
            batch, labels = normalize(pixels), labels.to(device, non_blocking=True)
            budgets = step_budgets(config, schedule, step)
            with torch.no_grad():
                targets = [teacher(batch, budget) for budget in budgets]
            for student, optimizer, record, course in zip(students, optimizers, records, courses):
                optimizer.zero_grad(set_to_none=True)
                total = torch.zeros((), dtype=torch.float64, device=device)
                for budget, target in zip(budgets, targets):
                    logits = student(batch, budget)
                    distillation = distillation_loss(logits, target, settings.temperature)
                    loss = distillation + settings.label_weight * label_loss(logits, labels)
                    loss.backward()
                    watch.see(loss.detach(), step)
                    total += distillation.detach()
                if settings.grad_clip:
                    nn.utils.clip_grad_norm_(student.parameters(), settings.grad_clip)
                set_rate(optimizer, learning_rate(schedule, step))
                optimizer.step()
                follow_weights(student)
                record.steps += 1
                record.images += len(labels)
                course.append(total / len(budgets))
        watch.finish()
    for student, record, course in zip(students, records, courses):
        record.distillation = torch.stack(course).tolist()
        student.zero_grad(set_to_none=True)
        record.data_sha256 = digest.hexdigest()
    for model in (teacher, *students):
        model.cpu()
    return records
