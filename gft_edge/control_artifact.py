"""The rules of the comparison of selections on an artefact: the graph that is deployed, in ONNX Runtime on the CPU.

NumPy, onnx and ONNX Runtime; no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from gft_edge.control_rules import Answer, Batch, Measured, Rule, Run, measure, require_choice, rules, standardised
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.marks import marks_of
from gft_edge.data.sets import ImageSet
from gft_edge.errors import ArtifactError, DataError
from gft_edge.manifest import Artifact, load_artifact
from gft_edge.model.places import Ranks, distinct
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.runtime.accuracy import Forward
from gft_edge.runtime.backends.sessions import ONNXRUNTIME, open_session
from gft_edge.runtime.ruled_graph import RuledGraph, open_ruled_graph


def members(artifact: Artifact, budgets: Sequence[str]) -> list[Artifact]:
    """Returns the artefact, or its members of the given budgets, each once.

    Raises:
        ConfigError: a budget that is none, or at which the kept patches decide nothing.
        ArtifactError: a budget that the artefact has no graph of; names those it has.
    """
    config = artifact.manifest.model
    asked = [config.parse_budget(text) for text in budgets] or [artifact.manifest.budget]
    full = config.full_budget.id
    smaller = [name for name in _budgets(artifact) if name != full]
    instead = (
        f"the artefact has a smaller one: --budget {smaller[0]}"
        if smaller
        else "the artefact has no smaller one: export the checkpoint with another --budget"
    )
    found = []
    for budget in dict.fromkeys(asked):
        require_choice(budget, config, instead)
        member = _member(artifact, budget.id)
        if member is None:
            has = ", ".join(_budgets(artifact))
            raise ArtifactError(
                f"artefact {artifact.path}: has no graph of budget {budget.id}; there are: {has}; export the checkpoint with "
                f"--budget {','.join(map(str, budget.keep))} for another"
            )
        found.append(member)
    return found


def every_patch(artifact: Artifact, threads: int) -> tuple[str, Forward] | None:
    """Returns id and function of the family's graph that keeps every patch; None where there is none."""
    full = artifact.manifest.model.full_budget.id
    member = _member(artifact, full)
    if member is None:
        return None
    session = open_session(member, ONNXRUNTIME, threads)
    return full, lambda pixels: session(pixels)["logits"]


def _member(artifact: Artifact, budget: str) -> Artifact | None:
    if budget == artifact.manifest.budget.id:
        return artifact
    return load_artifact(f"{artifact.path}@{budget}") if budget in _budgets(artifact) else None


def _budgets(artifact: Artifact) -> list[str]:
    """Returns the ids of the budgets of a family, the first one's first."""
    whole = load_artifact(artifact.path).manifest
    return [whole.budget.id, *whole.family]


def learn_places(
    graphs: Sequence[RuledGraph], images: ImageSet, spec: PreprocessSpec, track: Track = silent
) -> tuple[list[Ranks], int]:
    """Returns for each graph the ranks of the places by their mean score over images, (S, P), and the number of images.

    The scores are those of the graph as it is, so a later selection scores the patches that the earlier ones kept. A score only
    ranks the patches of one image: each image's scores are standardised, and the mean of a place is that over the images in which
    it entered. A place that never entered comes last.

    Raises:
        DataError: none of the images can be read.
    """
    shapes = [(len(graph.stages), graph.manifest.model.num_patches) for graph in graphs]
    totals, seen = [np.zeros(shape) for shape in shapes], [np.zeros(shape) for shape in shapes]
    count = 0
    batches = evaluation_batches(images, spec, problem=lambda text: None)
    for pixels, _ in track(batches, "static places", batch_count(len(images))):
        count += len(pixels)
        for graph, total, times in zip(graphs, totals, seen):
            found = graph(pixels, 1)
            entering: npt.NDArray[np.int64] = np.broadcast_to(np.arange(total.shape[1]), found.scores[0].shape)
            for number, (scores, positions) in enumerate(zip(found.scores, found.positions)):
                np.add.at(total[number], entering, standardised(scores))
                np.add.at(times[number], entering, 1)
                entering = positions
    if not count:
        raise DataError("none of the images for the static places can be read")
    means = [np.where(times > 0, total / np.maximum(times, 1), -np.inf) for total, times in zip(totals, seen)]
    return [distinct(mean) for mean in means], count


def measure_graphs(
    graphs: Sequence[RuledGraph],
    full: tuple[str, Forward] | None,
    images: ImageSet,
    static: Sequence[Ranks],
    problem: Callable[[str], None] | None = None,
    track: Track = silent,
    where: str = "model",
) -> Measured:
    """Runs every rule on every graph, on the same images; each image is read once.

    Args:
        graphs: of one artefact.
        full: see :func:`every_patch`.
        images: with the model's class numbers.
        static: of each graph, see :func:`learn_places`.
        problem, track, where: see :func:`gft_edge.control_rules.measure`.

    Raises:
        DataError: an image cannot be read, or none of them.
        CheckFailed: logits that are NaN or infinite.
    """
    manifest, has_marks = graphs[0].manifest, marks_of(images) is not None
    runs = [
        [_run(graph, rule) for rule in rules(manifest.model, places, has_marks)]
        for graph, places in zip(graphs, static)
    ]
    return measure(full, runs, images, manifest.preprocess, manifest.model.grid, problem, track, where)


def _run(graph: RuledGraph, rule: Rule) -> Run:
    def answer(pixels: npt.NDArray[np.float32], batch: Batch) -> Answer:
        found = graph(pixels, *rule.ranking(batch))
        return Answer(found.logits, found.positions[-1])

    return Run(rule.name, f"{graph.manifest.budget.id} with {rule.name} patches", answer)


def open_graphs(artifacts: Sequence[Artifact], threads: int) -> list[RuledGraph]:
    """Opens the graph of each artefact, see :func:`gft_edge.runtime.ruled_graph.open_ruled_graph`."""
    return [open_ruled_graph(artifact, threads) for artifact in artifacts]
