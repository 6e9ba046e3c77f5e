"""Golden images and outputs stored in an artefact: reads them, checks them, locates a fault by them. Needs no PyTorch."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gft_edge.config.model import GFTConfig
from gft_edge.errors import ArtifactError
from gft_edge.export.verify.places import Place
from gft_edge.export.verify.verdict import DEFAULT_LIMITS
from gft_edge.manifest import GOLDEN, Artifact, DeploymentManifest
from gft_edge.stats.agreement import Arrays, Comparison

MAX_BYTES = 2 << 30
"""Limit for all arrays unpacked; those of a few images take megabytes."""
QUANTIZED_LOGITS = "logits_quantized"
"""Logits of the quantized PyTorch model."""


def read_golden(artifact: Artifact) -> Arrays:
    """Reads the arrays of golden.npz: ``images`` (B, 3, H, W), ``logits`` (B, classes), ``importance_i``, ``scores_i``, ``kept_i``.

    Raises:
        ArtifactError: missing, damaged, or arrays that do not fit the manifest.
    """
    golden = load_golden(artifact)
    problem = golden_problem(golden, artifact.manifest)
    if problem is not None:
        raise ArtifactError(f"artefact {artifact.path}: {GOLDEN} is damaged ({problem}); export it again")
    return golden


def load_golden(artifact: Artifact) -> Arrays:
    """Reads the arrays of golden.npz without checking them.

    Raises:
        ArtifactError: missing or damaged.
    """
    path = artifact.file(GOLDEN)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"its arrays take {size} bytes")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("an entry is no array")
        return arrays
    except Exception as error:  # NumPy parses headers as Python and raises whatever they lead it to
        raise ArtifactError(f"artefact {artifact.path}: {GOLDEN} is damaged ({error}); export it again") from None


@dataclass(frozen=True)
class _Expected:
    """Form of an array: its shape, the kinds of its type, whether it must be finite, and the limit of positions in it."""

    shape: tuple[int, ...]
    kinds: str
    finite: bool = True
    positions: int | None = None


def golden_problem(golden: Arrays, manifest: DeploymentManifest) -> str | None:
    """Returns why the arrays cannot be golden outputs of this manifest's graph, or None.

    Logits may have any values: the comparison reports those that are not finite.
    """
    images = golden.get("images")
    if images is None or images.ndim != 4 or not len(images):
        return "it has no array 'images' of four axes"
    for name, expected in _expected_arrays(golden, manifest).items():
        array = golden.get(name)
        if array is None:
            return f"it has no array {name!r}"
        if array.shape != expected.shape or array.dtype.kind not in expected.kinds:
            return f"{name} is {array.shape} {array.dtype}, the manifest needs {expected.shape}"
        if expected.finite and not np.isfinite(array).all():
            return f"{name} holds values that are not finite"
        if expected.positions is not None and not (array.min() >= 0 and array.max() < expected.positions):
            return f"{name} holds positions outside the grid of {expected.positions} patches"
    return None


def _expected_arrays(golden: Arrays, manifest: DeploymentManifest) -> dict[str, _Expected]:
    spec, model, count = manifest.preprocess, manifest.model, len(golden["images"])
    pixels = golden["images"].dtype == np.uint8
    shape = (count, spec.height, spec.width, 3) if pixels else (count, 3, spec.height, spec.width)
    logits = _Expected((count, model.num_classes), "f", finite=False)
    expected = {"images": _Expected(shape, "uf"), "logits": logits}
    if QUANTIZED_LOGITS in golden:
        expected[QUANTIZED_LOGITS] = logits
    for stage, (n, k) in enumerate(zip(manifest.budget.stage_inputs, manifest.budget.keep)):
        expected[f"importance_{stage}"] = expected[f"scores_{stage}"] = _Expected((count, n), "f")
        expected[f"kept_{stage}"] = _Expected((count, k), "iu", positions=model.num_patches)
    return expected


def stage_place(comparisons: Sequence[Comparison], config: GFTConfig) -> Place:
    """Returns the place of a fault as precisely as golden outputs of a model show it."""
    hint = "give --checkpoint to have the node named"
    stages = comparisons[0].stages if comparisons else ()
    for s in stages:
        known = [sqnr for sqnr in (s.importance_sqnr_db, s.score_sqnr_db) if sqnr is not None]
        sqnr = min(known, default=None)
        if s.identical + s.ties < s.images or (sqnr is not None and sqnr < DEFAULT_LIMITS.fp32_importance_sqnr_db):
            module = stage_module(config, s.stage)
            text = f"stage {s.stage} ({module}) is the first whose patches, scores or importance differ"
            return Place(
                "stage", module, f"{text}: the fault is in it or before it; {hint}", module=module, sqnr_db=sqnr
            )
    where = "all stages agree: the fault is after patch selection" if stages else "only the logits are compared"
    return Place("stage", "logits", f"{where}; {hint}", tensor="logits")


def stage_module(config: GFTConfig, stage: int) -> str:
    """Returns the path of the module that selects patches in a stage."""
    return f"hierarchical_blocks.{stage}" if config.variant == "published" else f"blocks.{config.stages[stage] - 1}"
