"""Calibration in one call: chooses images, runs them through a checkpoint or an artefact's graph, and writes the ranges."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from gft_edge.calibration.cache import CalibrationCache, encode_version, write_cache
from gft_edge.calibration.images import CalibrationSet, Features, choose_images, model_features
from gft_edge.calibration.observing.collect import Collector, observe
from gft_edge.calibration.options import (
    CACHE_ALGORITHMS,
    SILENT,
    CalibrationOptions,
    Calibrator,
    Callbacks,
    ResultNotWrittenError,
)
from gft_edge.calibration.ranges import Ranges
from gft_edge.checkpoint import Checkpoint, require_full_precision
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.for_model import forward_notes, known_data
from gft_edge.data.sets import ImageSet, Subset
from gft_edge.errors import OutputError
from gft_edge.files import new_folder, replacing, require_free, require_writable_folder
from gft_edge.manifest import MODEL, Artifact, register_files
from gft_edge.preprocess import PreprocessSpec
from gft_edge.quant.attention import MEASURED_PARTS, attention_names, unused_patterns
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy
from gft_edge.runtime.artifact_graph import load_artifact_graph
from gft_edge.runtime.backends.graph_io import to_graph_input
from gft_edge.storage.locks import locked
from gft_edge.storage.seals import write_sealed

BATCH = 16
SAVE_EVERY = 8
"""Batches between two writes of the state."""
FOLDER = "calibration"
CARD, RANGES, CONVERGENCE = "card.json", "ranges.json", "convergence.svg"
SHOWN_PATTERNS = 3

Batches = Iterable[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Calibrated:
    """Ranges and the images they were found on.

    Attributes:
        out: folder they are written to.
        card: of the images.
        ranges: as found.
        caches: TensorRT calibration caches that were written.
    """

    out: Path
    card: CalibrationSet
    ranges: Ranges
    caches: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "out": str(self.out),
            "card": self.card.to_json(),
            "ranges": self.ranges.to_json(),
            "caches": [str(path) for path in self.caches],
        }


@dataclass(frozen=True)
class CacheOptions:
    """TensorRT calibration caches to write.

    Args:
        versions: of TensorRT, one cache each.
        calibrator: TensorRT class that will read them.

    Raises:
        ConfigError: a version without calibration caches.
    """

    versions: tuple[str, ...] = ("8.6.1", "10.3.0")
    calibrator: Calibrator = "entropy2"

    def __post_init__(self) -> None:
        for version in self.versions:
            encode_version(version)


@dataclass(frozen=True)
class Source:
    """A model that calibration images run through.

    Attributes:
        sha256: of the checkpoint or the ONNX file.
        spec: its preprocessing.
        labels: its classes.
        features: returns what computes the classifier's inputs; called for a choice by coverage only.
    """

    sha256: str
    spec: PreprocessSpec
    labels: tuple[str, ...]
    features: Callable[[], Features]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Source:
        """Returns the source of a checkpoint's model."""
        info = checkpoint.info
        return cls(
            checkpoint.sha256, info.preprocess, info.labels, lambda: model_features(checkpoint.model, info.preprocess)
        )

    def choose(self, options: CalibrationOptions, callbacks: Callbacks) -> tuple[CalibrationSet, ImageSet]:
        """Chooses calibration images; raises as :func:`choose_images` does."""
        features = self.features() if options.choice == "coverage" else None
        card, images = choose_images(options, self.spec, self.labels, features, callbacks.problem)
        if callbacks.note is not None:
            forward_notes(images, callbacks.note)
        return card, images


def calibrate_checkpoint(
    checkpoint: Checkpoint,
    options: CalibrationOptions,
    out: Path,
    attention: bool = False,
    callbacks: Callbacks = SILENT,
) -> Calibrated:
    """Finds ranges of the inputs of a checkpoint's linear layers and writes ranges.json, card.json and convergence.svg.

    Args:
        checkpoint: in full precision.
        options: which images, and how ranges are found.
        out: new folder.
        attention: also of queries, keys and values, for policies that quantize attention.
        callbacks: progress, notes and the figure.

    Raises:
        ConfigError, ArtifactError, DataError: the checkpoint is quantized, or options, images or state cannot be used.
        ResultNotWrittenError: ``out`` cannot be written; the error holds the result.
    """
    require_full_precision(checkpoint.info, checkpoint.path)
    options = with_known_data(checkpoint, options)
    names = quantized_names(checkpoint.model, DEFAULT_POLICY)
    if attention:
        names += [f"{name}.{part}" for name in attention_names(checkpoint.model) for part in MEASURED_PARTS]
    require_free(out)
    source = Source.of(checkpoint)
    chosen = source.choose(options, callbacks)
    ranges = module_ranges(checkpoint.model, names, source, options, chosen, callbacks)
    result = Calibrated(out, chosen[0], ranges)
    try:
        with new_folder(out) as folder:
            write_calibration(folder, result.card, ranges, callbacks)
    except OutputError as error:
        raise ResultNotWrittenError(error, result) from error
    return result


