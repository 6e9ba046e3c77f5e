"""Verification of an artefact by one call: outputs are compared and judged, and the records are stored in the artefact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.constants import MAPS_REPORT, VERIFY_REPORT
from gft_edge.errors import ConfigError, GFTEdgeError
from gft_edge.export.verify.artifact_alone import VerifyReport, verify_golden
from gft_edge.export.verify.map_fidelity import assess_maps, map_fidelity
from gft_edge.export.verify.options import DEFAULT_OPTIONS, VerifyOptions
from gft_edge.files import write_json
from gft_edge.manifest import Artifact, load_artifact, register_files
from gft_edge.progress import Track, silent
from gft_edge.runtime.artifact_graph import load_artifact_graph
from gft_edge.runtime.compared_model import ComparedModel
from gft_edge.stats.verdict import Verdict
from gft_edge.storage.locks import locked

if TYPE_CHECKING:
    from gft_edge.checkpoint import Checkpoint
    from gft_edge.data.batches import Problem
    from gft_edge.data.for_model import Note, Request
    from gft_edge.data.sets import ImageSet

DrawMaps = Callable[[Path, npt.NDArray[np.uint8], Sequence[npt.NDArray[Any]]], None]
"""Writes a picture file of an image (height, width, 3) and of importance maps (rows, cols) of it."""
PICTURES = 6


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify`.

    Attributes:
        report: comparisons and verdict, as stored in ``reports/verify.json``.
        maps: fidelity of the importance maps, as stored in ``reports/maps.json``; None when it was not measured.
    """

    report: VerifyReport
    maps: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> Verdict:
        """The worse of the verdicts on outputs and maps."""
        found = {self.report.verdict, "pass" if self.maps is None else assess_maps(self.maps).verdict}
        return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"


class NotStoredError(ConfigError):
    """The record of a verification cannot be written into the artefact, for example on a read-only medium.

    Attributes:
        verification: the result, which may have taken long to compute.
    """

    def __init__(self, problem: str, verification: Verification) -> None:
        super().__init__(problem)
        self.verification = verification


def verify(
    artifact: Artifact,
    checkpoint: Checkpoint | None = None,
    options: VerifyOptions = DEFAULT_OPTIONS,
    track: Track = silent,
    note: Note | None = None,
    draw: DrawMaps | None = None,
    problem: Problem | None = None,
) -> Verification:
    """Compares an artefact with PyTorch and stores the record in it.

    Without a checkpoint the golden images are compared. With one, images of a data set are compared and the checkpoint is
    exported again, so that the first bad node is named; of an artefact that passes, the fidelity of compact maps is measured.

    Args:
        artifact: is compared, and gets the records.
        checkpoint: that the artefact was made from.
        options: backends, limits and images.
        track: shows progress, batch by batch.
        note: receives how images were found and what is done next.
        draw: writes pictures of importance maps; without it there are none.
        problem: receives images that cannot be read; the next ones of the data take their places, see
            :mod:`gft_edge.data.intact`. Without it such an image is an error.

    Raises:
        ArtifactError: the artefact was made from another checkpoint, or is damaged.
        DataError: the images cannot be used.
        NotStoredError: the record cannot be written; the error holds the result.
    """
    if checkpoint is None:
        report = verify_golden(artifact, options.backends, options.limits)
        _store(artifact, report)
        return Verification(report)

    from gft_edge.checkpoint import require_parent
    from gft_edge.data.for_model import once

    require_parent(artifact, checkpoint)
    note, problem = once(note), None if problem is None else once(problem)
    request = _request(checkpoint, options)
    images, source, unreadable = _images(request, checkpoint, note, problem)
    report = _compare_on_data(artifact, checkpoint, images, source, options, track, note)
    report = replace(report, unreadable=unreadable)
    has_maps = artifact.manifest.maps == "compact"
    wants_maps = report.passed and options.map_images > 0
    if wants_maps and not has_maps and not artifact.manifest.model.is_baseline:
        text = f"fidelity of maps is measured of graphs with --maps compact, this one has {artifact.manifest.maps}"
        report = replace(report, notes=(*report.notes, text))
    artifact = _store(artifact, report)
    if not (wants_maps and has_maps):
        return Verification(report)
    request = replace(request, images=options.map_images)
    images, source, _ = _images(request, checkpoint, note, problem)
    note(f"verify: insertion and deletion curves of {len(images)} images")
    return Verification(report, _measure_maps(artifact, checkpoint, images, source, draw))


