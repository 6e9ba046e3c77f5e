"""Collects ranges while images run through a model: streaming, resumable, any number of images."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gft_edge.calibration.observing.histogram import Activation, TensorStats
from gft_edge.calibration.observing.thresholds import threshold
from gft_edge.calibration.observing.workers import Workers
from gft_edge.calibration.options import DEFAULT_PERCENTILE, Method
from gft_edge.errors import ArtifactError, DataError
from gft_edge.files import replacing
from gft_edge.quant.attention import watch_operand
from gft_edge.quant.modules import attention_operand
from gft_edge.runtime.finite import require_finite

STATE_SCHEMA = 1
WAITING = 1 << 23
"""Values whose bins are kept, in 16 MB, until all threads count them: a single activation is too small to share."""
GROWTH = 2
"""Ranges are recorded each time the number of images has grown by this factor, so the history grows with its logarithm."""


class Collector:
    """Statistics of named tensors over any number of batches.

    Args:
        names: of the tensors.
        method: how ranges are found; ``"max"`` keeps no histogram.
        share: of the values in per cent, for ``"percentile"``.

    Attributes:
        stats: statistics of each tensor.
        images: how many were added so far.
        history: numbers of images, at growing distances, and the ranges at each.
    """

    def __init__(self, names: Sequence[str], method: Method = "max", share: float = DEFAULT_PERCENTILE) -> None:
        threshold(np.zeros(1, dtype=np.int64), 0.0, method, share if method == "percentile" else 100)  # refuses both
        self.method, self.share = method, share
        self.stats = {name: TensorStats() for name in names}
        self.images = 0
        self.history: list[tuple[int, dict[str, float]]] = []
        self._workers = Workers()
        self._adding = threading.Lock()
        self._waiting: list[tuple[TensorStats, Tensor]] = []

    def add(self, name: str, x: Tensor) -> None:
        """Adds one activation.

        Raises:
            DataError: a value is NaN or infinite.
        """
        stats, activation = self.stats[name], Activation(x, name, histogram=self.method != "max")
        stats.see(activation)
        self._waiting += ((stats, part) for part in activation.bins)
        if torch.get_num_threads() == 1 or sum(len(part) for _, part in self._waiting) > WAITING:
            self.flush()

    def flush(self) -> None:
        """Counts the parts of activations that wait for it."""
        waiting, self._waiting = self._waiting, []
        self._workers.run(self._count_part, waiting)

    def _count_part(self, part: tuple[TensorStats, Tensor]) -> None:
        stats, bins = part
        counts = torch.bincount(bins)
        with self._adding:
            stats.count(counts)

    def end_batch(self, images: int) -> None:
        """Counts the images of a batch whose activations were added, and makes their histograms complete."""
        self.flush()
        self.images += images
        if not self.history or self.images >= self.history[-1][0] * GROWTH:
            self._note()

    def ranges(self) -> dict[str, float]:
        """Returns the range of each tensor by the method; 0 for one that was always zero.

        Raises:
            DataError: no images, or a tensor that was never computed.
        """
        if self.images == 0:
            raise DataError("calibration: no images")
        self.flush()
        never = [name for name, stats in self.stats.items() if stats.largest < 0]
        if never:
            raise DataError(f"calibration: {never[0]} was never computed; is it part of this model at this budget?")
        return {name: self._range(stats) for name, stats in self.stats.items()}

    def convergence(self) -> tuple[tuple[int, ...], dict[str, tuple[float, ...]]]:
        """Returns numbers of images, the last one all, and each tensor's range at each of them."""
        if not self.history or self.history[-1][0] != self.images:
            self._note()
        counts = tuple(count for count, _ in self.history)
        return counts, {name: tuple(ranges[name] for _, ranges in self.history) for name in self.stats}

    def _note(self) -> None:
        self.history.append((self.images, self.ranges()))

    def _range(self, stats: TensorStats) -> float:
        return threshold(stats.magnitudes, stats.largest, self.method, self.share)

    def save(self, path: Path, identity: Mapping[str, str]) -> None:
        """Writes everything as one safetensors file, whole or not at all, with the ``identity`` of model and images."""
        self.flush()
        head = {
            "schema": STATE_SCHEMA,
            "identity": dict(identity),
            "method": self.method,
            "share": self.share,
            "images": self.images,
            "largest": {name: stats.largest for name, stats in self.stats.items()},
            "history": self.history,
        }
        counts = {name: stats.counts for name, stats in self.stats.items()}
        with replacing(path) as temporary:
            save_file(counts, str(temporary), {"calibration": json.dumps(head, sort_keys=True)})

    def restore(self, path: Path, identity: Mapping[str, str]) -> None:
        """Resumes from a saved state.

        Raises:
            ArtifactError: damaged, or of another model, set of images or method.
        """
        try:
            with safe_open(str(path), "pt") as file:
                head = json.loads((file.metadata() or {})["calibration"])
                counts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            found = {**head["identity"], "method": head["method"], "share": str(head["share"])}
            wanted = {**identity, "method": self.method, "share": str(self.share)}
            differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
            if head["schema"] != STATE_SCHEMA or counts.keys() != self.stats.keys():
                differing.append("tensors")
            if differing:
                raise ArtifactError(f"calibration state {path}: belongs to another {', '.join(differing)}; remove it")
            for name, stats in self.stats.items():
                stats.restore(counts[name], float(head["largest"][name]))
            self.images = int(head["images"])
            self.history = [(int(images), dict(ranges)) for images, ranges in head["history"]]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"calibration state {path}: damaged ({error!r}); remove it") from None


@contextlib.contextmanager
def observing(model: nn.Module, collector: Collector) -> Iterator[None]:
    """Adds the inputs of modules and the operands of attentions that the collector names, while the block runs."""

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            collector.add(name, inputs[0])

        return hook

    handles = []
    try:
        for name in collector.stats:
            if (operand := attention_operand(name)) is not None:
                handles.append(watch_operand(model, *operand, collector.add))
            else:
                handles.append(model.get_submodule(name).register_forward_pre_hook(watch(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def observe(model: nn.Module, collector: Collector, batches: Iterable[npt.NDArray[np.float32]]) -> Iterator[int]:
    """Runs images through a model, one batch for each step of the iteration; yields the number of images so far.

    Args:
        model: in eval mode, at its default token budget.
        collector: of inputs of the model's modules.
        batches: preprocessed images, (B, 3, H, W) float32.

    Raises:
        DataError: images of another shape than the model's, or an activation that is not finite.
        CheckFailed: logits that are NaN or infinite.
    """
    size = getattr(getattr(model, "config", None), "image_size", None)
    with observing(model, collector):
        for images in batches:
            require_images(images, size)
            require_finite(model(torch.from_numpy(images)).numpy(), "calibration")
            collector.end_batch(len(images))
            yield collector.images


def require_images(images: npt.NDArray[Any], size: int | None) -> None:
    """Refuses batches that are not (B, 3, size, size) float32, B at least 1.

    Raises:
        DataError: naming both shapes.
    """
    fits = images.ndim == 4 and images.shape[1] == 3 and (size is None or images.shape[2:] == (size, size))
    if not fits or images.dtype != np.float32 or len(images) == 0:
        side = size or "H"
        raise DataError(
            f"calibration: a batch is {images.shape} {images.dtype}, the model takes (B, 3, {side}, {side}) float32; "
            f"preprocess the images first"
        )


def collect(collector: Collector, steps: Iterable[int]) -> Collector:
    """Runs an observation to its end and returns the collector."""
    for _ in steps:
        pass
    if collector.images == 0:
        raise DataError("calibration: no images")
    return collector
