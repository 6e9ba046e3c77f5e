"""Verifies a foreign graph: a quantized one against its float original on the same images, a lone one against itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gft_edge.data.batches import BATCH_SIZE, Problem, batch_count, evaluation_batches
from gft_edge.data.for_model import Note
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.foreign.images import images_for, random_images, with_knowledge
from gft_edge.export.foreign.model import ForeignModel, load_foreign
from gft_edge.export.foreign.opening import ForeignFacts, facts_of, open_foreign, viewed
from gft_edge.export.foreign.parting import parting_node
from gft_edge.export.lint.linter import lint_view
from gft_edge.export.verify.artifact_alone import VerifyReport
from gft_edge.export.verify.options import VerifyOptions
from gft_edge.export.verify.places import Place
from gft_edge.progress import Track, silent
from gft_edge.runtime.backends.graph_io import log_probabilities
from gft_edge.runtime.backends.sessions import ONNXRUNTIME, Session
from gft_edge.stats.agreement import Comparison, Computation, Kind, compare
from gft_edge.stats.verdict import Assessment, assess

BATCH = 8
"""Images at a time; the others of a batch must not change an image's logits."""
TRACED = 2
"""Images that the search for a node runs on."""
NOISE_DB = 6.0
"""Below it the error is half as large as the logits: no rounding explains that, on whatever images."""
ONLY_ARITHMETIC = "random images show the arithmetic only, nothing about accuracy; give --data"

Logits = npt.NDArray[np.float32]
Batches = Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | None]]
Runner = Callable[[npt.NDArray[np.float32]], Logits]


def verify_foreign(
    model: ForeignModel,
    against: ForeignModel | None,
    options: VerifyOptions,
    track: Track = silent,
    note: Note = lambda text: None,
    problem: Problem | None = None,
) -> VerifyReport:
    """Verifies a foreign graph on each backend.

    With a float original the logits are compared as for artefacts: SQNR, same class, paired top-1 where there are labels. Without
    one the graph is compared with itself: as ONNX Runtime optimises it against node by node, and image by image against batches.

    Args:
        model: the graph; a quantized one finds its original itself where that stands beside it or here.
        against: its float original.
        options: backends, limits and images; without ``data`` the images are made from a seed.
        track: shows progress, batch by batch.
        note: receives how images were found.
        problem: receives images that cannot be read and are replaced; without it such an image is an error.

    Raises:
        ArtifactError: a graph that cannot be run, or another original than the one that was quantized.
        ConfigError: data without known preprocessing.
        DataError: the images cannot be used.
        MissingExtraError: a backend is not installed.
    """
    original = original_of(model, against)
    if original is None:
        return _alone(model, options, track, note, problem)
    return _against(model, original, options, track, note, problem)


def original_of(model: ForeignModel, against: ForeignModel | None) -> ForeignModel | None:
    """Returns the float original of a model, None for a file that records none.

    Raises:
        ArtifactError: ``against`` is another file, or takes other images; or the file that is recorded is not found.
    """
    quantization = model.quantization
    if against is not None:
        if against.quantization is not None and against.quantization.source_sha256 == model.sha256:
            raise ArtifactError(
                f"--against {against.path}: is quantized; give the float original, and the quantized one before it"
            )
        if quantization is not None and against.sha256 != quantization.source_sha256:
            raise ArtifactError(
                f"--against {against.path}: {model.path} was quantized from {quantization.source} (sha256 "
                f"{quantization.source_sha256[:12]}), this is another file ({against.sha256[:12]})"
            )
        if (model.size, model.classes) != (against.size, against.classes):
            raise ArtifactError(
                f"--against {against.path}: takes images of {_size(against)} and has {against.classes} classes, {model.path} "
                f"{_size(model)} and {model.classes}"
            )
        return against
    if quantization is None:
        return None
    name = Path(quantization.source).name
    recorded = quantization.details.get("source_path")
    places = [model.path / str(recorded)] if recorded else []
    for place in [*places, *(folder / name for folder in (model.path, model.path.parent, Path()))]:
        if place.is_file() and not place.samefile(model.file):
            there = load_foreign(place, model.size[0])
            if there.sha256 == quantization.source_sha256:
                return there
    raise ArtifactError(
        f"{model.path}: its float original {name} (sha256 {quantization.source_sha256[:12]}) is not where it was, not beside it "
        "and not in this folder; give --against FILE"
    )


def _size(model: ForeignModel) -> str:
    return " x ".join(map(str, model.size))


