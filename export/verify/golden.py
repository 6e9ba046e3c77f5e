"""Golden images and outputs stored in an artefact: read, checked, and what they tell of a fault. Needs no PyTorch."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence

import numpy as np

from gft_edge.errors import ArtifactError
from gft_edge.export.verify.places import Place
from gft_edge.export.verify.verdict import Limits
from gft_edge.manifest import GOLDEN, Artifact, DeploymentManifest
from gft_edge.stats.agreement import Arrays, Comparison

MAX_BYTES = 2 << 30
"""Of all arrays unpacked; a few images are megabytes."""
QUANTIZED_LOGITS = "logits_quantized"
"""Logits of the quantized PyTorch model."""


def read_golden(artifact: Artifact) -> Arrays:
    """Reads the arrays of golden.npz: ``images`` (B, 3, H, W), ``logits`` (B, classes), ``importance_i`` and ``kept_i``.

    Raises:
        ArtifactError: missing, damaged, or arrays that do not fit the manifest.
    """
    golden = load_golden(artifact)
    problem = golden_problem(golden, artifact.manifest)
    if problem is not None:
        raise ArtifactError(f"artefact {artifact.path}: {GOLDEN} is damaged ({problem}); export it again")
    return golden


def load_golden(artifact: Artifact) -> Arrays:
    """Reads whatever arrays golden.npz holds.

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


def golden_problem(golden: Arrays, manifest: DeploymentManifest) -> str | None:
    """What keeps the arrays from being golden outputs of this manifest's graph, in words; None when nothing does.

    Logits may be anything: whether they are finite is for the comparison to say.
    """
    images = golden.get("images")
    if images is None or images.ndim != 4 or not len(images):
        return "it has no array 'images' of four axes"
    spec, count = manifest.preprocess, len(images)
    pixels = images.dtype == np.uint8
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "images": ((count, spec.height, spec.width, 3) if pixels else (count, 3, spec.height, spec.width), "u f"),
        "logits": ((count, manifest.model.num_classes), "f"),
    }
    if QUANTIZED_LOGITS in golden:
        expected[QUANTIZED_LOGITS] = expected["logits"]
    for stage, (n, k) in enumerate(zip(manifest.budget.stage_inputs, manifest.budget.keep)):
        expected[f"importance_{stage}"] = ((count, n), "f")
        expected[f"kept_{stage}"] = ((count, k), "i u")
    for name, (shape, kinds) in expected.items():
        array = golden.get(name)
        if array is None:
            return f"it has no array {name!r}"
        if array.shape != shape or array.dtype.kind not in kinds:
            return f"{name} is {array.shape} {array.dtype}, the manifest needs {shape}"
        if not name.startswith("logits") and not np.isfinite(array).all():
            return f"{name} holds values that are not finite"
        if name.startswith("kept") and not (array.min() >= 0 and array.max() < manifest.model.num_patches):
            return f"{name} holds positions outside the grid of {manifest.model.num_patches} patches"
    return None


def stage_place(comparisons: Sequence[Comparison]) -> Place:
    """As near as golden outputs get to the place of a fault."""
    hint = "give --checkpoint to have the node named"
    limits = Limits()
    for s in comparisons[0].stages if comparisons else ():
        sqnr = s.importance_sqnr_db
        if s.identical + s.ties < s.images or (sqnr is not None and sqnr < limits.fp32_importance_sqnr_db):
            text = f"stage {s.stage} is the first whose patches or importance differ: the fault lies in it or before it; {hint}"
            return Place("stage", f"stages.{s.stage}", text, module=f"stages.{s.stage}", sqnr_db=sqnr)
    told = bool(comparisons and comparisons[0].stages)
    where = "all stages agree: the fault is after patch selection" if told else "only the logits are compared"
    return Place("stage", "logits", f"{where}; {hint}", tensor="logits")
