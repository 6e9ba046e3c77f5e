"""From an artefact and an image to a class, with what the model looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.manifest import Artifact, load_artifact
from gft_edge.runtime.maps import importance_maps, kept_masks
from gft_edge.runtime.sessions import Session, open_session


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
    logits: npt.NDArray[np.float32]
    importance: tuple[npt.NDArray[np.float32], ...]
    kept: tuple[npt.NDArray[np.bool_], ...]


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

    def predict(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Prediction]:
        """Classifies RGB images (H, W, 3) uint8 of any size."""
        return self.decode(self.session(self.prepare(images)))

    def prepare(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[Any]:
        """RGB images of any size to the session's input: (B, 3, H, W) float32, or pixels for a graph that normalises."""
        spec = self.artifact.manifest.preprocess
        if self.artifact.manifest.inputs[0].dtype == "uint8":
            return np.stack([spec.geometry(image) for image in images])
        return spec.batch(images)

    def decode(self, outputs: Mapping[str, npt.NDArray[Any]]) -> list[Prediction]:
        """The session's outputs to one prediction per image."""
        manifest = self.artifact.manifest
        logits = outputs["logits"]
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
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