def _request(checkpoint: Checkpoint, options: VerifyOptions) -> Request:
    """Returns the images that the options ask for, with what they leave open filled in."""
    from gft_edge.data.datasets import held_out_split
    from gft_edge.data.for_model import Request, known_data

    data = known_data(options.data, checkpoint.info.data, f"checkpoint {checkpoint.path}")
    return Request(data, options.split or held_out_split(data), options.images)


def _images(
    request: Request, checkpoint: Checkpoint, note: Note, problem: Problem | None
) -> tuple[ImageSet, str, tuple[str, ...]]:
    """Returns images, their source in words, and the names of those that cannot be read."""
    from gft_edge.data.for_model import intact_images
    from gft_edge.data.intact import source_in_words

    info = checkpoint.info
    found, unreadable = intact_images(request, info.model.image_size, info.labels, checkpoint.path, note, problem)
    return found, source_in_words(f"{len(found)} {request.split} images of {request.data}", unreadable), unreadable


def _compare_on_data(
    artifact: Artifact,
    checkpoint: Checkpoint,
    images: ImageSet,
    source: str,
    options: VerifyOptions,
    track: Track,
    note: Note,
) -> VerifyReport:
    from gft_edge.data.batches import batch_count, evaluation_batches
    from gft_edge.export.verify.claims import corrected
    from gft_edge.export.verify.trace import fresh_graph
    from gft_edge.export.verify.with_checkpoint import verify_checkpoint

    note("verify: exporting the checkpoint again")
    fresh = fresh_graph(checkpoint, corrected(artifact, load_artifact_graph(artifact)))
    batches = evaluation_batches(images, checkpoint.info.preprocess)
    tracked = track(batches, "verify", batch_count(len(images)))
    return verify_checkpoint(artifact, checkpoint, tracked, source, options, fresh)


def _store(artifact: Artifact, report: VerifyReport) -> Artifact:
    """Writes the record into the artefact and enters it in the manifest.

    Raises:
        NotStoredError: it cannot be written.
    """
    name = artifact.own(VERIFY_REPORT)
    parity = {artifact.own("verify"): {"passed": report.passed, "source": report.source}}
    try:
        with locked(artifact.path):
            write_json(artifact.path / name, report.to_json())
            register_files(artifact, [name], parity)
    except GFTEdgeError as error:
        raise NotStoredError(f"the record cannot be stored: {error}", Verification(report)) from error
    except OSError as error:
        reason = error.strerror or error
        text = f"the record {artifact.path / name} cannot be stored ({reason})"
        raise NotStoredError(text, Verification(report)) from error
    return load_artifact(artifact.address)


def _measure_maps(
    artifact: Artifact, checkpoint: Checkpoint, images: ImageSet, source: str, draw: DrawMaps | None
) -> dict[str, Any]:
    """Compares the maps of artefact and checkpoint; writes ``reports/maps.json`` and its pictures and returns the record."""
    from gft_edge.data.batches import evaluation_batches
    from gft_edge.export.onnx.reference import reference_outputs
    from gft_edge.quant.modules import without_quantizers

    manifest, spec = artifact.manifest, checkpoint.info.preprocess
    batch = np.concatenate([pixels for pixels, _ in evaluation_batches(images, spec)])
    model = without_quantizers(checkpoint.model)
    sides = (
        ("torch fp32", lambda pixels: reference_outputs(model, pixels, manifest.budget)),
        (f"onnxruntime {manifest.precision}", ComparedModel(artifact)),
    )
    found = map_fidelity(sides[0], sides[1], batch, manifest.model.grid)
    assessment = assess_maps(found)
    record = {
        **found,
        "verdict": assessment.verdict,
        "failures": list(assessment.failures),
        "undecided": list(assessment.undecided),
        "images_needed": assessment.images_needed,
        "artifact": artifact.name,
        "source": source,
        "pictures": [],
    }
    names: list[str] = []
    with locked(artifact.path):
        if draw is not None:
            shown = batch[:PICTURES]
            outputs = [run(shown) for _, run in sides]
            names = [artifact.own(f"reports/maps-{number}.png") for number in range(len(shown))]
            labels = [[manifest.labels[best] for best in side["logits"].argmax(axis=1)] for side in outputs]
            record["pictures"] = [{"file": name, "labels": list(row)} for name, row in zip(names, zip(*labels))]
            for number, (name, image) in enumerate(zip(names, spec.pixels(shown))):
                maps = [side["importance_0"][number].reshape(manifest.model.grid) for side in outputs]
                draw(artifact.path / name, image, maps)
        write_json(artifact.path / artifact.own(MAPS_REPORT), record)
        register_files(artifact, [artifact.own(MAPS_REPORT), *names])
    return record
