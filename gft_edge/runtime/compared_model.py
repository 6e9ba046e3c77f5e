"""An artefact as a backend runs it, with kept patches and scores whatever outputs its graph has; and its comparison with others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ArtifactError
from gft_edge.manifest import Artifact, DeploymentManifest
from gft_edge.runtime.artifact_graph import load_artifact_graph
from gft_edge.runtime.backends.graph_io import as_log_probabilities, to_graph_input
from gft_edge.runtime.backends.sessions import ONNXRUNTIME, Session, fitted, onnxruntime_session, open_session
from gft_edge.stats.agreement import Arrays, Comparison, Computation, Kind, compare

if TYPE_CHECKING:
    import onnx

KindOf = Callable[[Computation, Computation], Kind]
"""Returns the differences that are allowed between a candidate and a reference."""


class ComparedModel:
    """An artefact as one backend runs it; gives the kept patches whatever map outputs the graph has.

    Args:
        artifact: checked against its hashes.
        backend: that runs it.

    Raises:
        ConfigError: no such backend, or an engine without a GPU.
        ArtifactError: changed file, or one that the backend refuses.
        MissingExtraError: the backend is not installed.

    Attributes:
        computation: backend and arithmetic.
        problem: error in the graph's selections, None when there is none.
        note: comparison that is not possible here, and why.
    """

    def __init__(self, artifact: Artifact, backend: str = ONNXRUNTIME) -> None:
        self.manifest = artifact.manifest
        self.backend = backend
        self.computation = Computation.of(backend, artifact.manifest.precision)
        self.session = open_session(artifact, backend, as_described=False)
        self._taps: Session | None = None
        self.problem: str | None = None
        self.note: str | None = None
        # ONNX Runtime alone can output inner tensors; the choice of another backend does not follow from its graph.
        if (
            backend == ONNXRUNTIME
            and artifact.manifest.maps != "compact"
            and self.manifest.model.selecting_stages(self.manifest.budget)
        ):
            try:
                self._taps, self.problem = selection_taps(artifact)
            except ModuleNotFoundError:  # a board has ONNX Runtime, not always onnx
                self.note = "kept patches of a graph without --maps compact are not compared: onnx is not installed"

    def __call__(self, images: npt.NDArray[np.float32]) -> Arrays:
        """Returns the outputs for preprocessed images (B, 3, H, W), in raster order whatever order the graph has inside.

        Besides those of the graph: ``scores_i`` (B, N_i) and ``kept_i`` (B, k_i) where inner tensors can be read, and
        ``importance_i`` (B, N_i) of a graph with dense maps.

        Raises:
            ArtifactError: the graph cannot be run, or its outputs differ from its manifest.
        """
        feed = to_graph_input(images, self.manifest)
        outputs = self.session.compute(feed)
        self._require_outputs(outputs, len(images))
        if self._taps is not None:
            add_selections(outputs, list(self._taps.compute(feed).values()), self.manifest)
        return outputs

    def _require_outputs(self, outputs: Arrays, images: int) -> None:
        for tensor in self.manifest.outputs:
            value, shape = outputs.get(tensor.name), (images, *tensor.shape[1:])
            if value is None or value.shape != shape:
                found = "no such output" if value is None else f"shape {value.shape}"
                raise ArtifactError(
                    f"{self.computation.name}: the manifest says that output {tensor.name} has shape {shape}, the graph "
                    f"gives {found}"
                )


def add_selections(outputs: Arrays, taps: Sequence[npt.NDArray[Any]], manifest: DeploymentManifest) -> None:
    """Adds what the inner tensors show: ``scores_i`` and ``kept_i``, in raster order, and ``importance_i`` of dense maps.

    Args:
        outputs: of the graph, with ``logits`` (B, classes).
        taps: scores and kept indices of each selection, in the graph's order; see :func:`selection_tensors`.
        manifest: of the graph.
    """
    images, patches = len(outputs["logits"]), manifest.model.num_patches
    positions: npt.NDArray[Any] = np.broadcast_to(np.arange(patches), (images, patches))
    inputs = {0: positions}
    for stage, scores, local in zip(manifest.model.selecting_stages(manifest.budget), taps[::2], taps[1::2]):
        order = np.argsort(positions, axis=1)
        outputs[f"scores_{stage}"] = np.take_along_axis(scores, order, axis=1)
        positions = np.take_along_axis(positions, local.astype(np.int64), axis=1)  # TensorRT 8.6 sorts them as FP32
        outputs[f"kept_{stage}"] = inputs[stage + 1] = np.sort(positions, axis=1)
    for stage, entering in inputs.items():
        if "gala_maps" in outputs and stage < len(manifest.budget.keep):
            dense = outputs["gala_maps"][:, stage].reshape(images, -1)
            outputs[f"importance_{stage}"] = np.take_along_axis(dense, entering, axis=1)


def selection_taps(artifact: Artifact) -> tuple[Session | None, str | None]:
    """Opens a session that gives scores and kept indices of each selection of a graph without kept outputs.

    Returns:
        The session, None when the graph selects nothing; and the error in the graph's selections, None when there is none.
    """
    import onnx

    model, manifest = load_artifact_graph(artifact), artifact.manifest
    names, problem = selection_tensors(model, manifest)
    if problem or not names:
        return None, problem
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return fitted(onnxruntime_session(model.SerializeToString(), manifest.is_quantized), manifest), None


def selection_tensors(model: onnx.ModelProto, manifest: DeploymentManifest) -> tuple[list[str], str | None]:
    """Returns the names of scores and kept indices of each selection, and the error in the graph's selections or None."""
    choices, problem = selection_topks(model, [len(manifest.model.selecting_stages(manifest.budget))])
    return [] if problem else [name for node, kept in choices for name in (node.input[0], kept)], problem


