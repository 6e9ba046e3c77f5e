"""Composes the loss of a distillation: labels, the teacher's answers, its features and its map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gft_edge.checkpoint import CheckpointInfo, checkpoint_hash, read_info, resolve_checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import DistillSection, Recipe
from gft_edge.data.sets import ImageSet
from gft_edge.distill.alignment import taught_blocks
from gft_edge.distill.answers import ANSWERS, StoredAnswers, answers_identity, open_answers
from gft_edge.distill.lift import classifier_of, lift_head
from gft_edge.distill.losses import (
    distillation_loss,
    feature_loss,
    hard_loss,
    map_loss,
    ranking_loss,
    relation_loss,
)
from gft_edge.distill.teacher import Lesson, Teacher, load_teacher, ranked_patches, require_same_classes
from gft_edge.errors import ConfigError
from gft_edge.model.gft import FocalGFT, StageMaps
from gft_edge.preprocess import PreprocessSpec


@dataclass
class Distiller:
    """The teacher of one training and what is learned from it.

    Attributes:
        section: of the recipe.
        config: of the student.
        load: loads the teacher.
        taught: number of the student's selecting blocks whose choice is read afterwards.
        stored: answers on disk, None for a live teacher.
        features: the student's lifted features of the last pass, at most one.
    """

    section: DistillSection
    config: GFTConfig
    load: Callable[[], Teacher]
    taught: int
    stored: StoredAnswers | None = None
    features: list[Tensor] = field(default_factory=list)
    _teacher: Teacher | None = None

    @property
    def needs_maps(self) -> bool:
        """Whether :meth:`loss` reads the student's stages."""
        return self.section.masked or self.section.reads_map

    @property
    def teacher(self) -> Teacher:
        """The live teacher, loaded at the first use."""
        if self._teacher is None:
            self._teacher = self.load()
        return self._teacher

    def loss(
        self, label_loss: Tensor, logits: Tensor, images: Tensor, stages: Sequence[StageMaps], batch: int
    ) -> Tensor:
        """Returns the loss of the first pass of a step.

        Args:
            label_loss: of the same pass.
            logits: of the student, (B, classes) float32.
            images: as the student sees them, (B, 3, H, W).
            stages: of the student's pass; empty without :attr:`needs_maps`.
            batch: number of the batch in the training.

        Raises:
            CheckFailed: an answer of the teacher that is to be stored is NaN or infinite.
        """
        section, lesson = self.section, self._lesson(images, stages, batch)
        total = section.label_weight * label_loss
        if section.weight:
            total = total + section.weight * answer_loss(section, logits, lesson.logits)
        if section.feature_weight and lesson.features is not None:
            total = total + section.feature_weight * feature_loss(self.features.pop().float(), lesson.features)
        if lesson.map is not None:
            total = total + self._map_losses(stages, lesson.map)
        return total

    def consistency(self, loss: Tensor) -> Tensor:
        """Returns the weighted loss of a smaller budget against the full one."""
        return self.section.consistency_weight * loss

    def finish(self) -> None:
        """Writes the stored answers to disk."""
        if self.stored is not None:
            self.stored.flush()

    def _lesson(self, images: Tensor, stages: Sequence[StageMaps], batch: int) -> Lesson:
        if self.stored is None:
            kept = (
                ranked_patches(stages, self.config.num_patches, self.section.mask_keep) if self.section.masked else None
            )
            return self.teacher.teach(images, kept)
        found = self.stored.read(batch, images.device)
        if found is None:
            self.stored.write(batch, self.teacher.teach(images).logits)
            # Read back: the first training sees the rounded answers that every further one sees.
            found = self.stored.read(batch, images.device)
            assert found is not None
        return Lesson(found)

    def _map_losses(self, stages: Sequence[StageMaps], target: Tensor) -> Tensor:
        """Returns the weighted losses of the scores, mean over the taught blocks."""
        section, config = self.section, self.config
        everywhere = on_grid(target, config.grid)
        positions: Tensor | None = None
        total = torch.zeros((), device=target.device)
        for stage, keep in zip(stages[: self.taught], config.budget.keep):
            goal = everywhere if positions is None else everywhere.gather(1, positions)
            if section.map_weight:
                total = total + section.map_weight * map_loss(stage.scores, goal, section.map_temperature)
            if section.ranking_weight:
                total = total + section.ranking_weight * ranking_loss(stage.scores, goal, min(keep, goal.shape[1]))
            positions = stage.kept
        return total / max(1, self.taught)


