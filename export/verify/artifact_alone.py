"""Proof that an artefact still computes what PyTorch computed when it was exported, on its golden images. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ArtifactError, DataError
from gft_edge.export.verify.compared_model import Side
from gft_edge.export.verify.golden import QUANTIZED_LOGITS, read_golden, stage_place
from gft_edge.export.verify.places import Place
from gft_edge.export.verify.verdict import Judgement, Limits, judge
from gft_edge.manifest import MODEL, Artifact, DeploymentManifest
from gft_edge.runtime.sessions import ONNXRUNTIME
from gft_edge.stats.agreement import Arrays, Comparison, Computation, Kind, compare

TORCH = "torch"
"""Name of PyTorch among the backends of a comparison."""


@dataclass(frozen=True)
class VerifyReport:
    """Comparisons, what they amount to, and where something is wrong.

    Attributes:
        artifact, precision, model_sha256: what was verified.
        source: what the images are.
        comparisons: every backend against every reference.
        limits: what passes.
        judgement: what is out of limits, what is undecided.
        places: where something is wrong, the first cause first.
        fresh_export: ``"identical"``, ``"different"``, or None when the checkpoint was not exported again.
        notes: what is worth knowing and no failure.
        backends: each with its options.
    """

    artifact: str
    precision: str
    model_sha256: str
    source: str
    comparisons: tuple[Comparison, ...]
    limits: Limits
    judgement: Judgement
    places: tuple[Place, ...] = ()
    fresh_export: str | None = None
    notes: tuple[str, ...] = ()
    backends: tuple[Mapping[str, Any], ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """What is out of limits, in words."""
        return self.judgement.failures

    @property
    def verdict(self) -> str:
        """``"pass"``, ``"fail"`` or ``"inconclusive"``."""
        return self.judgement.verdict

    @property
    def passed(self) -> bool:
        """True when nothing is out of limits; that may still be inconclusive."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        data = asdict(self)
        judgement = data.pop("judgement")
        return {
            **data,
            **judgement,
            "verdict": self.verdict,
            "passed": self.passed,
            "backend": dict(self.backends[0]) if self.backends else {},
        }


def verify_golden(
    artifact: Artifact, backends: Sequence[str] = (ONNXRUNTIME,), limits: Limits | None = None
) -> VerifyReport:
    """Compares the artefact with the PyTorch outputs stored beside it; needs no checkpoint.

    It proves the arithmetic on a few images and knows no labels: nothing is said of accuracy, and the place of a fault is
    told by stage only. The graph is held against its manifest where onnx is installed.

    Raises:
        ArtifactError: golden.npz is missing or damaged, or the graph cannot be run though its manifest fits it.
    """
    limits = limits or Limits()
    claims, notes, manifest = checked_claims(artifact)
    artifact = replace(artifact, manifest=manifest)  # what it says wrongly is told; the graph is run as what it is
    golden = read_golden(artifact)
    images = golden.pop("images")
    references = [(torch_computation("fp32"), golden)]
    if QUANTIZED_LOGITS in golden:
        reference = torch_computation(artifact.manifest.precision)
        references.append((reference, {"logits": golden.pop(QUANTIZED_LOGITS)}))
    sides: list[Side] = []
    found: list[tuple[Computation, Arrays]] = []
    refused: list[str] = []
    for backend in backends:
        try:
            side = Side(artifact, backend)
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
    judgement = judge_all(comparisons, sides, limits, more)
    by_stage = (stage_place(comparisons),) if judgement.failures and not claims else ()
    return VerifyReport(
        **identity(artifact, f"{len(images)} golden images", limits),
        comparisons=comparisons,
        judgement=judgement,
        places=(*claims, *by_stage),
        notes=(*notes, *side_notes(sides)),
        backends=backend_options(sides),
    )


def torch_computation(arithmetic: str) -> Computation:
    """PyTorch with linear layers in this precision."""
    return Computation.of(TORCH, arithmetic)


def comparison_kind(candidate: Computation, reference: Computation) -> Kind:
    """What a backend may differ in from PyTorch."""
    if candidate.arithmetic == "fp32":
        return "exact"
    return "same_arithmetic" if candidate.arithmetic == reference.arithmetic else "compression"


def compare_all(
    manifest: DeploymentManifest,
    references: Sequence[tuple[Computation, Arrays]],
    found: Sequence[tuple[Computation, Arrays]],
    labels: npt.NDArray[np.int64] | None,
    kinds: Mapping[tuple[str, str], Kind] | None = None,
) -> tuple[Comparison, ...]:
    """Compares every candidate with every reference.

    Args:
        manifest: of the artefact.
        references, found: what computed, and its outputs.
        labels: true classes (B,), or None.
        kinds: by the names of candidate and reference, where it does not follow from their arithmetic.
    """
    return tuple(
        compare(
            (reference, candidate),
            side,
            outputs,
            labels,
            manifest.model.num_patches,
            manifest.labels,
            (kinds or {}).get((candidate.name, reference.name)) or comparison_kind(candidate, reference),
        )
        for candidate, outputs in found
        for reference, side in references
    )


def judge_all(
    comparisons: Sequence[Comparison], sides: Sequence[Side], limits: Limits, more: Sequence[str]
) -> Judgement:
    """The verdict on comparisons, on what the sides say of their graphs, and on ``more`` failures."""
    found = judge(comparisons, limits)
    problems = [f"{side.computation.name}: {side.problem}" for side in sides if side.problem]
    return Judgement((*more, *problems, *found.failures), found.undecided, found.images_needed)


def checked_claims(artifact: Artifact) -> tuple[tuple[Place, ...], tuple[str, ...], DeploymentManifest]:
    """Claims of the manifest that its graph contradicts, a note where onnx is not there to read the graph, and the
    manifest as the graph has it."""
    try:
        from gft_edge.export.verify.claims import budget_claim, claim_places, corrected, read_graph
    except ModuleNotFoundError:
        return (), ("the manifest is not held against the graph: onnx is not installed",), artifact.manifest
    graph = read_graph(artifact)
    budget = budget_claim(artifact, graph)
    places = [*([] if budget is None else [budget[0]]), *claim_places(artifact.manifest, graph)]
    return tuple(places), (), corrected(artifact, graph)


def side_notes(sides: Sequence[Side]) -> tuple[str, ...]:
    """What the sides cannot compare here."""
    return tuple(side.note for side in sides if side.note)


def identity(artifact: Artifact, source: str, limits: Limits) -> dict[str, Any]:
    """Fields of a report that say what was verified."""
    return {
        "artifact": artifact.name,
        "precision": artifact.manifest.precision,
        "model_sha256": artifact.manifest.files[MODEL].sha256,
        "source": source,
        "limits": limits,
    }


def backend_options(sides: Sequence[Side]) -> tuple[Mapping[str, Any], ...]:
    """Options of each side's session, for the record."""
    return tuple({"backend": side.backend, **side.session.options} for side in sides)