def _against(
    model: ForeignModel,
    original: ForeignModel,
    options: VerifyOptions,
    track: Track,
    note: Note,
    problem: Problem | None,
) -> VerifyReport:
    original = with_knowledge(original, [model])
    model = dataclasses.replace(
        model, preprocess=model.preprocess or original.preprocess, labels=model.labels or original.labels
    )
    facts = facts_of(model)
    given = _given(model, options, track, note, problem)
    known = facts_of(original)
    reference = _computation(original, known, ONNXRUNTIME)
    sessions = {_computation(model, facts, name): open_foreign(model, facts, name) for name in options.backends}
    runners = {reference: runner(original, open_foreign(original, known))}
    runners |= {computation: runner(model, session) for computation, session in sessions.items()}
    found, truth, examples = _run(runners, given.batches)
    kind: Kind = "exact" if facts.precision == reference.arithmetic == "fp32" else "compression"
    comparisons = tuple(_compare((reference, side), found, truth, given.labels or (), kind) for side in sessions)
    assessment = assess(comparisons, options.limits)
    place = None
    if assessment.failures:
        place = _parting(model, original, examples, options.limits.int8_sqnr_db)
    if options.data is None:
        assessment = _of_arithmetic(assessment, comparisons, place, options.limits.int8_sqnr_db)
    return _report(model, facts, given, options, sessions.values(), comparisons, assessment, place, ())


def _alone(
    model: ForeignModel, options: VerifyOptions, track: Track, note: Note, problem: Problem | None
) -> VerifyReport:
    facts = facts_of(model)
    given = _given(model, options, track, note, problem)
    plain = Computation(ONNXRUNTIME, facts.precision, "node by node, onnxruntime")
    sessions = {_computation(model, facts, name): open_foreign(model, facts, name) for name in options.backends}
    runners = {plain: runner(model, open_foreign(model, facts, optimized=False))}
    runners |= {computation: runner(model, session) for computation, session in sessions.items()}
    pairs = [(plain, side) for side in sessions]
    notes = []
    if model.batch is None:
        singly = {side: Computation(side.backend, side.arithmetic, f"{side.name}, one by one") for side in sessions}
        runners |= {singly[side]: _one_by_one(runner(model, session)) for side, session in sessions.items()}
        pairs += list(singly.items())
    else:
        notes.append(f"the graph takes {model.batch} image(s) at a time: independence within a batch is not checked")
    found, _, _ = _run(runners, given.batches)
    comparisons = tuple(_compare(pair, found, None, (), _kind(facts)) for pair in pairs)
    report = lint_view(viewed(model))
    notes.append(
        f"lint for {report.target}: {len(report.errors)} errors, {len(report.findings) - len(report.errors)} warnings"
        + (f"; {report.findings[0].rule} {report.findings[0].node}" if report.findings else "")
    )
    if facts.is_quantized:
        notes.append("compared with itself alone; give --against MODEL.onnx to compare with the float original")
    if options.data is None:
        notes.append(ONLY_ARITHMETIC.partition(";")[0])
    assessment = assess(comparisons, options.limits)
    return _report(model, facts, given, options, sessions.values(), comparisons, assessment, None, tuple(notes))


def _report(
    model: ForeignModel,
    facts: ForeignFacts,
    given: _Given,
    options: VerifyOptions,
    sessions: Iterable[Session],
    comparisons: tuple[Comparison, ...],
    assessment: Assessment,
    place: Place | None,
    notes: tuple[str, ...],
) -> VerifyReport:
    backends: list[Mapping[str, Any]] = [{"backend": s.backend, **s.options} for s in sessions]
    return VerifyReport(
        artifact=str(model.path),
        precision=facts.precision,
        model_sha256=model.sha256,
        source=given.source,
        comparisons=comparisons,
        limits=options.limits,
        assessment=assessment,
        places=() if place is None else (place,),
        notes=notes,
        backends=tuple(backends),
        unreadable=given.unreadable,
    )


def _computation(model: ForeignModel, facts: ForeignFacts, backend: str) -> Computation:
    return Computation(backend, facts.precision, f"{model.path.name}, {backend}")


def _kind(facts: ForeignFacts) -> Kind:
    return "exact" if facts.precision == "fp32" else "same_arithmetic"


@dataclass(frozen=True)
class _Given:
    """Preprocessed images in batches, with labels where they are known.

    Attributes:
        batches: images (B, 3, H, W) and labels (B,) or None.
        source: in words.
        labels: names of the classes, where they are known.
        unreadable: names of images that were left out.
    """

    batches: Batches
    source: str
    labels: tuple[str, ...] | None = None
    unreadable: tuple[str, ...] = ()


