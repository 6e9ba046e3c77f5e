"""An artefact's graph whose selections follow another rule than its own; needs onnx when it is called.

Every node, every weight and every operator that computes the logits stays. What enters each TopK that selects is replaced:

    entering = places - weight * rank

where ``rank`` is 0 for the patch of the highest score, 1 for the next, and ``places`` is a value for each place of the original
grid, gathered at the patches that are still there. With the weight 1 and places of 0 the TopK finds the very patches of the
scores, in their order; with the weight -1 those of the lowest scores; with the weight 0 those of the highest places; with the
weight 1 and places of P for some patches these first. Whole numbers up to 2^24 are exact in float32; scores added to values would
be rounded.

Shape suffixes: B images, S selections, P patches of the whole image, N patches entering a selection, K patches kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ArtifactError, ConfigError, MissingExtraError
from gft_edge.manifest import LOGITS, Artifact, DeploymentManifest
from gft_edge.runtime.artifact_graph import load_artifact_graph
from gft_edge.runtime.backends.batching import run_in_batches
from gft_edge.runtime.backends.graph_io import to_graph_input, with_logits
from gft_edge.runtime.backends.sessions import Session, onnxruntime_session
from gft_edge.runtime.compared_model import selection_topks

if TYPE_CHECKING:
    import onnx

WEIGHT, PLACES = "rule_weight", "rule_places"
"""Names of the inputs that are added: (1,) and (B, S, P), both float32."""


@dataclass(frozen=True)
class Ruled:
    """What a graph gives under a rule.

    Attributes:
        logits: (B, classes); logarithms of a graph that gives probabilities.
        scores: of each selection, in the order of ``positions`` before it, (B, N).
        positions: of the patches after each selection, on the original grid, (B, K) int64.
    """

    logits: npt.NDArray[Any]
    scores: Sequence[npt.NDArray[Any]]
    positions: Sequence[npt.NDArray[np.int64]]


@dataclass(frozen=True)
class RuledGraph:
    """A graph that is open in ONNX Runtime.

    Attributes:
        manifest: of the artefact.
        stages: those that select, from 0.
        scores: name of the scores of each of them.
    """

    manifest: DeploymentManifest
    stages: Sequence[int]
    scores: Sequence[str]
    _session: Session

    def __call__(self, images: npt.NDArray[np.float32], weight: int, places: npt.NDArray[Any] | None = None) -> Ruled:
        """Runs preprocessed images (B, 3, H, W).

        Args:
            images: normalised.
            weight: of the scores: 1, 0 or -1.
            places: values of places, (B, S, P), B and S may be 1; distinct within a row where the weight is 0; None for 0.
        """
        feed = to_graph_input(images, self.manifest)
        shape = len(images), len(self.stages), self.manifest.model.num_patches
        values = np.broadcast_to(np.float32(0) if places is None else places.astype(np.float32), shape)

        def run(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
            inputs = {self.manifest.inputs[0].name: feed[rows], WEIGHT: np.array([weight], np.float32)}
            return self._session.feed({**inputs, PLACES: values[rows]})

        size = self.manifest.static_batch or len(images)
        outputs = dict(zip(self._session.outputs, run_in_batches(run, np.arange(len(images)), size, size)))
        positions = [outputs[_positions(number)] for number in range(len(self.stages))]
        return Ruled(with_logits(outputs)[LOGITS], [outputs[name] for name in self.scores], positions)


def open_ruled_graph(artifact: Artifact, threads: int = 0) -> RuledGraph:
    """Opens a copy of an artefact's graph whose selections follow a rule; weights in a file of their own are not copied.

    Args:
        artifact: of a focal model, at a budget that drops patches which a later layer reads.
        threads: of ONNX Runtime; 0 takes one per core.

    Raises:
        ConfigError: the graph computes in BF16, which ONNX Runtime does not on a CPU.
        ArtifactError: missing or changed file, or selections that are not those of its budget.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    manifest = artifact.manifest
    stages = manifest.model.selecting_stages(manifest.budget)
    model = _loaded(artifact)
    # A graph with maps also selects in its last block, for the maps alone.
    choices, problem = selection_topks(model, [len(stages), _dropping(manifest)])
    if problem is not None:
        raise ArtifactError(f"artefact {artifact.path}: {problem}; export it again")
    choices = choices[: len(stages)]
    scores = [node.input[0] for node, _ in choices]
    _edit(model, choices, [manifest.budget.stage_inputs[stage] for stage in stages], manifest)
    try:
        session = onnxruntime_session(
            model.SerializeToString(), manifest.is_quantized, threads, weights=artifact.path.resolve()
        )
    except ArtifactError:
        if manifest.rest != "bf16":
            raise
        raise ConfigError(
            f"artefact {artifact.path}: ONNX Runtime computes no BF16 on a CPU; export with --precision fp16"
        ) from None
    return RuledGraph(manifest, stages, scores, session)


