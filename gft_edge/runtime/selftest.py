"""The test that a bundle or artefact makes of itself where it is used: files, signature, device, and golden outputs.

Needs NumPy and one runtime.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gft_edge.bundle import RECORD, SIGNATURE, Bundle, artifact_id, is_bundle, is_zip, load_bundle, opened_bundle
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.hardware.devices import device
from gft_edge.hardware.environment import board, has_nvidia_driver, is_installed
from gft_edge.hardware.this_device import module_here, same_module
from gft_edge.manifest import Artifact, load_artifact, split_member
from gft_edge.runtime.backends.engine_files import FLAVOURS
from gft_edge.runtime.backends.table import BACKENDS, DEFAULT
from gft_edge.runtime.choice import AUTO, ENGINES
from gft_edge.runtime.compared_model import ComparedModel, compare_all
from gft_edge.runtime.golden import golden_references
from gft_edge.stats.agreement import Arrays, Comparison, Computation
from gft_edge.stats.verdict import DEFAULT_LIMITS, Assessment, Verdict, assess
from gft_edge.storage.signatures import public_key, require_signature
from gft_edge.storage.unpack import unpack

NAMED_IMAGES = 3
"""Images that a failure names; the rest are counted."""


@dataclass(frozen=True)
class SelfTestOptions:
    """Options of :func:`selftest`.

    Attributes:
        backend: a name of :data:`~gft_edge.runtime.backends.table.BACKENDS`; ``"auto"`` takes an engine where there is one, and a
            GPU.
        key: file with the public Ed25519 key of the bundle's maker; None does not check the signature.
        unpack: new folder for the content of a zip; None takes a temporary one.
        root: of the files that say which machine this is.
    """

    backend: str = AUTO
    key: Path | None = None
    unpack: Path | None = None
    root: Path = Path("/")


@dataclass(frozen=True)
class ImageResult:
    """A golden image under one budget.

    Attributes:
        image: its number.
        expected, found: class by PyTorch and by the backend.
        logit_sqnr_db: None when bit-identical.
        kept: share of kept patches in common by stage, where the backend gives them.
    """

    image: int
    expected: str
    found: str
    logit_sqnr_db: float | None
    kept: tuple[float, ...]


@dataclass(frozen=True)
class BudgetResult:
    """The golden images under one budget of the artefact.

    Attributes:
        budget: its id.
        comparisons: with each reference, FP32 and quantized.
        images: against FP32.
        assessment: failures and undecided questions; a failure names its worst images.
    """

    budget: str
    comparisons: tuple[Comparison, ...]
    images: tuple[ImageResult, ...]
    assessment: Assessment


@dataclass(frozen=True)
class SelfTest:
    """What was tested, and the result.

    Attributes:
        path: as it was given.
        target, device: of the bundle; empty for an artefact, and the device for a bundle of any.
        here: what this machine was recognised as, empty for no known board.
        artifact_id: see :func:`gft_edge.bundle.artifact_id`.
        precision: of the graph.
        files: number of files whose hashes were compared.
        signature: ``"valid"``, ``"not checked"`` or ``"none"``.
        backend: that ran, with the options of its session.
        budgets: in the order of the artefact.
        notes: what was not tested, and why.
        seconds: all of it took.
    """

    path: str
    target: str
    device: str
    here: str
    artifact_id: str
    precision: str
    files: int
    signature: str
    backend: str
    options: dict[str, Any]
    budgets: tuple[BudgetResult, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def failures(self) -> tuple[str, ...]:
        """Figures out of limits, each with its budget."""
        return tuple(f"budget {b.budget}: {text}" for b in self.budgets for text in b.assessment.failures)

    @property
    def undecided(self) -> tuple[str, ...]:
        """Questions that the golden images do not decide."""
        return tuple(f"budget {b.budget}: {text}" for b in self.budgets for text in b.assessment.undecided)

    @property
    def verdict(self) -> Verdict:
        """``"fail"``, ``"inconclusive"`` or ``"pass"``."""
        return "fail" if self.failures else "inconclusive" if self.undecided else "pass"

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON values."""
        return {**asdict(self), "verdict": self.verdict, "failures": list(self.failures)}


