"""Evaluation of quantization-aware training: five models on the same held-out images, and a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gft_edge.budget import TokenBudget
from gft_edge.calibration.qat import Distillation, QatOutcome, TrainingRecord
from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import TrainSection
from gft_edge.errors import DataError
from gft_edge.runtime.finite import require_finite
from gft_edge.stats.grid import mask_of
from gft_edge.stats.metrics import sqnr_db, wilson_interval
from gft_edge.stats.paired import PairedTop1, paired_top1
from gft_edge.train.schedule import step_budgets

FULL, PTQ, CONTROL, PTQ_CONTROL, QAT = "FP32 before", "PTQ", "FP32 after control", "PTQ after control", "QAT"
SIGNIFICANT = 0.05
Batches = Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]


@dataclass(frozen=True)
class Figures:
    """One model at one budget.

    Attributes:
        model: name of one of the five.
        budget: id of the token budget.
        right: images it classifies correctly.
        top1, interval: their share, with its 95 % interval (Wilson).
        logit_sqnr_db: against the full-precision teacher at that budget; None when bit-identical.
        jaccard: |both| / |either| of the kept sets and the teacher's, mean over images, for each stage that drops patches.
    """

    model: str
    budget: str
    right: int
    top1: float
    interval: tuple[float, float]
    logit_sqnr_db: float | None
    jaccard: tuple[float, ...]


@dataclass(frozen=True)
class QatReport:
    """Five models side by side.

    Attributes:
        source: describes the images.
        images: how many.
        figures: of every model, at its own budget first.
        top1: paired statistics of QAT (candidate) against PTQ of the control (reference), at the own budget.
        training, control_training: records of both trainings.
    """

    source: str
    images: int
    figures: tuple[Figures, ...]
    top1: PairedTop1
    training: TrainingRecord
    control_training: TrainingRecord

    @property
    def verdict(self) -> str:
        """``"better"``, ``"worse"`` or ``"inconclusive"``: accuracy of QAT against PTQ of the control."""
        if self.top1.mcnemar_p >= SIGNIFICANT:
            return "inconclusive"
        return "better" if self.top1.difference > 0 else "worse"

    @property
    def sentence(self) -> str:
        """The verdict in words, with its evidence."""
        low, high = self.top1.interval
        evidence = (
            f"top-1 {self.top1.difference:+.2%} ({low:+.2%} to {high:+.2%}), alone correct on {self.top1.only_candidate} "
            f"against {self.top1.only_reference} of {self.images} images, exact McNemar p = {self.top1.mcnemar_p:.2g}"
        )
        after = f"PTQ after as many FP32 steps ({self.control_training.steps})"
        if self.verdict == "inconclusive":
            return f"inconclusive: QAT and {after} do not differ significantly: {evidence}"
        return f"QAT is {self.verdict} than {after}: {evidence}"

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON values."""
        return {
            "source": self.source,
            "images": self.images,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "figures": [{**asdict(f), "interval": list(f.interval), "jaccard": list(f.jaccard)} for f in self.figures],
            "top1": {**asdict(self.top1), "interval": list(self.top1.interval)},
            "course": self.training.to_json(),
            "control_course": self.control_training.to_json(),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the cells of a table under :data:`HEADER`."""
        return [
            (
                f.budget,
                f.model,
                f"{f.top1:.2%}",
                f"{f.interval[0]:.2%} to {f.interval[1]:.2%}",
                "identical" if f.logit_sqnr_db is None else f"{f.logit_sqnr_db:.1f} dB",
                " ".join(f"{value:.3f}" for value in f.jaccard) or "all kept",
            )
            for f in self.figures
        ]


HEADER = ("budget", "model", "top-1", "95 % interval", "logit SQNR", "kept-set Jaccard, per stage")


@dataclass(frozen=True)
class _Outputs:
    """Logits (B, classes), and per stage which patches of the grid are kept, (B, P)."""

    logits: npt.NDArray[np.float32]
    kept: tuple[npt.NDArray[np.bool_], ...]


def report_qat(
    task: Distillation,
    ptq: nn.Module,
    outcome: QatOutcome,
    batches: Batches,
    source: str,
    labels: tuple[str, ...] = (),
) -> QatReport:
    """Runs all five models on the same images: at the own budget and, where there are stages, the full and a small one.

    Args:
        task: teacher and configuration.
        ptq: the teacher after quantization.
        outcome: of the training.
        batches: preprocessed images and labels that were not trained on.
        source: describes these images, for the record.
        labels: class names.

    Raises:
        DataError: no images.
    """
    models = {
        FULL: task.teacher,
        PTQ: ptq,
        CONTROL: outcome.control,
        PTQ_CONTROL: outcome.quantized_control.model,
        QAT: outcome.quantized.model,
    }
    budgets = reported_budgets(task.config)
    outputs, truth = _run(models, batches, budgets, task.config.num_patches)
    figures = [
        _figures(name, budget, outputs[name, budget], outputs[FULL, budget], truth)
        for budget in budgets
        for name in models
    ]
    classes = {name: outputs[name, budgets[0]].logits.argmax(axis=1) for name in (PTQ_CONTROL, QAT)}
    top1 = paired_top1(classes[PTQ_CONTROL], classes[QAT], truth, labels)
    return QatReport(source, len(truth), tuple(figures), top1, outcome.training, outcome.control_training)


def reported_budgets(config: GFTConfig) -> tuple[TokenBudget, ...]:
    """Returns the own budget; of a focal model also the full one and the smallest that elastic training knows by default."""
    if config.variant != "focal":
        return (config.budget,)
    return tuple(dict.fromkeys((config.budget, *step_budgets(config, TrainSection(), 0))))


@torch.no_grad()
def _run(
    models: Mapping[str, nn.Module], batches: Batches, budgets: Sequence[TokenBudget], num_patches: int
) -> tuple[dict[tuple[str, TokenBudget], _Outputs], npt.NDArray[np.int64]]:
    parts: dict[tuple[str, TokenBudget], list[_Outputs]] = {(n, b): [] for b in budgets for n in models}
    truth = []
    for images, labels in batches:
        truth.append(labels)
        for (name, budget), found in parts.items():
            out = models[name](torch.from_numpy(images), budget, maps=True)
            require_finite(out.logits.numpy(), f"QAT: {name} at {budget.id}")
            kept = tuple(mask_of(stage.kept.numpy(), (num_patches,)) for stage in out.stages)
            found.append(_Outputs(out.logits.numpy(), kept))
    if not truth:
        raise DataError("QAT: no images to evaluate it on")
    joined = {
        key: _Outputs(
            np.concatenate([part.logits for part in found]),
            tuple(np.concatenate(stage) for stage in zip(*(part.kept for part in found))),
        )
        for key, found in parts.items()
    }
    return joined, np.concatenate(truth)


def _figures(
    model: str, budget: TokenBudget, outputs: _Outputs, teacher: _Outputs, truth: npt.NDArray[np.int64]
) -> Figures:
    right = int((outputs.logits.argmax(axis=1) == truth).sum())
    sqnr = sqnr_db(teacher.logits, outputs.logits)
    jaccard = tuple(
        float(((a & b).sum(axis=1) / (a | b).sum(axis=1)).mean())
        for a, b in zip(teacher.kept, outputs.kept)
        if not a.all()
    )
    return Figures(
        model,
        budget.id,
        right,
        right / len(truth),
        wilson_interval(right, len(truth)),
        None if np.isinf(sqnr) else sqnr,
        jaccard,
    )
