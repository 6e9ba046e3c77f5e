"""Right answers of one checkpoint at many budgets and precisions, on images that are read once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from gft_edge.budget import TokenBudget
from gft_edge.calibration.calibrate import Source, module_ranges, note_unused_rules, with_known_data
from gft_edge.calibration.options import CalibrationOptions, Callbacks
from gft_edge.calibration.ptq import observed_names, post_train
from gft_edge.checkpoint import Checkpoint
from gft_edge.data.batches import batch_count, evaluation_batches, indexed_batches
from gft_edge.data.sets import ImageSet
from gft_edge.errors import DataError
from gft_edge.model.gft import FocalGFT
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.quant.policy import QuantPolicy
from gft_edge.runtime.finite import require_finite
from gft_edge.search.tree import tree_logits

Rights = npt.NDArray[np.bool_]


def measure_rights(
    work: Sequence[tuple[FocalGFT, Sequence[TokenBudget]]],
    images: ImageSet,
    spec: PreprocessSpec,
    where: str,
    problem: Callable[[str], None] | None = None,
    track: Track = silent,
    title: str = "accuracy",
) -> tuple[list[Rights], list[int]]:
    """Returns the right answers of each model at its budgets, (budgets, images) each, and the indices of these images.

    Args:
        work: models in eval mode, each with its budgets.
        images: with the models' class numbers.
        spec: preprocessing of all of them.
        where: name of the weights, for messages.
        problem: receives why an image cannot be read; the image is then left out.
        track: shows progress, batch by batch.
        title: of the progress.

    Raises:
        DataError: an image cannot be read, or none of them.
        CheckFailed: NaN or infinite logits.
    """
    columns: list[list[Rights]] = [[] for _ in work]
    seen: list[int] = []
    batches = indexed_batches(images, spec, problem=problem)
    for indices, pixels, truth in track(batches, title, batch_count(len(images))):
        seen += indices
        batch = torch.from_numpy(pixels)
        for (model, budgets), collected in zip(work, columns):
            answers = []
            for budget, logits in zip(budgets, tree_logits(model, batch, budgets)):
                found = logits.float().numpy()
                require_finite(found, f"{where} at {budget.id}")
                answers.append(found.argmax(axis=1) == truth)
            collected.append(np.array(answers, bool).reshape(len(budgets), len(truth)))
    if not seen:
        raise DataError("none of the images can be read")
    return [np.concatenate(parts, axis=1) for parts in columns], seen


def models_of(
    checkpoint: Checkpoint,
    precisions: Sequence[str],
    policies: Mapping[str, QuantPolicy],
    calibration: CalibrationOptions,
    callbacks: Callbacks,
) -> dict[str, FocalGFT]:
    """Returns the model of a checkpoint at each precision; images for calibration are read once, and only for INT8.

    ``"fp16"`` is rounded to FP16 and computes in FP32; INT8 is computed by quantizing layers, the rest in FP32.

    Args:
        checkpoint: in full precision.
        precisions: ``"fp32"``, ``"fp16"``, and names of ``policies``.
        policies: of quantization.
        calibration: which images, as ``quantize`` takes them by default.
        callbacks: progress and notes.

    Raises:
        ConfigError, DataError: a policy that quantizes nothing, or no calibration images.
    """
    found: dict[str, FocalGFT] = {}
    if any(name in policies for name in precisions):
        calibration = with_known_data(checkpoint, calibration)
        source = Source.of(checkpoint)
        chosen = source.choose(calibration, callbacks)
    for name in precisions:
        model = checkpoint.model
        assert isinstance(model, FocalGFT)
        if name == "fp16":
            model = rounded_to_half(model)
        elif name in policies:
            policy = policies[name]
            observed_names(model, policy)  # refuses the policy before images are read
            note_unused_rules(model, policy, callbacks)
            quantized = post_train(
                model,
                policy,
                lambda: (batch for batch, _ in evaluation_batches(chosen[1], checkpoint.info.preprocess)),
                lambda m, names: module_ranges(m, names, source, calibration, chosen, callbacks),
            ).quantized.model.eval()
            assert isinstance(quantized, FocalGFT)
            model = quantized
        found[name] = model
    return found


def rounded_to_half(model: FocalGFT) -> FocalGFT:
    """Returns a copy whose weights are rounded to FP16 and stored in their own type again."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in copied.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    return copied