def selection_topks(
    model: onnx.ModelProto, counts: Sequence[int]
) -> tuple[list[tuple[onnx.NodeProto, str]], str | None]:
    """Returns each node that selects with the name of the kept indices, and the error in the graph's selections or None.

    Args:
        model: of an artefact.
        counts: how many selections it may have.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    topks = [node for node in model.graph.node if node.op_type == "TopK"]
    # Where the order of the patches matters a second TopK sorts the indices that were chosen, smallest first.
    sorts = [node for node in topks if any(a.name == "largest" and a.i == 0 for a in node.attribute)]
    choices = [node for node in topks if node not in sorts]
    if len(choices) not in counts:
        return [], f"graph has {len(choices)} selections, its budget needs {counts[0]}"
    kept = {node.output[1]: node.output[1] for node in choices}
    for node in sorts:
        name = node.input[0]
        while name not in kept and name in producers and producers[name].op_type in ("Cast", "Identity"):
            name = producers[name].input[0]
        if name not in kept:
            return [], f"graph sorts {node.input[0]}, which is not the result of a selection"
        kept[name] = node.output[0]
    return [(node, kept[node.output[1]]) for node in choices], None


def comparison_kind(candidate: Computation, reference: Computation) -> Kind:
    """Returns the differences that are allowed between a backend and PyTorch."""
    if candidate.arithmetic == "fp32":
        return "exact"
    return "same_arithmetic" if candidate.arithmetic == reference.arithmetic else "compression"


def compare_all(
    manifest: DeploymentManifest,
    references: Sequence[tuple[Computation, Arrays]],
    found: Sequence[tuple[Computation, Arrays]],
    labels: npt.NDArray[np.int64] | None,
    kind_of: KindOf = comparison_kind,
) -> tuple[Comparison, ...]:
    """Compares every candidate with every reference.

    Args:
        manifest: of the artefact.
        references, found: computations and their outputs. Of a graph that gives probabilities the logits are known but for one
            number per image: the references' are then compared as log-probabilities too.
        labels: true classes (B,), or None.
        kind_of: allowed differences; by default they follow from the arithmetic.
    """
    if manifest.gives_probabilities:
        references = [(computation, as_log_probabilities(side)) for computation, side in references]
    return tuple(
        compare(
            (reference, candidate),
            side,
            outputs,
            labels,
            manifest.model.num_patches,
            manifest.labels,
            kind_of(candidate, reference),
            manifest.rest,
        )
        for candidate, outputs in found
        for reference, side in references
    )
