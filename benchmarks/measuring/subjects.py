"""What a bench measures: artefacts and ONNX files of other programs in one form."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.measuring.artifact_facts import bound_of, identity
from gft_edge.export.foreign.model import ForeignModel
from gft_edge.export.foreign.opening import Model, facts_of, open_foreign
from gft_edge.hardware.devices import Device
from gft_edge.manifest import Artifact, Batch
from gft_edge.runtime.backends.sessions import Session, open_session
from gft_edge.runtime.classifier import Classifier

MOST = 1 << 20
"""Images of a request of a graph that takes any number."""


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        model: artefact or foreign model.
        name: for tables.
        address: that a fresh process opens.
        batch: smallest, usual and largest number of images of a request.
        identity: entries of a result that identify the graph.
        open: returns a session on a backend with a number of threads.
        images: returns random input of the graph for a number of images.
        classifier: preprocessing and labels around a session; None where they are not known.
        bound: returns the roofline entries of a result on a device, at a batch and a latency in milliseconds.
        form: of an ONNX file for a fresh process, see :func:`gft_edge.benchmarks.measuring.fresh_process.fresh_processes`.
    """

    model: Model
    name: str
    address: str
    batch: Batch
    identity: Mapping[str, Any]
    open: Callable[[str, int], Session]
    images: Callable[[int, np.random.Generator], npt.NDArray[Any]]
    classifier: Callable[[Session], Classifier] | None = None
    bound: Callable[[Device, int, float], dict[str, Any]] = field(default=lambda device, batch, ms: {})
    form: str | None = None


def subjects_of(models: Sequence[Model]) -> tuple[Subject, ...]:
    """Returns what is measured, with different names.

    Raises:
        ArtifactError: a damaged graph.
    """
    found = [_foreign(model) if isinstance(model, ForeignModel) else _artifact(model) for model in models]
    count = Counter(subject.name for subject in found)
    return tuple(_with_folder(subject) if count[subject.name] > 1 else subject for subject in found)


def _with_folder(subject: Subject) -> Subject:
    """Returns a file with its folder in its name; files are often all called model.onnx. Artefacts stay as they are."""
    if not isinstance(subject.model, ForeignModel):
        return subject
    name = f"{subject.model.path.resolve().parent.name}/{subject.name}"
    return replace(subject, name=name, identity={**subject.identity, "name": name})


def _artifact(artifact: Artifact) -> Subject:
    return Subject(
        artifact,
        artifact.name,
        artifact.address,
        artifact.manifest.batch,
        identity(artifact),
        lambda backend, threads: open_session(artifact, backend, threads, huge_pages=True),
        functools.partial(random_images, artifact),
        functools.partial(Classifier, artifact),
        functools.partial(bound_of, artifact),
    )


def _foreign(model: ForeignModel) -> Subject:
    facts = facts_of(model)
    name = model.path.resolve().name
    shape = [size or 0 for size in model.input_shape[1:]]  # only the batch may be dynamic
    text = f"random float32, batch x {' x '.join(map(str, shape))}"
    return Subject(
        model,
        name,
        str(model.file),
        (1, 1, MOST) if model.batch is None else facts.batch,
        {
            "name": name,
            "precision": facts.precision,
            "budget": None,
            "mean_tokens": None,
            "model_sha256": model.sha256,
            "model": None,
            "lacks": f"an ONNX file of another program: no budget, stages or roofline; input is {text}",
        },
        lambda backend, threads: open_foreign(model, facts, backend, threads, huge_pages=True),
        lambda batch, generator: generator.standard_normal((batch, *shape), dtype=np.float32),
        form=f"{facts.precision},{model.batch or 0}x{'x'.join(map(str, shape))}",
    )


def random_images(artifact: Artifact, batch: int, generator: np.random.Generator) -> npt.NDArray[Any]:
    """Returns random input of an artefact, of its shape and type."""
    tensor = artifact.manifest.inputs[0]
    shape = (batch, *(int(size) for size in tensor.shape[1:]))
    if artifact.manifest.input_kind != "float":
        return generator.integers(0, 256, shape, dtype=np.uint8).astype(tensor.dtype, copy=False)
    return generator.standard_normal(shape, dtype=np.float32)