def calibrate_artifact(
    artifact: Artifact,
    options: CalibrationOptions,
    caches: CacheOptions = CacheOptions(),
    out: Path | None = None,
    callbacks: Callbacks = SILENT,
) -> Calibrated:
    """Finds ranges of the tensors of an FP32 artefact's linear layers and writes them with TensorRT calibration caches.

    Args:
        artifact: in FP32.
        options: which images, and how ranges are found.
        caches: which caches.
        out: new folder; by default the artefact's calibration folder, whose files are then entered in the manifest.
        callbacks: progress, notes and the figure.

    Raises:
        ConfigError, ArtifactError, DataError: the graph is quantized, or options, images or state cannot be used.
        ResultNotWrittenError: the folder cannot be written; the error holds the result.
    """
    from gft_edge.calibration.graph import graph_features, linear_tensors, observe_graph  # needs onnx

    manifest = artifact.manifest
    data = known_data(options.data, manifest.data, f"artefact {artifact.path}")
    options = dataclasses.replace(options, data=data)
    folder = out or artifact.path / FOLDER
    (require_writable_folder if out is None else require_free)(folder)
    graph, spec, size = load_artifact_graph(artifact), manifest.preprocess, manifest.model.image_size
    collector = Collector(linear_tensors(graph), options.method, options.percentile)
    convert = functools.partial(to_graph_input, manifest=manifest)
    features = functools.partial(graph_features, graph, spec, convert)
    source = Source(manifest.files[MODEL].sha256, spec, manifest.labels, features)
    card, images = source.choose(options, callbacks)
    run = _Run(collector, images, source, card, options.state)
    run.collect(lambda batches: observe_graph(graph, size, collector, batches, convert), callbacks)
    ranges = Ranges.of(collector, "graph tensors", source.sha256, card.id, spec.id)
    result = Calibrated(folder, card, ranges)
    try:
        if out is not None:
            with new_folder(out) as temporary:
                names = _write_with_caches(temporary, card, ranges, caches, callbacks)
        else:
            with locked(artifact.path):
                names = _write_with_caches(folder, card, ranges, caches, callbacks)
                register_files(artifact, [f"{FOLDER}/{name}" for name in names])
    except OutputError as error:
        raise ResultNotWrittenError(error, result) from error
    return dataclasses.replace(result, caches=tuple(folder / name for name in names if name.endswith(".cache")))


def with_known_data(checkpoint: Checkpoint, options: CalibrationOptions) -> CalibrationOptions:
    """Returns the options with the data set filled in; raises as :func:`~gft_edge.data.for_model.known_data` does."""
    data = known_data(options.data, checkpoint.info.data, f"checkpoint {checkpoint.path}")
    return dataclasses.replace(options, data=data)


def module_ranges(
    model: nn.Module,
    names: Sequence[str],
    source: Source,
    options: CalibrationOptions,
    chosen: tuple[CalibrationSet, ImageSet],
    callbacks: Callbacks,
) -> Ranges:
    """Runs calibration images through a model and returns the ranges of the inputs of modules.

    Args:
        model: in eval mode: that of the source, or one made from it.
        names: of modules and of operands of attention.
        source: recorded in the ranges.
        options: method and state.
        chosen: card and images.
        callbacks: progress.
    """
    card, images = chosen
    collector = Collector(names, options.method, options.percentile)
    run = _Run(collector, images, source, card, options.state)
    run.collect(lambda batches: observe(model, collector, batches), callbacks)
    return Ranges.of(collector, "module inputs", source.sha256, card.id, source.spec.id)


@dataclass(frozen=True)
class _Run:
    """One pass over calibration images; it resumes from ``state`` and keeps it up to date where one is given."""

    collector: Collector
    images: ImageSet
    source: Source
    card: CalibrationSet
    state: Path | None

    def collect(self, observe: Callable[[Batches], Iterator[int]], callbacks: Callbacks) -> None:
        """Runs the images that are not in the state yet."""
        state, collector = self.state, self.collector
        identity = {"model": self.source.sha256, "calibration set": self.card.id}
        if state is not None and state.exists():
            collector.restore(state, identity)
        left = Subset(self.images, tuple(range(collector.images, len(self.images))))
        batches = (batch for batch, _ in evaluation_batches(left, self.source.spec, BATCH))
        steps = callbacks.track(observe(batches), "calibrate", batch_count(len(left), BATCH))
        for number, _ in enumerate(steps, start=1):
            if state is not None and number % SAVE_EVERY == 0:
                collector.save(state, identity)
        if state is not None:
            collector.save(state, identity)


def note_unused_rules(model: nn.Module, policy: QuantPolicy, callbacks: Callbacks) -> None:
    """Notes the rules of a policy that match nothing in a model, such as those written for another one."""
    unused = unused_patterns(model, policy)
    if unused and callbacks.note is not None:
        shown = ", ".join(map(repr, unused[:SHOWN_PATTERNS]))
        more = f" and {len(unused) - SHOWN_PATTERNS} more" if len(unused) > SHOWN_PATTERNS else ""
        callbacks.note(f"quantization policy: no layer of this model matches {shown}{more}; these rules do nothing")


def write_calibration(folder: Path, card: CalibrationSet | None, ranges: Ranges, callbacks: Callbacks) -> list[str]:
    """Writes ranges.json, card.json (where the images are known) and convergence.svg; returns their names."""
    ranges.write(folder / RANGES)
    names = [RANGES]
    if card is not None:
        write_sealed(folder / CARD, {**card.to_json(), "id": card.id})
        names.append(CARD)
    curve = ranges.convergence
    if curve is not None and callbacks.draw is not None:
        with replacing(folder / CONVERGENCE) as temporary:
            temporary.write_text(callbacks.draw(curve.images, curve.ranges, curve.images_needed), encoding="utf-8")
        names.append(CONVERGENCE)
    return names


def _write_with_caches(
    folder: Path, card: CalibrationSet, ranges: Ranges, caches: CacheOptions, callbacks: Callbacks
) -> list[str]:
    names = write_calibration(folder, card, ranges, callbacks)
    algorithm = CACHE_ALGORITHMS[caches.calibrator]
    for version in caches.versions:
        name = f"tensorrt-{version}-{caches.calibrator}.cache"
        write_cache(folder / name, CalibrationCache.of_ranges(ranges, version, algorithm), ranges)
        names += [name, f"{name}.json"]
    return names