def selftest(path: str | Path, options: SelfTestOptions = SelfTestOptions()) -> SelfTest:
    """Tests a bundle, its zip or an artefact on this machine.

    Args:
        path: folder or zip; ``folder@147-98-49`` tests one budget of several.
        options: backend, key, place to unpack to.

    Raises:
        ArtifactError: a file is missing or changed, the signature is not valid, the bundle is for another board, or an engine
            is not for this machine.
        ConfigError: a key for an artefact, a place to unpack to for a folder, or an unusable backend or key.
        MissingExtraError: the backend, or for a key cryptography, is not installed.
    """
    start = time.perf_counter()
    with _opened(path, options) as (artifact, bundle, signature):
        members = [artifact]
        if artifact.member == "" and not split_member(path)[1]:
            members += [load_artifact(f"{artifact.path}@{name}") for name in artifact.manifest.family]
        here, notes = _fit(bundle, options.root)
        backend = _backend(artifact) if options.backend == AUTO else options.backend
        budgets, more = [], []
        session: dict[str, Any] = {}
        for member in members:
            result, problem_notes, session = _test_budget(member, backend)
            budgets.append(result)
            more += problem_notes
        count = len(artifact.manifest.files) + (len(bundle.files) if bundle else 0)
        return SelfTest(
            path=str(path),
            target=bundle.target if bundle else "",
            device=bundle.device if bundle else "",
            here=here,
            artifact_id=bundle.artifact_id if bundle else artifact_id(load_artifact(artifact.path).manifest),
            precision=artifact.manifest.precision,
            files=count,
            signature=signature,
            backend=backend,
            options=session,
            budgets=tuple(budgets),
            notes=tuple(dict.fromkeys((*notes, *more))),
            seconds=time.perf_counter() - start,
        )


@contextlib.contextmanager
def _opened(path: str | Path, options: SelfTestOptions) -> Iterator[tuple[Artifact, Bundle | None, str]]:
    """Yields the checked artefact, its bundle if any, and the state of the signature."""
    folder, member = split_member(path)
    zipped = is_zip(folder)
    if options.unpack is not None and not zipped:
        if not folder.exists():
            raise ConfigError(f"--unpack: {path}: no such file; give the zip that gft-edge bundle --zip wrote")
        raise ConfigError(f"--unpack: {path} is no zip; leave --unpack out")
    if not zipped and not is_bundle(folder):
        artifact = load_artifact(path)
        if options.key is not None:
            raise ConfigError(f"--key: {path} is an artefact, which has no signature; bundles have one")
        for name in artifact.manifest.files:
            artifact.file(name)
        yield artifact, None, "none"
        return
    with _folder(folder, options) as bundle:
        signature = _signature(bundle, options.key)
        artifact = bundle.check()
        yield load_artifact(f"{artifact.path}@{member}") if member else artifact, bundle, signature


@contextlib.contextmanager
def _folder(path: Path, options: SelfTestOptions) -> Iterator[Bundle]:
    """Yields the bundle of a folder or zip; what a zip was unpacked to stays only if every file is right."""
    if options.unpack is None:
        with opened_bundle(path) as bundle:
            yield bundle
        return
    with opened_bundle(path) as bundle:
        _signature(bundle, options.key)
        bundle.check()
    unpack(path, options.unpack)
    yield load_bundle(options.unpack)


def _signature(bundle: Bundle, key: Path | None) -> str:
    """Checks the signature if there is a key; returns its state."""
    if key is None:
        return "not checked" if (bundle.path / SIGNATURE).is_file() else "none"
    require_signature(bundle.path / RECORD, bundle.path / SIGNATURE, public_key(key))
    return "valid"


def _fit(bundle: Bundle | None, root: Path) -> tuple[str, list[str]]:
    """Returns what this machine is, and notes.

    Raises:
        ArtifactError: the bundle is for another board than this one.
    """
    found, name = module_here(root), board(root)
    here = found.profile.name if found else name or ""
    if bundle is None or not bundle.device:
        return here, []
    wanted = device(bundle.device)
    if found is None and name is None:
        return here, [
            f"made for {wanted.title}; this machine is not one, so its engines and their speed are not tested"
        ]
    if found is None or not same_module(found.profile, wanted):
        title, evidence = (found.profile.title, f" ({found.evidence})") if found else (str(name), "")
        command = (
            f"gft-edge bundle ARTIFACT --target {bundle.target} --device {found.profile.name if found else 'DEVICE'}"
        )
        raise ArtifactError(
            f"bundle {bundle.path}: is for {wanted.title}, this is {title}{evidence}; make one for it: {command}"
        )
    return here, []