def answer_loss(section: DistillSection, logits: Tensor, teacher: Tensor) -> Tensor:
    """Returns the loss of a recipe between the student's logits and the teacher's, (B, classes) each."""
    if section.loss == "kl":
        return distillation_loss(logits, teacher, section.temperature)
    if section.loss == "dist":
        return relation_loss(logits, teacher, section.temperature)
    return hard_loss(logits, teacher)


def on_grid(target: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns a map (B, rows, cols) on the student's grid, (B, N): means over cells where it is coarser, else between cells."""
    if target.shape[1:] != grid:
        target = F.interpolate(target.unsqueeze(1), grid, mode="bilinear", align_corners=False, antialias=True).squeeze(
            1
        )
    return target.flatten(1)


def open_distiller(
    recipe: Recipe,
    student: nn.Module,
    config: GFTConfig,
    spec: PreprocessSpec,
    images: ImageSet,
    out: Path,
    processes: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> Distiller | None:
    """Prepares the teacher of a recipe; returns None for a recipe without one.

    With a feature loss the student's classifier is replaced by one behind a projector; see :mod:`gft_edge.distill.lift`.

    Args:
        recipe: of the training.
        student: on its device.
        config, spec: of the student.
        images: of the training.
        out: folder of the training, for stored answers.
        processes: that train together.
        report: receives a line about stored answers.

    Raises:
        ArtifactError: the teacher's checkpoint is missing or damaged, or stored answers are.
        ConfigError: the teacher does not fit the student or the data, or stored answers belong to another training.
    """
    section = recipe.distill
    if section is None:
        return None
    path = resolve_checkpoint(section.teacher)
    info = read_info(path)
    require_same_classes(info.labels, images.labels, section.teacher)
    _require_fitting(section, info, config)
    device = next(student.parameters()).device
    taught = len(taught_blocks(student)) if isinstance(student, FocalGFT) else 0
    distiller = Distiller(section, config, lambda: _prepared(section, path, spec, device), taught)
    if section.feature_weight:
        width = getattr(distiller.teacher.classifier, "in_features", 0)
        lift = lift_head(student, width)
        features = distiller.features

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if module.training:
                features[:] = [output]

        lift.register_forward_hook(keep)
    if section.answers == "stored":
        if processes > 1:
            raise ConfigError("distill.answers = 'stored' is for one process; set answers = 'live'")
        file = Path(section.answers_file) if section.answers_file else out / ANSWERS
        identity = answers_identity(recipe, images, spec, checkpoint_hash(path, info))
        distiller.stored = open_answers(file, identity, recipe.train, config.num_classes, section.top_k)
        report(f"answers: {file} has those of {distiller.stored.done} of {distiller.stored.batches} batches")
    return distiller


def _prepared(section: DistillSection, path: Path, spec: PreprocessSpec, device: torch.device) -> Teacher:
    teacher = load_teacher(path, spec, device)
    classifier = classifier_of(teacher.model, "teacher") if section.feature_weight else None
    return Teacher(teacher.model, teacher.info, teacher.pixels, classifier, section.map if section.reads_map else None)


def _require_fitting(section: DistillSection, teacher: CheckpointInfo, student: GFTConfig) -> None:
    """Refuses a teacher or a student without the stages that a loss reads."""
    names = [name for name in ("map_weight", "ranking_weight", "masked") if getattr(section, name)]
    for name in names:
        for who, config in (("teacher", teacher.model), ("student", student)):
            if config.variant != "focal":
                raise ConfigError(
                    f"distill.{name}: the {who} is a {config.backbone} of variant {config.variant!r}, which selects no patches "
                    "and has no maps; give a focal model or leave it out"
                )
    if section.masked and teacher.model.grid != student.grid:
        raise ConfigError(
            f"distill.masked: the teacher has {teacher.model.grid[0]} x {teacher.model.grid[1]} patches, the student "
            f"{student.grid[0]} x {student.grid[1]}; the same patches exist in both only on the same grid"
        )
