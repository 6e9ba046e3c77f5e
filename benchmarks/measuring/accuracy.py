"""Accuracy of an artefact or a foreign ONNX file, for the energy per correct image: measured or recorded, never estimated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gft_edge.constants import VERIFY_REPORT
from gft_edge.data.datasets import held_out_split
from gft_edge.data.for_model import Note, Request, labelled_images, once
from gft_edge.errors import ArtifactError
from gft_edge.export.foreign.evaluation import foreign_accuracy
from gft_edge.export.foreign.model import ForeignModel
from gft_edge.export.foreign.opening import Model
from gft_edge.files import read_json
from gft_edge.manifest import MODEL, Artifact
from gft_edge.runtime.accuracy import measure_accuracy
from gft_edge.runtime.backends.sessions import open_session

MOST_IMAGES = 2000
"""Images of a data set that :func:`measured_accuracy` takes at most."""


@dataclass(frozen=True)
class AccuracyFigure:
    """Share of images classified correctly, and the images it is of; None with the reason in ``refused``."""

    top1: float | None
    source: str = ""
    refused: str | None = None


AccuracyOf = Callable[[Model, str], AccuracyFigure]
"""Returns the accuracy of a model on a backend."""


def recorded_accuracy(artifact: Model, backend: str) -> AccuracyFigure:
    """Returns the accuracy that ``gft-edge verify`` recorded for this graph on this backend.

    Raises:
        ArtifactError: the report was changed after it was written.
    """
    if isinstance(artifact, ForeignModel):
        return AccuracyFigure(None, refused=f"accuracy of {artifact.path} on {backend} is not known: give --data")
    unknown = AccuracyFigure(
        None,
        refused=f"accuracy of {artifact.name} on {backend} is not known: run gft-edge verify with --checkpoint and --data, "
        "or give --data",
    )
    name = artifact.own(VERIFY_REPORT)
    if name not in artifact.manifest.files:
        return unknown
    report = read_json(artifact.file(name), "report")
    if report.get("model_sha256") != artifact.manifest.files[MODEL].sha256:
        return unknown
    try:
        for comparison in report["comparisons"]:
            # Reports of earlier versions do not name the backend; labels are not parsed for it.
            if comparison.get("backend") == backend and comparison["top1_candidate"] is not None:
                return AccuracyFigure(float(comparison["top1_candidate"]), str(report["source"]))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ArtifactError(
            f"report {artifact.path / name}: malformed ({error!r}); run gft-edge verify again"
        ) from None
    return unknown


def measured_accuracy(data: str, note: Note) -> AccuracyOf:
    """Returns a function that measures the accuracy on labelled images, once for each artefact and backend.

    Args:
        data: name or folder of a data set; at most ``MOST_IMAGES`` of its test images (val without them) are read.
        note: receives remarks on how the images were found, each once.
    """
    known: dict[tuple[str, str], AccuracyFigure] = {}
    note = once(note)

    def accuracy_of(model: Model, backend: str) -> AccuracyFigure:
        key = str(model.path) if isinstance(model, ForeignModel) else model.address, backend
        if key not in known:
            if isinstance(model, ForeignModel):
                known[key] = _measured_foreign(model, backend, data, note)
            else:
                known[key] = _measured(model, backend, data, note)
        return known[key]

    return accuracy_of


def _measured(artifact: Artifact, backend: str, data: str, note: Note) -> AccuracyFigure:
    manifest, session = artifact.manifest, open_session(artifact, backend)
    split = held_out_split(data)
    request = Request(data, split, MOST_IMAGES)
    images = labelled_images(request, manifest.model.image_size, manifest.labels, artifact.path, note)
    model = (f"artefact {artifact.address}", lambda batch: session(batch)["logits"])
    (accuracy,) = measure_accuracy([model], images, manifest.labels, manifest.preprocess)
    return AccuracyFigure(accuracy.top1, f"{accuracy.count} {split} images of {data}")


def _measured_foreign(model: ForeignModel, backend: str, data: str, note: Note) -> AccuracyFigure:
    if model.preprocess is None:
        return AccuracyFigure(None, refused=f"accuracy of {model.path} is not known: its preprocessing is not recorded")
    found, images = foreign_accuracy(model, data, None, MOST_IMAGES, backend, note=note)
    return AccuracyFigure(found.top1, images.source)
