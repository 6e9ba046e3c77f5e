"""Sensitivity of a checkpoint in one call: effects and times of its layers in INT8, a search, and their record sensitivity.json."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from gft_edge.calibration.calibrate import (
    CARD,
    Source,
    module_ranges,
    note_unused_rules,
    with_known_data,
    write_calibration,
)
from gft_edge.calibration.images import CalibrationSet, hash_images
from gft_edge.calibration.options import SILENT, CalibrationOptions, Callbacks, result_folder
from gft_edge.calibration.ranges import Ranges, read_ranges
from gft_edge.calibration.sensitivity.effects import Effect, MixedModel, Sensitivity, measure_sensitivity, run_mixed
from gft_edge.calibration.sensitivity.mixed import AccuracyLimit, MixedPrecision, mixed_policy, search_mixed
from gft_edge.checkpoint import Checkpoint, require_full_precision
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.for_model import Request, labelled_images, once
from gft_edge.data.sets import ImageSet
from gft_edge.data.splits import Split
from gft_edge.errors import ConfigError, DataError
from gft_edge.files import canonical_json, write_json
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy
from gft_edge.storage.seals import read_sealed, sealed

SCHEMA = 1
BATCH = 16
RECORD, POLICY = "sensitivity.json", "policy.json"


@dataclass(frozen=True)
class TimedLayer:
    """Work and time of one layer for one image.

    Attributes:
        shape: in words, for example ``145 x 128 x 384``.
        macs: multiply-accumulates.
        high_ms, int8_ms: milliseconds in high precision and in INT8.
    """

    shape: str
    macs: int
    high_ms: float
    int8_ms: float

    @property
    def saved_ms(self) -> float:
        """Milliseconds that INT8 saves; negative where it is slower."""
        return self.high_ms - self.int8_ms


@dataclass(frozen=True)
class LayerTimes:
    """Times of layers, each as if it ran alone.

    Attributes:
        layers: by name.
        source: where the times come from, in words.
        high: the high precision, ``"FP32"`` or ``"FP16"``.
        kind: measured times, or bounds.
        machine: conditions of a measurement, or None.
    """

    layers: Mapping[str, TimedLayer]
    source: str
    high: str
    kind: Literal["measured", "bound"]
    machine: Mapping[str, Any] | None = None


TimeLayers = Callable[[nn.Module, Sequence[str], int], LayerTimes]
"""Returns times of the named layers of a model, for images of so many rows and columns."""


@dataclass(frozen=True)
class SensitivityOptions:
    """Layers, images and limit of a sensitivity measurement.

    Args:
        calibration: which calibration images, and how ranges are found.
        policy: its INT8 layers are measured.
        ranges: ranges.json of an earlier calibration, in place of calibrating.
        eval_data: evaluation images; None takes those of the calibration data.
        eval_images: how many of them.
        eval_split: which part of them.
        limit: of the mixed-precision search; None searches nothing.

    Raises:
        ConfigError: the policy has other precisions than INT8, or SmoothQuant.
    """

    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    policy: QuantPolicy = DEFAULT_POLICY
    ranges: Path | None = None
    eval_data: str | None = None
    eval_images: int = 640
    eval_split: Split = "val"
    limit: AccuracyLimit | None = None

    def __post_init__(self) -> None:
        other = [rule for rule in self.policy.rules if rule.precision not in ("int8", "high")]
        if other or self.policy.smoothquant is not None:
            what = f"{other[0].pattern!r} in {other[0].precision}" if other else "SmoothQuant"
            raise ConfigError(f"compares INT8 with full precision only; remove {what} from the policy")


@dataclass(frozen=True)
class EvaluationImages:
    """Images that effects are measured on.

    Attributes:
        data, split: where they are from.
        images: the images, with the model's class numbers.
        hashed: the hashed content, see :func:`~gft_edge.calibration.images.hash_images`.
        hashes: of each image.
    """

    data: str
    split: Split
    images: ImageSet
    hashed: str
    hashes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values, with one hash over all images."""
        return {
            "data": self.data,
            "split": self.split,
            "images": len(self.hashes),
            "hashed": self.hashed,
            "sha256": hashlib.sha256("\n".join(self.hashes).encode()).hexdigest(),
        }