def _backend(artifact: Artifact) -> str:
    """Returns the first backend that can run an engine that the artefact has, else the default one.

    This is not :func:`gft_edge.runtime.choice.open_chosen`, which goes on to the next backend where one does not open: the test of
    an engine that does not open must fail.
    """
    for each in BACKENDS if has_nvidia_driver() else ():
        start = f"{ENGINES}{FLAVOURS.get(each.module, '-')}"
        has_one = any(name.startswith(start) for name in artifact.manifest.files)
        if each.runs_engines and has_one and is_installed(each.module):
            return each.name
    return DEFAULT


def _test_budget(artifact: Artifact, backend: str) -> tuple[BudgetResult, list[str], dict[str, Any]]:
    """Runs the golden images; returns the result, notes, and the options of the session."""
    manifest = artifact.manifest
    images, references = golden_references(artifact)
    model = ComparedModel(artifact, backend)
    outputs = model(images)
    comparisons = compare_all(manifest, references, [(model.computation, outputs)], None)
    found = assess(comparisons, DEFAULT_LIMITS)
    failures = [model.problem] if model.problem else []
    by_image = []
    for reference, comparison in zip(references, comparisons):
        own = assess([comparison], DEFAULT_LIMITS).failures
        each = _by_image(artifact, reference, (model.computation, outputs), len(images))
        by_image.append(each)
        named = _named(each, manifest.labels, reference[1], outputs) if own else ""
        failures += [f"{text}; {named}" for text in own]
    assessment = replace(found, failures=tuple(failures))
    rows = _rows(by_image[0], manifest.labels, references[0][1], outputs)
    notes = [model.note] if model.note else []
    return BudgetResult(manifest.budget.id, comparisons, rows, assessment), notes, dict(model.session.options)


def _by_image(
    artifact: Artifact, reference: tuple[Computation, Arrays], found: tuple[Computation, Arrays], count: int
) -> list[Comparison]:
    """Returns the comparison of each image by itself."""

    def only(side: tuple[Computation, Arrays], row: int) -> tuple[Computation, Arrays]:
        return side[0], {name: values[row : row + 1] for name, values in side[1].items()}

    return [compare_all(artifact.manifest, [only(reference, row)], [only(found, row)], None)[0] for row in range(count)]


def _named(each: Sequence[Comparison], labels: Sequence[str], reference: Arrays, outputs: Arrays) -> str:
    """Describes the worst images: those out of limits by themselves, else those of the lowest SQNR."""

    def rank(row: int) -> tuple[bool, float]:
        sqnr = each[row].logit_sqnr_db
        return not assess([each[row]], DEFAULT_LIMITS).failures, math.inf if sqnr is None else sqnr

    worst = sorted(range(len(each)), key=rank)
    bad = sum(not rank(row)[0] for row in worst)
    texts = []
    for row in worst[:NAMED_IMAGES]:
        sqnr = each[row].logit_sqnr_db
        expected, got = (labels[int(side["logits"][row].argmax())] for side in (reference, outputs))
        classes = f"{got} instead of {expected}" if got != expected else f"class {got} as expected"
        stages = [
            f"stage {s.stage + 1} keeps {s.jaccard:.0%} of the patches" for s in each[row].stages if not s.identical
        ]
        figures = [classes, "exact logits" if sqnr is None else f"SQNR {sqnr:.1f} dB", *stages]
        texts.append(f"image {row} ({', '.join(figures)})")
    more = f" and {bad - NAMED_IMAGES} more" if bad > NAMED_IMAGES else ""
    return f"worst: {', '.join(texts)}{more}"


def _rows(
    each: Sequence[Comparison], labels: Sequence[str], reference: Arrays, outputs: Arrays
) -> tuple[ImageResult, ...]:
    return tuple(
        ImageResult(
            image=row,
            expected=labels[int(reference["logits"][row].argmax())],
            found=labels[int(outputs["logits"][row].argmax())],
            logit_sqnr_db=one.logit_sqnr_db,
            kept=tuple(stage.jaccard for stage in one.stages),
        )
        for row, one in enumerate(each)
    )
