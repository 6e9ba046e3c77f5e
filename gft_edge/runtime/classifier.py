"""Classifies images with an artefact; returns classes, probabilities and importance maps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle import open_artifact
from gft_edge.manifest import LOGITS, Artifact
from gft_edge.runtime.backends.graph_io import to_graph_input
from gft_edge.runtime.backends.sessions import Session
from gft_edge.runtime.choice import AUTO, open_chosen
from gft_edge.runtime.finite import require_finite
from gft_edge.runtime.image_inputs import each_image, rgb
from gft_edge.runtime.maps import importance_maps, kept_masks
from gft_edge.stats.metrics import softmax

if TYPE_CHECKING:
    from gft_edge.runtime.image_inputs import ImageLike


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        label: most probable class.
        probability: softmax of its logit.
        logits: (classes,) float32; of a graph that gives probabilities their logarithms.
        importance: one (rows, cols) map per stage, zero for patches dropped before it; empty without map outputs.
        kept: one (rows, cols) mask of the kept patches per stage; empty without compact map outputs.
        labels: of all classes.
    """

    label: str
    probability: float
    logits: npt.NDArray[np.float32] = field(repr=False)
    importance: tuple[npt.NDArray[np.float32], ...] = field(repr=False)
    kept: tuple[npt.NDArray[np.bool_], ...] = field(repr=False)
    labels: tuple[str, ...] = field(default=(), repr=False)

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Of all classes, (classes,), in the order of ``labels``."""
        return softmax(self.logits[None])[0]

    def top(self, count: int) -> list[tuple[str, float]]:
        """Returns the ``count`` most probable classes with their probabilities, the most probable first."""
        probabilities = self.probabilities
        best = np.argsort(-self.logits, kind="stable")[:count]
        return [(self.labels[index], float(probabilities[index])) for index in best]


@dataclass
class Timings:
    """Milliseconds that the stages of requests took, summed over requests. Threads need one each.

    Attributes:
        read: files and Pillow images to RGB arrays.
        preprocess: resize, crop, normalisation.
        compute: the backend, with transfers to and from a GPU, and the wait for requests of other threads.
        decode: outputs to classes and maps.
    """

    read: float = 0.0
    preprocess: float = 0.0
    compute: float = 0.0
    decode: float = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of a block to a stage."""
        started = time.perf_counter()
        yield
        setattr(self, name, getattr(self, name) + (time.perf_counter() - started) * 1e3)


@dataclass(frozen=True)
class Classifier:
    """An opened artefact with its preprocessing.

    Any number of threads may call one object at the same time and get the bits that one thread gets. Preprocessing and decoding run
    side by side, and so does a backend whose row of the table says ``concurrent``; the others lock their memory for each request.
    Nothing needs to be closed: memory, also that of a GPU, is freed with the object.

    Attributes:
        artifact: with its manifest: labels, preprocessing, budget.
        session: that runs it.
        why: which backend runs it, and why no faster one.
    """

    artifact: Artifact
    session: Session
    why: str = field(default="", repr=False)

    @classmethod
    def open(cls, path: str | Path, backend: str = AUTO, threads: int = 0, huge_pages: bool = True) -> Classifier:
        """Opens an artefact, or the artefact of a bundle.

        Args:
            path: its folder; ``folder@147-98-49`` for a member of a family.
            backend: a name of :data:`gft_edge.runtime.backends.table.BACKENDS`; ``"auto"`` takes an engine that fits this machine, else
                ONNX Runtime on a GPU, else on the processor.
            threads: of a CPU backend; 0 takes one per core.
            huge_pages: slower start, faster requests; for large models where the kernel gives huge pages on request.

        Raises:
            ArtifactError: missing, damaged or changed.
            ConfigError: unknown backend, or one that needs a GPU.
            MissingExtraError: the backend is not installed.
        """
        artifact = open_artifact(path)
        return cls(artifact, *open_chosen(artifact, backend, threads, huge_pages))

    def predict(self, images: Iterable[ImageLike] | ImageLike, timings: Timings | None = None) -> list[Prediction]:
        """Classifies images of any size, in batches of the artefact's largest size.

        Args:
            images: one image, or several: RGB arrays (H, W, 3) uint8, Pillow images or paths of image files, also mixed; a batch
                (B, H, W, 3) uint8; or a folder, whose image files at any depth are sorted by path
                (:mod:`gft_edge.runtime.image_inputs`).
            timings: receives the milliseconds of each stage.

        Returns:
            One prediction per image, in order; a list of one for one image.

        Raises:
            DataError: a value that is no image, or a file that cannot be read.
            CheckFailed: logits that are NaN or infinite.
            MissingExtraError: a file, but Pillow is not installed.
        """
        timings = Timings() if timings is None else timings
        predictions: list[Prediction] = []
        for group in grouped(enumerate(each_image(images)), self.artifact.manifest.batch[2]):
            prepared = [self._prepared(image, f"image {number}", timings) for number, image in group]
            predictions += self.infer(np.concatenate(prepared), timings)
        return predictions

    def _prepared(self, image: Any, where: str, timings: Timings) -> npt.NDArray[Any]:
        with timings.stage("read"):
            pixels = rgb(image, where)
        with timings.stage("preprocess"):
            return self.prepare([pixels])

    def infer(self, inputs: npt.NDArray[Any], timings: Timings | None = None) -> list[Prediction]:
        """Classifies what :meth:`prepare` returns."""
        timings = Timings() if timings is None else timings
        with timings.stage("compute"):
            outputs = self.session.compute(inputs)
        with timings.stage("decode"):
            return self.decode(outputs)

    def prepare(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[Any]:
        """Converts RGB images of any size to the graph's input: (B, 3, H, W) float32, or pixels for a graph that normalises."""
        manifest = self.artifact.manifest
        spec = manifest.preprocess
        if manifest.input_kind == "float":
            return spec.batch(images)
        return to_graph_input(np.stack([spec.geometry(image) for image in images]), manifest)

    def decode(self, outputs: Mapping[str, npt.NDArray[Any]]) -> list[Prediction]:
        """Converts the session's outputs to one prediction per image.

        Raises:
            CheckFailed: logits that are NaN or infinite.
        """
        manifest = self.artifact.manifest
        logits = outputs[LOGITS]
        require_finite(logits, f"artefact {self.artifact.path}")
        probabilities = softmax(logits)
        importance, masks = [], []
        if manifest.maps != "none":
            importance = importance_maps(outputs, manifest)
        if manifest.maps == "compact":
            masks = kept_masks([outputs[f"kept_{i}"] for i in range(len(manifest.budget.keep))], manifest.model.grid)
        return [
            Prediction(
                label=manifest.labels[best],
                probability=float(probabilities[row, best]),
                logits=logits[row],
                importance=tuple(m[row] for m in importance),
                kept=tuple(m[row] for m in masks),
                labels=manifest.labels,
            )
            for row, best in enumerate(logits.argmax(axis=1))
        ]


def grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of ``size`` items, in order; the last may be shorter. Reads no item ahead."""
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
