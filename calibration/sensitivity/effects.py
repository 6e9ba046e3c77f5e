"""Measures the effect of INT8 layer by layer: one layer alone, and all layers but one.

Ranges are calibrated once, on the full-precision model: they do not depend on the policy. Layers are exchanged in place.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gft_edge.calibration.sensitivity.replay import Recording, Replay
from gft_edge.errors import ConfigError, DataError
from gft_edge.model.named_outputs import named_outputs
from gft_edge.progress import Track, silent
from gft_edge.quant.levels import SMALLEST_RANGE
from gft_edge.quant.modules import insert_quantizers
from gft_edge.runtime.finite import require_finite
from gft_edge.stats.agreement import Arrays, Computation, compare
from gft_edge.stats.paired import PairedTop1

Batches = Callable[[], Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]]
"""Returns preprocessed images (B, 3, H, W) with labels (B,); each call starts at the first image."""


_SIDES = (Computation("torch", "fp32", "full"), Computation("torch", "int8", "mixed"))


@dataclass(frozen=True)
class Effect:
    """Some layers in INT8 compared with none, on the same images.

    Attributes:
        noise: mean square error of the logits.
        sqnr_db: of the logits; None when they are bit-identical.
        top1: accuracy, as a share.
        paired: comparison with full precision.
        jaccard: kept sets in common, |both| / |either|, mean over images, per stage.
    """

    noise: float
    sqnr_db: float | None
    top1: float
    paired: PairedTop1
    jaccard: tuple[float, ...]

    @property
    def lost_points(self) -> float:
        """Points of top-1 lost against full precision; negative where some were gained."""
        return -100 * self.paired.difference

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {**asdict(self), "jaccard": list(self.jaccard), "lost_points": self.lost_points}


@dataclass(frozen=True)
class LayerEffect:
    """Effects of one layer alone in INT8, and of all others without it."""

    name: str
    only: Effect
    all_but: Effect


@dataclass(frozen=True)
class Sensitivity:
    """All layers of a model.

    Attributes:
        images: that were run.
        layers: in the order of the model.
        everything: all of them in INT8.
        reference: logits (images, classes) in full precision.
        quantized: logits with all layers in INT8.
        labels: true classes (images,).
    """

    images: int
    layers: tuple[LayerEffect, ...]
    everything: Effect
    reference: npt.NDArray[np.float32]
    quantized: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    @property
    def signal(self) -> float:
        """Mean square of the logits in full precision."""
        return float(np.square(self.reference.astype(np.float64)).mean())

    @property
    def top1(self) -> float:
        """Accuracy in full precision."""
        return float((self.reference.argmax(axis=1) == self.labels).mean())


class MixedModel:
    """A copy of a model whose layers can be switched between INT8 and full precision in place.

    Args:
        model: full precision, in eval mode; left untouched.
        ranges: of the inputs of at least the layers named.
        names: of the layers that can be INT8.

    Raises:
        ConfigError: no range for a layer, or it is no layer of this model.
    """

    def __init__(self, model: nn.Module, ranges: Mapping[str, float], names: Sequence[str]) -> None:
        missing = [name for name in names if name not in ranges]
        if missing:
            raise ConfigError(
                f"ranges: none for the input of {missing[0]} and {len(missing) - 1} others; calibrate again"
            )
        self.model = copy.deepcopy(model)
        self.names = tuple(names)
        self._high = {name: self.model.get_submodule(name) for name in names}
        insert_quantizers(self.model, {name: max(float(ranges[name]), SMALLEST_RANGE) for name in names})
        self._int8 = {name: self.model.get_submodule(name).eval() for name in names}
        self.set(())

    def set(self, int8: Collection[str]) -> None:
        """Switches these layers to INT8 and the others to full precision."""
        for name in self.names:
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, (self._int8 if name in int8 else self._high)[name])

    @torch.no_grad()
    def outputs(self, images: npt.NDArray[np.float32]) -> Arrays:
        """Returns the outputs at the model's own token budget, named as :func:`named_outputs` does."""
        return named_outputs(self.model(torch.from_numpy(images), maps=True))


