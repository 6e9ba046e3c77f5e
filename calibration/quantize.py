"""Post-training quantization of a checkpoint in one call: smooth, observe, find ranges, quantize, check and repair the selection.

With :class:`QatOptions` the quantized model is then trained, distilled from the full-precision model, and reported next to a
control: the full-precision model, trained for as many steps on the same images and quantized afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from gft_edge.calibration.calibrate import (
    FOLDER,
    Source,
    module_ranges,
    note_unused_rules,
    with_known_data,
    write_calibration,
)
from gft_edge.calibration.certificates import (
    CERTIFICATES,
    images_for_bound,
    write_certificates,
)
from gft_edge.calibration.images import CalibrationSet, HeldOut, held_out_images, shared_images
from gft_edge.calibration.options import (
    SELECTIONS,
    SILENT,
    CalibrationOptions,
    Callbacks,
    Method,
    Selection,
    result_folder,
)
from gft_edge.calibration.ptq import PostTrained, QuantizedModel, observed_names, post_train
from gft_edge.calibration.qat import Distillation, QatSettings, quantization_aware
from gft_edge.calibration.qat_report import QatReport, report_qat
from gft_edge.calibration.ranges import Ranges, read_ranges
from gft_edge.calibration.selection_check import CheckedImages, SelectionCheck, check_selection
from gft_edge.calibration.smoothquant import folds
from gft_edge.checkpoint import Checkpoint, CheckpointInfo, require_full_precision, save_checkpoint
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.datasets import match_labels
from gft_edge.data.for_model import Request, forward_notes, labelled_images, once
from gft_edge.data.sets import ImageSet, readable
from gft_edge.data.trained import write_trained
from gft_edge.errors import ConfigError, DataError
from gft_edge.files import write_json
from gft_edge.quant.exact_selection import with_exact_selection
from gft_edge.quant.policy import (
    DEFAULT_POLICY,
    DEFAULT_SMOOTHING,
    AttentionPrecision,
    LayerPrecision,
    QuantPolicy,
    uniform_policy,
)

SELECTION, QAT_REPORT = "selection.json", "qat.json"

Chosen = tuple[CalibrationSet, ImageSet]


def recommended_policy(
    model: nn.Module, precision: LayerPrecision = "int8", attention: AttentionPrecision = "high"
) -> QuantPolicy:
    """Returns the default rules, with SmoothQuant for INT8 where the model has LayerNorms to fold it into."""
    policy = uniform_policy(precision, attention=attention)
    smoothed = precision == "int8" and folds(model, policy)
    return dataclasses.replace(policy, smoothquant=DEFAULT_SMOOTHING) if smoothed else policy


def recommended_method(policy: QuantPolicy) -> Method:
    """Returns how ranges are found unless something else is asked for: the error of INT8 is least by ``"mse"``."""
    return "mse" if any(rule.precision == "int8" for rule in policy.rules) else "max"


@dataclass(frozen=True)
class QatOptions:
    """Training after quantization.

    Args:
        settings: of the training.
        epochs: how often each training image is used; None takes the steps of the settings.
        eval_images: how many held-out images evaluate the result.
    """

    settings: QatSettings
    epochs: int | None = None
    eval_images: int = 1600


@dataclass(frozen=True)
class QuantizeOptions:
    """Images, policy and training of a quantization.

    Args:
        calibration: which images, and how ranges are found; :func:`recommended_method` is best.
        policy: precision of each layer; :func:`recommended_policy` is best.
        ranges: ranges.json of an earlier calibration, in place of calibrating.
        qat: training after quantization, or None.
        selection: ``"repair"`` raises layers to high precision where the selection or the logits are not within the limits of
            :mod:`~gft_edge.calibration.repair`; ``"exact"`` keeps every layer in high precision that the last selecting block
            reads; ``"as-is"`` does neither. None is ``"repair"``, and ``"as-is"`` with QAT.

    Raises:
        ConfigError: an unknown selection, a repair of a model that is trained afterwards, or known ranges or a state of earlier
            statistics together with SmoothQuant or QAT, which change the ranges.
    """

    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    policy: QuantPolicy = DEFAULT_POLICY
    ranges: Path | None = None
    qat: QatOptions | None = None
    selection: Selection | None = None

    def __post_init__(self) -> None:
        if self.selection not in (None, *SELECTIONS):
            raise ConfigError(f"selection must be one of {', '.join(SELECTIONS)}, found {self.selection!r}")
        if self.selection == "repair" and self.qat is not None:
            raise ConfigError("QAT changes the noise of every layer; use selection exact or as-is")
        if self.ranges is not None and self.policy.smoothquant is not None:
            raise ConfigError("SmoothQuant changes the ranges; leave out --ranges")
        if self.ranges is not None and self.qat is not None:
            raise ConfigError("the control of QAT is calibrated like the model; leave out --ranges")
        if self.calibration.state is not None and (self.policy.smoothquant is not None or self.qat is not None):
            raise ConfigError("SmoothQuant and QAT calibrate changed models; leave out the state")


@dataclass(frozen=True)
class QuantizeResult:
    """A quantized checkpoint.

    Attributes:
        out: its folder.
        info: its information.
        model: in eval mode.
        ranges: of its inputs; None where weights alone are quantized.
        card: of the calibration images, where some were chosen.
        selection: comparison of the selection with that of the full-precision model.
        qat: evaluation of the training, where there was one.
    """

    out: Path
    info: CheckpointInfo
    model: nn.Module
    ranges: Ranges | None
    card: CalibrationSet | None
    selection: SelectionCheck
    qat: QatReport | None

    @property
    def summary(self) -> dict[str, Any]:
        """The record of the quantization in config.json."""
        assert self.info.quantization is not None
        return self.info.quantization

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        data = {
            "out": str(self.out),
            **self.summary,
            "selection": self.selection.to_json(),
            "certificates": self.selection.certificates.to_json(),
        }
        return data if self.qat is None else {**data, "qat_report": self.qat.to_json()}


def quantize_checkpoint(
    checkpoint: Checkpoint, options: QuantizeOptions, out: Path, callbacks: Callbacks = SILENT
) -> QuantizeResult:
    """Quantizes a checkpoint and writes the result with its calibration as a new checkpoint.

    Args:
        checkpoint: in full precision.
        options: images, policy and training.
        out: new folder.
        callbacks: progress, notes, unreadable images, and the figure.

    Raises:
        ConfigError, ArtifactError, DataError: the checkpoint is quantized, or policy, ranges or images cannot be used.
        CheckFailed: logits or the loss are not finite.
        ResultNotWrittenError: ``out`` cannot be written; the error holds the result.
    """
    require_full_precision(checkpoint.info, checkpoint.path)
    if options.selection == "exact":
        options = dataclasses.replace(options, policy=with_exact_selection(options.policy, checkpoint.info.model))
    needs_ranges = bool(observed_names(checkpoint.model, options.policy))  # refuses the policy before images are read
    note_unused_rules(checkpoint.model, options.policy, callbacks)
    options = dataclasses.replace(options, calibration=with_known_data(checkpoint, options.calibration))
    callbacks = dataclasses.replace(callbacks, note=once(callbacks.note))
    with result_folder(out) as making:
        run = _Run.prepare(checkpoint, options, needs_ranges, callbacks)
        result = making.result = run.quantize(out)
        run.write(making.folder, result)
    return result


@dataclass(frozen=True)
class _QatImages:
    """Images to train on and images to evaluate on, which have none in common."""

    training: ImageSet
    held_out: HeldOut
    settings: QatSettings


@dataclass(frozen=True)
class _Run:
    """A quantization whose images are opened and whose options are checked.

    Attributes:
        checkpoint, options, callbacks: as given, the data filled in.
        known: ranges of an earlier calibration, or None.
        chosen: calibration images; None where nothing needs them.
        held_out: images that the selection is checked on; None where none are known.
        bounding: images that the noise of the scores is bounded on; None takes one half of those that check the selection.
        qat: images of the training, or None.
    """

    checkpoint: Checkpoint
    options: QuantizeOptions
    callbacks: Callbacks
    known: Ranges | None
    chosen: Chosen | None
    held_out: HeldOut | None
    bounding: HeldOut | None
    qat: _QatImages | None

    @classmethod
    def prepare(
        cls, checkpoint: Checkpoint, options: QuantizeOptions, needs_ranges: bool, callbacks: Callbacks
    ) -> _Run:
        """Opens all images and reads known ranges."""
        calibration, known = options.calibration, None
        if options.ranges is not None:
            known = read_ranges(options.ranges)
            known.require_model(checkpoint.sha256, f"checkpoint {checkpoint.path}")
        calibrating = options.policy.smoothquant is not None or (known is None and needs_ranges)
        size = checkpoint.info.preprocess.height
        assert calibration.data is not None
        held_out = held_out_images(calibration.data, calibration.against, calibration.images, size, checkpoint.path)
        bounding = None
        if held_out is not None:
            bounding = images_for_bound(held_out, calibration.images, size, checkpoint.path)
        qat = None if options.qat is None else _open_qat(checkpoint, calibration, options.qat, callbacks)
        chosen = None
        if calibrating or held_out is None:
            chosen = Source.of(checkpoint).choose(calibration, callbacks)
        if bounding is not None and chosen is not None and shared_images(bounding.images, chosen[1]):
            bounding = None  # a range fits the images that found it: their noise bounds no other image's
        return cls(checkpoint, options, callbacks, known, chosen, held_out, bounding, qat)

    def quantize(self, out: Path) -> QuantizeResult:
        """Calibrates, quantizes, trains where that is asked for, and checks the selection."""
        info, calibration = self.checkpoint.info, self.options.calibration
        done = self._post_train(self.checkpoint.model)
        quantized, report = done.quantized, None
        if self.qat is not None:
            quantized, report = self._train(self.qat, done)
        wanted = self.options.selection == "repair" or (self.options.selection is None and self.qat is None)
        checked, policy = self._checked(), self.options.policy
        quantized, selection = check_selection(
            self.checkpoint, policy if wanted else None, done, quantized, checked, self.callbacks
        )
        summary = {
            **quantized.summary,
            "data": calibration.data,
            "split": calibration.split,
            "preprocess": info.preprocess.id,
            "calibration_set": None if done.ranges is None else done.ranges.card_id,
        }
        provenance = {**info.provenance, "quantized_from": self.checkpoint.sha256}
        new_info = dataclasses.replace(info, quantization=summary, provenance=provenance)
        card = None if self.chosen is None else self.chosen[0]
        return QuantizeResult(out, new_info, quantized.model, done.ranges, card, selection, report)

    def _checked(self) -> CheckedImages:
        """Returns held-out images where some are known, else the calibration images."""
        if self.held_out is not None:
            return CheckedImages(
                self.held_out.images, self.held_out.data, str(self.held_out.split), True, self.bounding
            )
        assert self.chosen is not None
        card, images = self.chosen
        return CheckedImages(images, card.data, card.split, False, None)

    def write(self, folder: Path, result: QuantizeResult) -> None:
        """Writes the checkpoint and its calibration folder."""
        save_checkpoint(folder, result.info, result.model)
        write_trained(folder, None if self.qat is None else self.qat.training, self.checkpoint.path)
        if result.ranges is not None:
            card = result.card if self.known is None else None
            write_calibration(folder / FOLDER, card, result.ranges, self.callbacks)
        write_json(folder / FOLDER / SELECTION, result.selection.to_json())
        write_certificates(folder / FOLDER / CERTIFICATES, result.selection.certificates)
        if result.qat is not None:
            write_json(folder / FOLDER / QAT_REPORT, result.qat.to_json())

    def _post_train(self, model: nn.Module) -> PostTrained:
        spec = self.checkpoint.info.preprocess

        def find_ranges(model: nn.Module, names: list[str]) -> Ranges:
            if self.known is not None:
                return self.known
            assert self.chosen is not None
            source, calibration = Source.of(self.checkpoint), self.options.calibration
            return module_ranges(model, names, source, calibration, self.chosen, self.callbacks)

        def batches() -> Any:
            assert self.chosen is not None
            return (batch for batch, _ in evaluation_batches(self.chosen[1], spec))

        return post_train(model, self.options.policy, batches, find_ranges)

    def _train(self, data: _QatImages, start: PostTrained) -> tuple[QuantizedModel, QatReport]:
        """Trains and evaluates; images that cannot be read are reported once, after both."""
        info, track, problem = self.checkpoint.info, self.callbacks.track, self.callbacks.problem
        unreadable: set[str] = set()
        collect: Callable[[str], None] | None = None if problem is None else unreadable.add
        task = Distillation(self.checkpoint.model, info.model, data.training, info.preprocess, data.settings)
        outcome = quantization_aware(task, start, lambda model: self._post_train(model).quantized, track, collect)
        images, source = data.held_out.images, f"{data.held_out.split} images of {data.held_out.data}"
        batches = track(
            evaluation_batches(images, info.preprocess, problem=collect), "evaluate", batch_count(len(images))
        )
        report = report_qat(task, start.quantized.model, outcome, batches, source, info.labels)
        if problem is not None:
            for text in sorted(unreadable):
                problem(text)
        return outcome.quantized, report


def _open_qat(
    checkpoint: Checkpoint, calibration: CalibrationOptions, options: QatOptions, callbacks: Callbacks
) -> _QatImages:
    """Opens training and held-out images and settles the number of steps.

    Raises:
        DataError: no held-out images, images of both sets, too few of them, or other classes than the model's.
    """
    info, settings, data = checkpoint.info, options.settings, calibration.data
    assert data is not None
    size = info.preprocess.height
    request = Request(data, calibration.split, settings.train_images, settings.seed)
    training = readable(labelled_images(request, size, info.labels, note=callbacks.note))
    if len(training) < settings.batch_size:
        raise DataError(
            f"data {data}: {len(training)} training images are fewer than one batch of {settings.batch_size}; "
            "lower it with --qat-set batch_size=N"
        )
    found = held_out_images(data, calibration.against, options.eval_images, size, checkpoint.path)
    if found is None:
        raise DataError(
            f"data {data}: QAT needs evaluation images that it is not trained on; give the data train and test folders, "
            "or name other data with --against"
        )
    held_out = dataclasses.replace(found, images=match_labels(found.images, info.labels, found.data))
    if callbacks.note is not None:
        forward_notes(held_out.images, callbacks.note)
    shared = shared_images(training, held_out.images)
    if shared:
        raise DataError(
            f"data {data}: {shared} training images are also among the {found.split} images of {found.data} that evaluate "
            "QAT; choose another --split or --against"
        )
    if options.epochs is not None:
        settings = dataclasses.replace(settings, steps=batch_count(options.epochs * len(training), settings.batch_size))
    return _QatImages(training, held_out, settings)
