"""Compares an artefact with the PyTorch outputs stored in it for its golden images. Needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gft_edge.errors import ArtifactError, DataError
from gft_edge.export.verify.places import Place, stage_place
from gft_edge.manifest import MODEL, Artifact, DeploymentManifest
from gft_edge.runtime.artifact_graph import load_artifact_graph
from gft_edge.runtime.backends.graph_io import LEAST
from gft_edge.runtime.backends.sessions import ONNXRUNTIME
from gft_edge.runtime.compared_model import ComparedModel, compare_all
from gft_edge.runtime.golden import golden_references
from gft_edge.stats.agreement import Arrays, Comparison, Computation
from gft_edge.stats.verdict import DEFAULT_LIMITS, Assessment, Limits, Verdict, assess


@dataclass(frozen=True)
class VerifyReport:
    """Comparisons, the verdict on them, and the places of faults.

    Attributes:
        artifact, precision, model_sha256: identify the graph.
        source: of the images.
        comparisons: every backend against every reference.
        limits: that pass.
        assessment: failures and undecided questions.
        places: of faults, the first cause first.
        fresh_export: of the checkpoint beside the graph; None when the checkpoint was not exported again.
        notes: facts that are no failures.
        backends: each with its options.
        unreadable: names of images that were tried and left out.
    """

    artifact: str
    precision: str
    model_sha256: str
    source: str
    comparisons: tuple[Comparison, ...]
    limits: Limits
    assessment: Assessment
    places: tuple[Place, ...] = ()
    fresh_export: Literal["identical", "different"] | None = None
    notes: tuple[str, ...] = ()
    backends: tuple[Mapping[str, Any], ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Descriptions of everything out of limits."""
        return self.assessment.failures

    @property
    def verdict(self) -> Verdict:
        """Verdict of the assessment."""
        return self.assessment.verdict

    @property
    def passed(self) -> bool:
        """True when nothing is out of limits; the verdict may still be inconclusive."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON values; ``unreadable`` is left out where there are none."""
        data = asdict(self)
        assessment = data.pop("assessment")
        if not self.unreadable:
            del data["unreadable"]
        return {
            **data,
            **assessment,
            "verdict": self.verdict,
            "passed": self.passed,
            "backend": dict(self.backends[0]) if self.backends else {},
        }


def verify_golden(
    artifact: Artifact, backends: Sequence[str] = (ONNXRUNTIME,), limits: Limits = DEFAULT_LIMITS
) -> VerifyReport:
    """Compares the artefact with the PyTorch outputs stored in it; needs no checkpoint.

    This checks the arithmetic on a few images. There are no labels, so accuracy is not measured; a fault is located by its
    stage only. The graph is compared with its manifest if onnx is installed.

    Raises:
        ArtifactError: golden.npz is missing or damaged, or the graph cannot be run though its manifest fits it.
    """
    claims, notes, manifest = checked_claims(artifact)
    artifact = replace(artifact, manifest=manifest)  # corrected: wrong claims are reported, and the graph runs as it is
    images, references = golden_references(artifact)
    sides: list[ComparedModel] = []
    found: list[tuple[Computation, Arrays]] = []
    refused: list[str] = []
    for backend in backends:
        try:
            side = ComparedModel(artifact, backend)
            outputs = side(images)
        except (ArtifactError, DataError) as error:
            if not claims:
                raise
            refused.append(str(error))
            continue
        sides.append(side)
        found.append((side.computation, outputs))
    comparisons = compare_all(artifact.manifest, references, found, None)
    more = (*refused, *(place.text for place in claims))
    assessment = assess_all(comparisons, sides, limits, more)
    by_stage = (stage_place(comparisons, artifact.manifest.model),) if assessment.failures and not claims else ()
    return VerifyReport(
        **identity(artifact, f"{len(images)} golden images", limits),
        comparisons=comparisons,
        assessment=assessment,
        places=(*claims, *by_stage),
        notes=(*notes, *side_notes(sides)),
        backends=backend_options(sides),
    )


def assess_all(
    comparisons: Sequence[Comparison], sides: Sequence[ComparedModel], limits: Limits, more: Sequence[str]
) -> Assessment:
    """Assesses comparisons and adds the problems of the graphs and ``more`` failures."""
    found = assess(comparisons, limits)
    problems = [f"{side.computation.name}: {side.problem}" for side in sides if side.problem]
    return Assessment((*more, *problems, *found.failures), found.undecided, found.images_needed)


def checked_claims(artifact: Artifact) -> tuple[tuple[Place, ...], tuple[str, ...], DeploymentManifest]:
    """Compares the manifest with its graph.

    Returns:
        Claims that the graph contradicts, a note if onnx is not installed, and the manifest corrected by the graph.
    """
    try:
        from gft_edge.export.verify.claims import corrected, wrong_claims
    except ModuleNotFoundError:
        return (), ("the manifest is not compared with the graph: onnx is not installed",), artifact.manifest
    graph = load_artifact_graph(artifact)
    return wrong_claims(artifact, graph), (), corrected(artifact, graph)


def side_notes(sides: Sequence[ComparedModel]) -> tuple[str, ...]:
    """Returns the notes of all sides."""
    notes = [side.note for side in sides if side.note]
    if any(side.manifest.gives_probabilities for side in sides):
        notes.append(
            "the graph gives probabilities: their logarithms are compared with the log-softmax of PyTorch's logits, down to "
            f"{math.log(LEAST):.1f}"
        )
    return tuple(notes)


def identity(artifact: Artifact, source: str, limits: Limits) -> dict[str, Any]:
    """Returns the fields of a report that identify what was verified."""
    return {
        "artifact": artifact.name,
        "precision": artifact.manifest.precision,
        "model_sha256": artifact.manifest.files[MODEL].sha256,
        "source": source,
        "limits": limits,
    }


def backend_options(sides: Sequence[ComparedModel]) -> tuple[Mapping[str, Any], ...]:
    """Returns the options of each side's session."""
    return tuple({"backend": side.backend, **side.session.options} for side in sides)
