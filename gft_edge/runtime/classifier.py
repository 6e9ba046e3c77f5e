"""From an artefact and an image to a class, with what the model looked at."""

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
from gft_edge.runtime.maps import importance_maps, kept_masks
from gft_edge.runtime.sessions import Session, open_session
from gft_edge.stats.metrics import softmax

if TYPE_CHECKING:
    from PIL import Image

    # What predict takes; for type checkers only, since the edge runtime may lack Pillow.
    ImageLike = npt.NDArray[np.uint8] | Image.Image | str | Path


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        label: most probable class.
        probability: softmax of its logit.
        logits: (classes,) float32.
        importance: one (rows, cols) map per stage, zero where dropped before; empty without map outputs.
        kept: one (rows, cols) mask per stage of the patches kept; empty without compact map outputs.
    """

    label: str
    probability: float
    logits: npt.NDArray[np.float32] = field(repr=False)
    importance: tuple[npt.NDArray[np.float32], ...] = field(repr=False)
    kept: tuple[npt.NDArray[np.bool_], ...] = field(repr=False)


@dataclass(frozen=True)
class Classifier:
    """Preprocessing and model of an artefact in one."""

    artifact: Artifact
    session: Session

    @classmethod
    def load(
        cls, path: str | Path, backend: str = "onnxruntime", threads: int = 0, huge_pages: bool = True
    ) -> Classifier:
        """Opens an artefact folder.

        Args:
            path: of the artefact.
            backend: see :data:`gft_edge.runtime.sessions.BACKENDS`.
            threads: 0 takes one per core.
            huge_pages: faster requests for a slower start, for large models where the kernel gives them on request.

        Raises:
            ArtifactError: missing, damaged or changed.
        """
        artifact = load_artifact(Path(path))
        return cls(artifact, open_session(artifact, backend, threads, huge_pages))

    def predict(self, images: Iterable[ImageLike]) -> list[Prediction]:
        """Classifies images of any size, as many at a time as the artefact's largest batch.

        Args:
            images: RGB arrays (H, W, 3) uint8, Pillow images, or paths of image files, in any mixture. The latter two are
                converted by the rules of :func:`gft_edge.data.images.read_image`.

        Returns:
            One prediction per image, in order.

        Raises:
            DataError: one image instead of several, something that is no image, or a file that cannot be read.
            CheckFailed: logits that are NaN or infinite.
            MissingExtraError: a file, but Pillow is not installed.
        """
        predictions: list[Prediction] = []
        for group in grouped(enumerate(_several(images)), self.artifact.manifest.batch[2]):
            prepared = [self.prepare([_rgb(image, f"image {number}")]) for number, image in group]
            predictions += self.decode(self.session(np.concatenate(prepared)))
        return predictions

    def prepare(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[Any]:
        """RGB images of any size to the session's input: (B, 3, H, W) float32, or pixels for a graph that normalises."""
        spec = self.artifact.manifest.preprocess
        if self.artifact.manifest.inputs[0].dtype == "uint8":
            return np.stack([spec.geometry(image) for image in images])
        return spec.batch(images)

    def decode(self, outputs: Mapping[str, npt.NDArray[Any]]) -> list[Prediction]:
        """The session's outputs to one prediction per image.

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
        """The most probable classes of a prediction with their probabilities, at most ``count``, the best one first."""
        probabilities = softmax(prediction.logits[None])[0]
        best = np.argsort(-prediction.logits, kind="stable")[:count]
        return [(self.artifact.manifest.labels[index], float(probabilities[index])) for index in best]


def grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items, in order; the last may be shorter. Draws no more items than it yields."""
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _several(images: Any) -> Iterable[Any]:
    """The images themselves, if they are several rather than one.

    Raises:
        DataError: one image, or nothing that can be iterated over.
    """
    one = isinstance(images, (str, bytes, Path)) or _is_pillow(images)
    one = one or (isinstance(images, np.ndarray) and images.ndim < 4)
    if one or not isinstance(images, Iterable):
        raise DataError(f"predict: expected a list of images, found {_kind(images)}; put a single image into a list")
    return images


def _rgb(image: Any, where: str) -> npt.NDArray[np.uint8]:
    """One image of any accepted kind as (H, W, 3) uint8 RGB."""
    if isinstance(image, np.ndarray):
        return image  # preprocessing refuses what is no (H, W, 3) uint8 array
    if isinstance(image, (str, Path)):
        from gft_edge.data.images import read_image

        return read_image(image)
    if _is_pillow(image):
        from gft_edge.data.images import rgb_pixels

        return rgb_pixels(image, where)
    raise DataError(f"{where}: expected an (H, W, 3) uint8 RGB array, a Pillow image or a path, found {_kind(image)}")


def _is_pillow(image: Any) -> bool:
    """Whether it is a Pillow image; does not import Pillow, which the edge runtime may lack."""
    return any(f"{kind.__module__}.{kind.__qualname__}" == "PIL.Image.Image" for kind in type(image).__mro__)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"one array {value.shape} {value.dtype}"
    return (
        "None" if value is None else f"one {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
    )