def _loaded(artifact: Artifact) -> onnx.ModelProto:
    try:
        return load_artifact_graph(artifact, weights=False)
    except ModuleNotFoundError:
        raise MissingExtraError("onnx", "onnx", "which edits the graph") from None


def _dropping(manifest: DeploymentManifest) -> int:
    return sum(k < n for n, k in zip(manifest.budget.stage_inputs, manifest.budget.keep))


def _edit(
    model: onnx.ModelProto,
    choices: Sequence[tuple[onnx.NodeProto, str]],
    counts: Sequence[int],
    manifest: DeploymentManifest,
) -> None:
    """Puts the rule before each selection; adds scores and positions of each selection to the outputs.

    The map outputs stay, though they mean nothing under another rule: without them ONNX Runtime fuses other nodes.

    Args:
        model: is changed.
        choices: nodes that select, and the names of the kept indices in the graph's order.
        counts: patches entering each.
        manifest: of the graph.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    before: dict[str, list[onnx.NodeProto]] = {}
    after: dict[str, list[onnx.NodeProto]] = {}
    outputs = {output.name for output in graph.output}
    positions = ""
    for number, ((node, kept), count) in enumerate(zip(choices, counts)):
        scores, there = node.input[0], positions
        positions = _positions(number)
        before[node.output[1]] = _entering(graph, number, count, scores, there)
        after[kept] = _following(number, kept, there, positions)
        node.input[0] = f"rule_entering_{number}"
        new = [name for name in (scores, positions) if name not in outputs]
        graph.output.extend(helper.make_empty_tensor_value_info(name) for name in new)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += [extra for output in node.output for extra in before.get(output, ())]
        nodes.append(node)
        nodes += [extra for output in node.output for extra in after.get(output, ())]
    del graph.node[:]
    graph.node.extend(nodes)
    values = {node.output[0] for node, _ in choices}  # FP16 in an FP16 graph, and float32 now; nothing reads them
    known = [value for value in graph.value_info if value.name not in values]
    del graph.value_info[:]
    graph.value_info.extend(known)
    patches = manifest.model.num_patches
    graph.input.append(helper.make_tensor_value_info(WEIGHT, TensorProto.FLOAT, [1]))
    # ONNX Runtime fuses only what it knows to have one shape, and the bits of a result depend on what it fuses: so the batch axis
    # has the name it has in the image, and the shapes that the graph states stay in it.
    size = manifest.static_batch or manifest.inputs[0].shape[0]
    graph.input.append(helper.make_tensor_value_info(PLACES, TensorProto.FLOAT, [size, len(choices), patches]))


def _positions(number: int) -> str:
    """Returns the name of the places of the patches after a selection."""
    return f"rule_positions_{number}"


def _entering(graph: onnx.GraphProto, number: int, count: int, scores: str, positions: str) -> list[onnx.NodeProto]:
    """Returns the nodes of what enters a selection, and adds their constants to the graph.

    Equal scores have the order in which TopK takes them: that of their indices.

    Args:
        graph: gets the constants.
        number: of the selection.
        count: of the patches that enter it.
        scores: their name, (B, N).
        positions: name of the places of these patches, (B, N) int64; empty where every patch enters.
    """
    from onnx import TensorProto, helper, numpy_helper

    def name(what: str) -> str:
        return f"rule_{what}_{number}"

    for what, value in (("count", count), ("number", number), ("axis", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name(what)))

    def topk(of: str, values: str, indices: str, largest: int) -> onnx.NodeProto:
        return helper.make_node("TopK", [of, name("count")], [values, indices], axis=1, sorted=1, largest=largest)

    at = name("gathered") if positions else name("places")
    return [
        topk(scores, name("sorted"), name("order"), largest=1),
        topk(name("order"), name("patches"), name("rank"), largest=0),
        helper.make_node("Cast", [name("rank")], [name("float_rank")], to=TensorProto.FLOAT),
        helper.make_node("Mul", [name("float_rank"), WEIGHT], [name("weighted")]),
        helper.make_node("Gather", [PLACES, name("number")], [name("row")], axis=1),
        helper.make_node("Squeeze", [name("row"), name("axis")], [name("places")]),
        *([helper.make_node("GatherElements", [name("places"), positions], [at], axis=1)] if positions else []),
        helper.make_node("Sub", [at, name("weighted")], [name("entering")]),
    ]


def _following(number: int, kept: str, positions: str, result: str) -> list[onnx.NodeProto]:
    """Returns the nodes of the places of the patches that a selection kept.

    Args:
        number: of the selection.
        kept: name of the kept indices, (B, K), of any type: TensorRT 8.6 sorts them as float32.
        positions: as for :func:`_entering`.
        result: name of the places, (B, K) int64.
    """
    from onnx import TensorProto, helper

    local = f"rule_kept_{number}" if positions else result
    cast = helper.make_node("Cast", [kept], [local], to=TensorProto.INT64)
    return [cast, helper.make_node("GatherElements", [positions, local], [result], axis=1)] if positions else [cast]