def _given(model: ForeignModel, options: VerifyOptions, track: Track, note: Note, problem: Problem | None) -> _Given:
    """Opens the images of the options, or makes some."""
    if options.data is None:
        images = random_images(model)
        parts = [(images[start : start + BATCH], None) for start in range(0, len(images), BATCH)]
        return _Given(track(parts, "verify", len(parts)), f"{len(images)} smooth random images of seed 0")
    found = images_for(model, options.data, options.split, options.images, note, problem)
    batches = evaluation_batches(found.images, found.preprocess)
    tracked = track(batches, "verify", batch_count(len(found.images), BATCH_SIZE))
    labelled = ((pixels, labels if found.labels else None) for pixels, labels in tracked)
    return _Given(labelled, found.source, found.labels, found.unreadable)


def runner(model: ForeignModel, session: Session) -> Runner:
    """Returns a function from preprocessed images (B, 3, H, W) to logits (B, classes), ``BATCH`` images at a time."""

    def run(images: npt.NDArray[np.float32]) -> Logits:
        parts = [model.logits(session, images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return np.concatenate(parts)

    return run


def _one_by_one(run: Runner) -> Runner:
    return lambda images: np.concatenate([run(image[None]) for image in images])


def _run(
    runners: Mapping[Computation, Runner], batches: Batches
) -> tuple[dict[Computation, Logits], npt.NDArray[np.int64] | None, npt.NDArray[np.float32]]:
    """Returns the logits of every computation, the labels, and the first images."""
    parts: dict[Computation, list[Logits]] = {computation: [] for computation in runners}
    labels: list[npt.NDArray[np.int64]] = []
    first = None
    for images, truth in batches:
        first = images[:TRACED] if first is None else first
        labels += [] if truth is None else [truth]
        for computation, run in runners.items():
            parts[computation].append(run(images))
    assert first is not None, "data sets have an image"
    found = {computation: np.concatenate(logits) for computation, logits in parts.items()}
    return found, np.concatenate(labels) if labels else None, first


def _compare(
    pair: tuple[Computation, Computation],
    found: Mapping[Computation, Logits],
    truth: npt.NDArray[np.int64] | None,
    names: tuple[str, ...],
    kind: Kind,
) -> Comparison:
    a, b = (found[side] for side in pair)
    if _are_probabilities(a):
        a, b = log_probabilities(a), log_probabilities(b)
    return compare(pair, {"logits": a}, {"logits": b}, truth, 1, names, kind)


def _are_probabilities(values: Logits) -> bool:
    """Returns whether rows are shares of one, as of a graph with a softmax at its end."""
    return bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3))


def _of_arithmetic(
    assessment: Assessment, comparisons: Iterable[Comparison], place: Place | None, least_db: float
) -> Assessment:
    """Returns the verdict that random images allow: what no rounding explains fails, the rest is open.

    That is: values that are not finite, an error beyond ``NOISE_DB``, or a node that turns what agrees into noise.
    """
    broken = any(
        c.not_finite or c.reference_not_finite or (math.inf if c.logit_sqnr_db is None else c.logit_sqnr_db) < NOISE_DB
        for c in comparisons
    )
    if place is not None and (place.sqnr_before_db is None or place.sqnr_before_db >= least_db):
        broken = broken or place.sqnr_db is None or place.sqnr_db < 0
    if broken:
        return assessment
    return Assessment((), (*assessment.failures, *assessment.undecided, ONLY_ARITHMETIC), None)


def _parting(
    model: ForeignModel, original: ForeignModel, images: npt.NDArray[np.float32], least_db: float
) -> Place | None:
    if model.layout != original.layout:
        return None
    count = model.batch or original.batch or len(images)
    feed = np.resize(model.to_input(images), (count, *model.to_input(images).shape[1:]))
    graphs = []
    for side in (original, model):
        try:
            graphs.append(onnx.load(str(side.file)))
        except Exception as error:  # protobuf's own class, which onnx does not export
            raise ArtifactError(f"graph {side.file}: cannot be read ({error})") from None
    return parting_node(graphs[0], graphs[1], feed, least_db)


def require_foreign_options(given: Mapping[str, object], path: Path) -> None:
    """Refuses options of artefacts.

    Args:
        given: values by the name of the option; empty ones are not given.
        path: of the ONNX file.

    Raises:
        ConfigError: one is given.
    """
    for name, value in given.items():
        if value:
            raise ConfigError(
                f"{name}: for artefacts, and {path} is an ONNX file of another program; leave {name} out, or give --against its "
                "float original"
            )
