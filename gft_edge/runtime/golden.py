"""Golden images and outputs stored in an artefact: reads them and checks them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ArtifactError
from gft_edge.manifest import GOLDEN, Artifact, DeploymentManifest
from gft_edge.stats.agreement import Arrays, Computation

MAX_BYTES = 2 << 30
"""Limit for all arrays unpacked; those of a few images take megabytes."""
QUANTIZED_LOGITS = "logits_quantized"
"""Logits of the quantized PyTorch model."""
QUANTIZED_KEPT = "quantized_kept_"
"""Begins the names of what the quantized PyTorch model kept in each stage; artefacts of before have no such arrays."""
TORCH = "torch"
"""Name of PyTorch among the backends of a comparison."""


def golden_references(artifact: Artifact) -> tuple[npt.NDArray[np.float32], list[tuple[Computation, Arrays]]]:
    """Returns the golden images (B, 3, H, W), and what PyTorch computed for them: in FP32, and quantized where the graph is.

    Raises:
        ArtifactError: see :func:`read_golden`.
    """
    golden = read_golden(artifact)
    images = golden.pop("images")
    references = [(torch_computation("fp32"), golden)]
    if QUANTIZED_LOGITS in golden:
        reference = torch_computation(artifact.manifest.precision)
        references.append((reference, quantized_outputs(golden)))
    return images, references


def quantized_outputs(golden: Arrays) -> Arrays:
    """Removes the outputs of the quantized model from golden arrays and returns them as ``logits`` and ``kept_i``."""
    names = [name for name in golden if name.startswith(QUANTIZED_KEPT)]
    kept = {f"kept_{name.removeprefix(QUANTIZED_KEPT)}": golden.pop(name) for name in names}
    return {"logits": golden.pop(QUANTIZED_LOGITS), **kept}


def torch_computation(arithmetic: str) -> Computation:
    """Returns the computation by PyTorch with linear layers in this precision."""
    return Computation.of(TORCH, arithmetic)


def read_golden(artifact: Artifact) -> Arrays:
    """Reads the arrays of golden.npz: ``images`` (B, 3, H, W), ``logits`` (B, classes), ``importance_i``, ``scores_i``, ``kept_i``.

    Of a quantized model also ``logits_quantized`` and ``quantized_kept_i``.

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
    logits = _Expected((count, model.num_classes), "f", finite=False)
    expected = {"images": _Expected((count, 3, spec.height, spec.width), "f"), "logits": logits}
    if QUANTIZED_LOGITS in golden:
        expected[QUANTIZED_LOGITS] = logits
    for stage, (n, k) in enumerate(zip(manifest.budget.stage_inputs, manifest.budget.keep)):
        expected[f"importance_{stage}"] = expected[f"scores_{stage}"] = _Expected((count, n), "f")
        expected[f"kept_{stage}"] = _Expected((count, k), "iu", positions=model.num_patches)
        if f"{QUANTIZED_KEPT}{stage}" in golden:
            expected[f"{QUANTIZED_KEPT}{stage}"] = expected[f"kept_{stage}"]
    return expected
