"""Classifies images with an artefact; returns class, probability and importance maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import DataError
from gft_edge.manifest import Artifact, load_artifact
from gft_edge.runtime.finite import require_finite
from gft_edge.runtime.graph_io import to_graph_input
from gft_edge.runtime.maps import importance_maps, kept_masks
from gft_edge.runtime.sessions import Session, open_session
from gft_edge.stats.metrics import softmax

if TYPE_CHECKING:
    from PIL import Image

    # For type checkers only: the edge runtime may lack Pillow.
    ImageLike = npt.NDArray[np.uint8] | Image.Image | str | Path


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        label: most probable class.
        probability: softmax of its logit.
        logits: (classes,) float32.
        importance: one (rows, cols) map per stage, zero for patches dropped before it; empty without map outputs.
        kept: one (rows, cols) mask of the kept patches per stage; empty without compact map outputs.
    """

    label: str
    probability: float
    logits: npt.NDArray[np.float32] = field(repr=False)
    importance: tuple[npt.NDArray[np.float32], ...] = field(repr=False)
    kept: tuple[npt.NDArray[np.bool_], ...] = field(repr=False)


@dataclass(frozen=True)
class Classifier:
    """An opened artefact with its preprocessing."""

    artifact: Artifact
    session: Session

    @classmethod
    def load(
        cls, path: str | Path, backend: str = "onnxruntime", threads: int = 0, huge_pages: bool = True
    ) -> Classifier:
        """Opens an artefact folder.

        Args:
            path: of the artefact.
            backend: see :data:`gft_edge.runtime.backends.BACKENDS`.
            threads: 0 takes one per core.
            huge_pages: slower start, faster requests; for large models where the kernel gives huge pages on request.

        Raises:
            ArtifactError: missing, damaged or changed.
        """
        artifact = load_artifact(Path(path))
        return cls(artifact, open_session(artifact, backend, threads, huge_pages))

    def predict(self, images: Iterable[ImageLike]) -> list[Prediction]:
        """Classifies images of any size, in batches of the artefact's largest size.

        Args:
            images: RGB arrays (H, W, 3) uint8, Pillow images or paths of image files, also mixed. Pillow images and files
                are converted by the rules of :func:`gft_edge.data.images.read_image`.

        Returns:
            One prediction per image, in order.

        Raises:
            DataError: a single image instead of a list, a value that is no image, or a file that cannot be read.
            CheckFailed: logits that are NaN or infinite.
            MissingExtraError: a file, but Pillow is not installed.
        """
        predictions: list[Prediction] = []
        for group in grouped(enumerate(_several(images)), self.artifact.manifest.batch[2]):
            prepared = [self.prepare([_rgb(image, f"image {number}")]) for number, image in group]
            predictions += self.decode(self.session.compute(np.concatenate(prepared)))
        return predictions

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
        logits = outputs["logits"]
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
            )
            for row, best in enumerate(logits.argmax(axis=1))
        ]

    def top(self, prediction: Prediction, count: int) -> list[tuple[str, float]]:
        """Returns the ``count`` most probable classes of a prediction with their probabilities, the most probable first."""
        probabilities = softmax(prediction.logits[None])[0]
        best = np.argsort(-prediction.logits, kind="stable")[:count]
        return [(self.artifact.manifest.labels[index], float(probabilities[index])) for index in best]


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


def _several(images: Any) -> Iterable[Any]:
    """Returns the images if they are a collection.

    Raises:
        DataError: a single image, or a value that cannot be iterated over.
    """
    one = isinstance(images, (str, bytes, Path)) or _is_pillow(images)
    one = one or (isinstance(images, np.ndarray) and images.ndim < 4)
    if one or not isinstance(images, Iterable):
        raise DataError(f"expected a list of images, found {_kind(images)}; put a single image into a list")
    return images


def _rgb(image: Any, where: str) -> npt.NDArray[np.uint8]:
    """Converts one image of any accepted kind to (H, W, 3) uint8 RGB."""
    if isinstance(image, np.ndarray):
        return image  # preprocessing refuses other shapes and types
    if isinstance(image, (str, Path)):
        from gft_edge.data.images import read_image

        return read_image(image)
    if _is_pillow(image):
        from gft_edge.data.images import rgb_pixels

        return rgb_pixels(image, where)
    raise DataError(f"{where}: expected an (H, W, 3) uint8 RGB array, a Pillow image or a path, found {_kind(image)}")


def _is_pillow(image: Any) -> bool:
    """Returns whether it is a Pillow image, without importing Pillow, which the edge runtime may lack."""
    return any(f"{kind.__module__}.{kind.__qualname__}" == "PIL.Image.Image" for kind in type(image).__mro__)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"one array {value.shape} {value.dtype}"
    return (
        "None" if value is None else f"one {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
    )