class Evaluator:
    """Compares configurations of a model with full precision, on the same images.

    Args:
        reference: outputs of the full-precision model on all images.
        labels: true classes (images,).
        num_patches: of the whole grid.
    """

    def __init__(self, reference: Arrays, labels: npt.NDArray[np.int64], num_patches: int) -> None:
        self._reference, self._labels, self._num_patches = reference, labels, num_patches

    def effect(self, outputs: Arrays) -> Effect:
        """Returns the effect of a configuration from its outputs."""
        found = compare(_SIDES, self._reference, outputs, self._labels, self._num_patches)
        if found.not_finite or found.top1 is None or found.top1_candidate is None:
            raise DataError(f"logits of {found.not_finite} images are not finite in INT8")
        noise = self._reference["logits"].astype(np.float64) - outputs["logits"]
        return Effect(
            noise=float(np.square(noise).mean()),
            sqnr_db=found.logit_sqnr_db,
            top1=found.top1_candidate,
            paired=found.top1,
            jaccard=tuple(stage.jaccard for stage in found.stages),
        )


def measure_sensitivity(
    mixed: MixedModel, batches: Batches, count: int, num_patches: int, track: Track = silent
) -> tuple[Sensitivity, Evaluator]:
    """Runs the model with each layer alone in INT8, with all but each, with all and with none.

    Each batch runs through all of them before the next is read; only logits and kept patches are stored.

    Args:
        mixed: the model.
        batches: labelled images.
        count: number of batches.
        num_patches: of the whole grid.
        track: progress display.

    Returns:
        the effects, and an evaluator of further configurations on the same images.

    Raises:
        DataError: no images, or logits of an INT8 variant that are not finite.
        CheckFailed: logits that are not finite in full precision.
    """
    replay = Replay(mixed.model)
    parts: dict[tuple[str, str], list[Arrays]] = {}
    labels: list[npt.NDArray[np.int64]] = []

    def runs() -> Iterator[None]:
        for images, truth in batches():
            labels.append(truth)
            for key, outputs in _configurations(mixed, replay, images):
                parts.setdefault(key, []).append(outputs)
                yield

    for _ in track(runs(), "sensitivity", count * (2 + 2 * len(mixed.names))):
        pass
    mixed.set(())
    if not labels:
        raise DataError("no images")
    joined = {key: _join(found) for key, found in parts.items()}
    reference, truth = joined["none", ""], np.concatenate(labels)
    require_finite(reference["logits"], "sensitivity, in full precision")
    evaluator = Evaluator(reference, truth, num_patches)
    layers = [
        LayerEffect(name, evaluator.effect(joined["only", name]), evaluator.effect(joined["all but", name]))
        for name in mixed.names
    ]
    everything = joined["all", ""]
    return Sensitivity(
        len(truth), tuple(layers), evaluator.effect(everything), reference["logits"], everything["logits"], truth
    ), evaluator


def _configurations(
    mixed: MixedModel, replay: Replay, images: npt.NDArray[np.float32]
) -> Iterator[tuple[tuple[str, str], Arrays]]:
    """Yields the outputs of one batch by configuration; those of single layers resume at the first layer that differs."""

    def run() -> Arrays:
        return mixed.outputs(images)

    every = set(mixed.names)
    recorded: dict[str, Recording] = {}
    for what, int8 in (("none", set()), ("all", every)):
        mixed.set(int8)
        outputs, recorded[what] = replay.record(run)
        yield (what, ""), outputs if what == "none" else _classes_and_kept(outputs)
    for name, (what, base) in itertools.product(mixed.names, (("only", "none"), ("all but", "all"))):
        mixed.set({name} if what == "only" else every - {name})
        yield (what, name), _classes_and_kept(replay.again(run, recorded[base], [name]))


def run_mixed(mixed: MixedModel, int8: Collection[str], batches: Batches) -> Arrays:
    """Returns outputs over all images with these layers in INT8: logits and kept patches."""
    mixed.set(int8)
    return _join([_classes_and_kept(mixed.outputs(images)) for images, _ in batches()])


def _classes_and_kept(outputs: Arrays) -> Arrays:
    """Returns the logits and the kept patches: all that an effect is judged by, and little to store."""
    return {name: value for name, value in outputs.items() if name.startswith(("logits", "kept_"))}


def _join(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
