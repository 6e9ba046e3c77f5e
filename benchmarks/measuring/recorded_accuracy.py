"""Accuracy of an artefact, for the energy per correct image: what was measured and recorded, never a guess."""

from __future__ import annotations

from dataclasses import dataclass

from gft_edge.constants import VERIFY_REPORT
from gft_edge.errors import ArtifactError
from gft_edge.files import read_json
from gft_edge.manifest import MODEL, Artifact


@dataclass(frozen=True)
class Accuracy:
    """Share of images classified correctly, and of which images; None with the reason in ``refused``."""

    top1: float | None
    source: str = ""
    refused: str | None = None


def recorded_accuracy(artifact: Artifact, backend: str) -> Accuracy:
    """What ``gft-edge verify`` found on labelled images with this graph on this backend.

    Raises:
        ArtifactError: the report was changed since it was written.
    """
    unknown = Accuracy(
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
            # Reports of earlier versions do not say the backend; nothing is read from their labels.
            if comparison.get("backend") == backend and comparison["top1_candidate"] is not None:
                return Accuracy(float(comparison["top1_candidate"]), str(report["source"]))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ArtifactError(
            f"report {artifact.path / name}: malformed ({error!r}); run gft-edge verify again"
        ) from None
    return unknown
