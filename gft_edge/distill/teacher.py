"""A teacher: a checkpoint of any model, run without gradients on the pixels of its student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gft_edge.checkpoint import CheckpointInfo, load_checkpoint
from gft_edge.errors import ConfigError
from gft_edge.labels import first_difference
from gft_edge.model.focal_block import FocalBlock
from gft_edge.model.gft import FocalGFT, StageMaps
from gft_edge.model.selection import gather_tokens, select_patches, token_indices
from gft_edge.preprocess import PreprocessSpec


class Lesson(NamedTuple):
    """What a teacher says about a batch.

    Attributes:
        logits: or log-probabilities, (B, classes).
        features: that its classifier reads, (B, C); None unless asked for.
        map: importance of the patches on its own grid, (B, rows, cols), none negative; None unless asked for.
    """

    logits: Tensor
    features: Tensor | None = None
    map: Tensor | None = None


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        model: in eval mode, on the device of the training.
        info: of its checkpoint.
        pixels: maps the student's images to its own.
        classifier: layer whose input are its features; None unless they are wanted.
        map: kind of its map, see :class:`gft_edge.config.recipe.DistillSection`; None unless it is wanted.
    """

    model: Any
    info: CheckpointInfo
    pixels: Callable[[Tensor], Tensor]
    classifier: nn.Module | None = None
    map: str | None = None

    @torch.no_grad()
    def teach(self, images: Tensor, kept: Tensor | None = None) -> Lesson:
        """Returns the lesson about images (B, 3, H, W) of the student, at the teacher's full budget.

        Args:
            images: normalised as the student's.
            kept: patches that a masked teacher sees, (B, K) int64; None for all.
        """
        images, config = self.pixels(images), self.info.model
        taken: list[Tensor] = []
        hook = None
        if self.classifier is not None:
            hook = self.classifier.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
        try:
            found = None
            if kept is not None:
                logits = masked_logits(self.model, images, kept)
            elif self.map == "rollout":
                logits, found = rollout_map(self.model, images)
            elif self.map == "importance":
                logits, stages = self.model(images, config.full_budget, maps=True)
                found = stages[0].importance
            else:
                logits = self.model(images, config.budget if config.is_baseline else config.full_budget)
        finally:
            if hook is not None:
                hook.remove()
        grid = None if found is None else found.float().unflatten(1, config.grid)
        return Lesson(logits.float(), taken[0].float() if taken else None, grid)


def load_teacher(path: Path, student: PreprocessSpec, device: torch.device) -> Teacher:
    """Reads a teacher for a student of the given preprocessing.

    Raises:
        ArtifactError: the checkpoint is missing or damaged.
    """
    checkpoint = load_checkpoint(path)
    model = checkpoint.model.to(device).eval().requires_grad_(False)
    return Teacher(model, checkpoint.info, pixel_change(student, checkpoint.info.preprocess))


def require_same_classes(teacher: Sequence[str], student: Sequence[str], where: object) -> None:
    """Refuses a teacher of other classes, or of the same in another order.

    Raises:
        ConfigError: with the first label that differs.
    """
    if difference := first_difference(teacher, student):
        number, theirs, own = difference
        raise ConfigError(
            f"teacher {where}: its {len(teacher)} classes are not the {len(student)} of the data; class {number} is "
            f"{theirs} for the teacher and {own} in the data; train or adopt the teacher on the same classes"
        )


def pixel_change(student: PreprocessSpec, teacher: PreprocessSpec) -> Callable[[Tensor], Tensor]:
    """Returns a function from the student's images (B, 3, H, W) to the teacher's (B, 3, H', W').

    The teacher sees what the student sees, so its own crop is not repeated: colours and normalisation are its own, and an image of
    another size is resized, bilinear and antialiased.
    """
    size = teacher.height, teacher.width
    same_values = (student.mean, student.std, student.color_order) == (teacher.mean, teacher.std, teacher.color_order)

    def change(images: Tensor) -> Tensor:
        if not same_values:
            scale, shift = _per_channel(student, images)
            images = (images - shift) / scale
            if student.color_order != teacher.color_order:
                images = images.flip(1)
            scale, shift = _per_channel(teacher, images)
            images = images * scale + shift
        if images.shape[2:] != size:  # resizing and normalisation commute
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return images

    return change


def _per_channel(spec: PreprocessSpec, images: Tensor) -> tuple[Tensor, Tensor]:
    scale, shift = (torch.from_numpy(values).to(images)[:, None, None] for values in spec.scale_and_shift())
    return scale, shift


def masked_logits(teacher: FocalGFT, images: Tensor, kept: Tensor) -> Tensor:
    """Returns the logits (B, classes) of a focal teacher that sees only some patches, at the cost of these (MaskedKD).

    Args:
        teacher: its grid is that of the student.
        images: (B, 3, H, W).
        kept: positions of the patches, (B, K) int64.
    """
    x = teacher.embed(images)
    x = gather_tokens(x, token_indices(kept, teacher.num_prefix_tokens))
    for block in teacher.blocks:
        x = block(x)
    return teacher.forward_head(teacher.norm(x))


def ranked_patches(stages: Sequence[StageMaps], num_patches: int, share: float) -> Tensor:
    """Returns the positions of the patches that a student ranks highest, (B, K) int64 in raster order.

    Patches that survive more selections come first, then those of the higher score.

    Args:
        stages: of the student's pass.
        num_patches: N, of the whole image.
        share: K is this share of N, rounded, at least 1.
    """
    scores = stages[0].scores.detach()
    value = torch.zeros(len(scores), num_patches, device=scores.device)
    positions = torch.arange(num_patches, device=scores.device).expand(len(scores), -1)
    for number, stage in enumerate(stages):
        ranks = stage.scores.detach().argsort(dim=1).argsort(dim=1).to(value.dtype)
        value.scatter_(1, positions, number * num_patches + ranks)
        positions = stage.kept
    return select_patches(value, max(1, round(share * num_patches)))


def rollout_map(teacher: FocalGFT, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logits (B, classes) of a focal teacher with every patch, and what reaches its class token from each, (B, N).

    The class row of the product over all blocks of (A + I) / 2, where A is the attention, mean over the heads (Abnar and Zuidema,
    2020, arXiv 2005.00928).
    """
    attention: list[Tensor] = []

    def keep(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        q, k = (t.float().unflatten(2, (module.num_heads, -1)).transpose(1, 2) for t in inputs[:2])
        attention.append((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=3).mean(dim=1))

    hooks = []
    for block in teacher.blocks:
        assert isinstance(block, FocalBlock)
        hooks.append(block.attn.attend.register_forward_hook(keep))
    try:
        logits = teacher(images, teacher.config.full_budget)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, rollout(attention)[:, teacher.num_prefix_tokens :]


def rollout(attention: Sequence[Tensor]) -> Tensor:
    """Returns the class row (B, T) of the product of (A + I) / 2 over blocks, from their attention (B, T, T), first to last."""
    row = torch.zeros_like(attention[0][:, 0])
    row[:, 0] = 1
    for weights in reversed(attention):
        row = (row + (row.unsqueeze(1) @ weights).squeeze(1)) / 2
    return row