@dataclass(frozen=True)
class SensitivityResult:
    """Everything that was measured.

    Attributes:
        out: folder of the record.
        checkpoint: that was measured.
        options: of the measurement, with the data filled in.
        evaluation: images.
        card: of the calibration images, where it is known.
        ranges: of the inputs of layers.
        overlap: comparison of calibration and evaluation images, in words.
        found: effects of each layer.
        times: of each layer.
        search: the mixed-precision search, or None.
        policy: of the best attempt, or None.
    """

    out: Path
    checkpoint: Checkpoint
    options: SensitivityOptions
    evaluation: EvaluationImages
    card: CalibrationSet | None
    ranges: Ranges
    overlap: str
    found: Sensitivity
    times: LayerTimes
    search: MixedPrecision | None
    policy: QuantPolicy | None

    @property
    def unmet(self) -> str | None:
        """Reason why the search found no policy; None if it found one or there was no search."""
        if self.search is None or self.search.best is not None:
            return None
        saving = [layer for layer in self.found.layers if self.times.layers[layer.name].saved_ms > 0]
        kept = f"the measurements are in {self.out / RECORD}"
        if not saving:
            return f"no layer is faster in INT8 here, so there is nothing to choose; {kept}"
        best = min(saving, key=lambda layer: layer.only.noise)
        alone = "no error" if best.only.sqnr_db is None else f"{best.only.sqnr_db:.1f} dB"
        return (
            f"no layer that saves time is within the limit ({self.search.limit}): the least harmful, {best.name}, alone has "
            f"{alone} and loses {best.only.lost_points:.2f} points; allow more, or calibrate differently; {kept}"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the content of sensitivity.json."""
        info, ranges = self.checkpoint.info, self.ranges
        search = None
        if self.search is not None:
            data = self.search.to_json()
            search = {**data, "limit": {**data["limit"], "text": str(self.search.limit)}}
        return {
            "schema": SCHEMA,
            "checkpoint": self.checkpoint.sha256,
            "budget": info.model.budget.id,
            "preprocess": info.preprocess.id,
            "ranges": {
                "sha256": hashlib.sha256(canonical_json(sealed(ranges.to_json())).encode()).hexdigest(),  # ranges.json
                "calibration_set": ranges.card_id,
                "method": ranges.method,
                "images": ranges.images,
            },
            "evaluation": self.evaluation.to_json(),
            "top1": self.found.top1,
            "everything": self.found.everything.to_json(),
            "layers": [
                {
                    "name": layer.name,
                    **dataclasses.asdict(self.times.layers[layer.name]),
                    "only": layer.only.to_json(),
                    "all_but": layer.all_but.to_json(),
                }
                for layer in self.found.layers
            ],
            "times": {
                "source": self.times.source,
                "high": self.times.high,
                "kind": self.times.kind,
                "machine": self.times.machine,
            },
            "search": search,
        }


def study_sensitivity(
    checkpoint: Checkpoint,
    options: SensitivityOptions,
    time_layers: TimeLayers,
    out: Path,
    callbacks: Callbacks = SILENT,
    write_page: Callable[[Path], object] | None = None,
) -> SensitivityResult:
    """Measures effects and times of the layers of a checkpoint and searches a policy within a limit.

    Writes sensitivity.json, the calibration and, where the search finds one, policy.json.

    Args:
        checkpoint: in full precision.
        options: layers, images and limit.
        time_layers: measures or predicts the times.
        out: new folder.
        callbacks: progress, notes and the figure of the ranges.
        write_page: writes a page from the sensitivity.json in a folder.

    Raises:
        ConfigError, ArtifactError, DataError: the checkpoint is quantized, or policy, ranges or images cannot be used.
        CheckFailed: logits that are not finite in full precision.
        ResultNotWrittenError: ``out`` cannot be written; the error holds the result.
    """
    require_full_precision(checkpoint.info, checkpoint.path)
    names = quantized_names(checkpoint.model, options.policy)
    note_unused_rules(checkpoint.model, options.policy, callbacks)
    calibration = with_known_data(checkpoint, options.calibration)
    options = dataclasses.replace(options, calibration=calibration, eval_data=options.eval_data or calibration.data)
    opening = dataclasses.replace(callbacks, note=once(callbacks.note))
    with result_folder(out) as making:
        folder = making.folder
        evaluation = _open_evaluation(checkpoint, options, opening)
        card, ranges, overlap = _calibrate(checkpoint, names, options, evaluation, opening)
        times = time_layers(checkpoint.model, names, checkpoint.info.model.image_size)
        mixed = MixedModel(checkpoint.model, ranges.values, names)
        found, search = _measure(mixed, checkpoint, options, evaluation, times, callbacks)
        saved = {name: layer.saved_ms for name, layer in times.layers.items()}
        best = None if search is None else search.best
        policy = None if best is None else mixed_policy(found, saved, best.int8)
        result = making.result = SensitivityResult(
            out, checkpoint, options, evaluation, card, ranges, overlap, found, times, search, policy
        )
        if policy is not None:
            write_json(folder / POLICY, policy.to_json())
        write_calibration(folder, card, ranges, callbacks)
        write_json(folder / RECORD, result.to_json())
        if write_page is not None:
            write_page(folder)
    return result


def _open_evaluation(checkpoint: Checkpoint, options: SensitivityOptions, callbacks: Callbacks) -> EvaluationImages:
    info, data = checkpoint.info, options.eval_data
    assert data is not None
    request = Request(data, options.eval_split, options.eval_images)
    images = labelled_images(request, info.model.image_size, info.labels, checkpoint.path, callbacks.note)
    return EvaluationImages(data, options.eval_split, images, *hash_images(images))


def _calibrate(
    checkpoint: Checkpoint,
    names: list[str],
    options: SensitivityOptions,
    evaluation: EvaluationImages,
    callbacks: Callbacks,
) -> tuple[CalibrationSet | None, Ranges, str]:
    """Returns the card where it is known, the ranges, and the comparison of their images with those of the evaluation."""
    if options.ranges is not None:
        ranges = read_ranges(options.ranges)
        ranges.require_model(checkpoint.sha256, f"checkpoint {checkpoint.path}")
        card = _card_beside(options.ranges, ranges)
        return card, ranges, _compare(card, evaluation, options.calibration.force)
    source = Source.of(checkpoint)
    chosen = source.choose(options.calibration, callbacks)
    overlap = _compare(chosen[0], evaluation, options.calibration.force)
    ranges = module_ranges(checkpoint.model, names, source, options.calibration, chosen, callbacks)
    return chosen[0], ranges, overlap


def _card_beside(path: Path, ranges: Ranges) -> CalibrationSet | None:
    """Reads the card in the folder of a ranges.json; None if there is none of these ranges."""
    file = path.parent / CARD
    if not file.is_file():
        return None
    card = CalibrationSet.from_json(
        read_sealed(file, "calibration card", "calibrate again"), f"calibration card {file}"
    )
    return card if card.id == ranges.card_id else None


def _compare(card: CalibrationSet | None, evaluation: EvaluationImages, force: bool) -> str:
    """Refuses evaluation images that ranges were found on; returns the comparison in words."""
    where = f"{len(evaluation.hashes)} {evaluation.split} images of {evaluation.data}"
    if card is None or card.hashed != evaluation.hashed:
        return f"calibration images not compared with the {where}: their hashes are not known"
    common = len(set(evaluation.hashes) & set(card.hashes))
    if common and not force:
        raise DataError(
            f"data {card.data}: {common} calibration images are also among the {where}; choose another --split, "
            "--eval-split or --eval-data, or --force"
        )
    return f"{card.describe()}; {common} of them among the {where}"


def _measure(
    mixed: MixedModel,
    checkpoint: Checkpoint,
    options: SensitivityOptions,
    evaluation: EvaluationImages,
    times: LayerTimes,
    callbacks: Callbacks,
) -> tuple[Sensitivity, MixedPrecision | None]:
    """Measures each layer and, with a limit, searches for the layers to run in INT8."""
    info, images = checkpoint.info, evaluation.images
    batches = functools.partial(evaluation_batches, images, info.preprocess, BATCH)
    count = batch_count(len(images), BATCH)
    found, evaluator = measure_sensitivity(mixed, batches, count, info.model.num_patches, callbacks.track)
    if options.limit is None:
        return found, None

    def run(int8: Sequence[str]) -> Effect:
        if callbacks.note is not None:
            callbacks.note(f"sensitivity: running {len(int8)} of {len(mixed.names)} layers in INT8")
        return evaluator.effect(run_mixed(mixed, int8, batches))

    saved = {name: layer.saved_ms for name, layer in times.layers.items()}
    return found, search_mixed(found, saved, options.limit, run)
