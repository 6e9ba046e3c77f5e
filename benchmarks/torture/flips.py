"""Changes bits, bytes and lengths in every kind of file and checks that the toolkit does not accept damage."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gft_edge.benchmarks.torture.contained import DEFAULT, Kind, run_contained
from gft_edge.benchmarks.torture.materials import Materials
from gft_edge.bundle import ARTIFACT, load_bundle, write_record
from gft_edge.manifest import load_artifact

CHANGES = ("bit", "byte", "delete", "insert", "truncate", "append")
WEIGHTS = (80, 4, 4, 4, 4, 4)
"""Percentages of the changes."""


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Args:
        kind: name in the table.
        file: the file to change.
        use: reads the file as the toolkit does and returns a comparable result.
        by_hand: True if people edit the file; a different valid content is then no failure.
    """

    kind: str
    file: Path
    use: Callable[[], object]
    by_hand: bool = False


@dataclass(frozen=True)
class FlipResult:
    """Outcomes of the changes to one kind of file; ``examples`` lists failures."""

    kind: str
    tried: int
    counts: dict[str, int]
    examples: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """Returns the number of changes that were accepted or caused a traceback, hang, crash or too much memory."""
        return sum(n for kind, n in self.counts.items() if kind in ("accepted", "traceback", "hang", "crash", "memory"))


@dataclass(frozen=True)
class Change:
    """A change to a file: ``new`` replaces ``size`` bytes at ``place``."""

    name: str
    place: int
    size: int
    new: bytes = field(default=b"")

    def apply(self, data: bytes) -> bytes:
        """Returns the changed content."""
        return data[: self.place] + self.new + data[self.place + self.size :]

    def describe(self) -> str:
        """Returns a short description."""
        return f"{self.name} at {self.place}" + (f" to {self.new.hex()}" if self.new else "")


def draw(data: bytes, rng: random.Random) -> Change:
    """Returns a random change that alters the content."""
    name = rng.choices(CHANGES, WEIGHTS)[0]
    place = rng.randrange(len(data))
    if name == "bit":
        return Change(name, place, 1, bytes([data[place] ^ 1 << rng.randrange(8)]))
    if name == "byte":
        return Change(name, place, 1, bytes([data[place] ^ rng.randrange(1, 256)]))
    if name == "delete":
        return Change(name, place, rng.randint(1, 8))
    if name == "truncate":
        return Change(name, place, len(data) - place)
    return Change(name, place if name == "insert" else len(data), 0, rng.randbytes(rng.randint(1, 8)))


def targets(made: Materials) -> list[Target]:
    """Returns every kind of file with the call that reads it."""
    from gft_edge.benchmarks.measuring.bench_files import read_bench
    from gft_edge.calibration.ranges import read_ranges
    from gft_edge.config.recipe import load_recipe
    from gft_edge.quant.policy import read_policy

    artifact, calibration = made.artifact, made.artifact / "calibration"
    cache = calibration / "tensorrt-8.6.1-entropy2.cache"
    found = [
        Target("model.onnx", artifact / "model.onnx", lambda: predictions(made, artifact)),
        Target("golden.npz", artifact / "golden.npz", lambda: golden(artifact)),
        Target("manifest.json", artifact / "manifest.json", lambda: manifest(made, artifact)),
        Target("manifest.json of a family", made.family / "manifest.json", lambda: manifest(made, made.family)),
        Target(
            "reports/verify.json", artifact / "reports/verify.json", lambda: registered(artifact, "reports/verify.json")
        ),
        Target("checkpoint: weights", made.checkpoint / "model.safetensors", lambda: checkpoint(made.checkpoint)),
        Target("checkpoint: config.json", made.checkpoint / "config.json", lambda: checkpoint(made.checkpoint)),
        Target("INT8 checkpoint: config.json", made.quantized / "config.json", lambda: checkpoint(made.quantized)),
        Target("state.pt", made.trained / "state.pt", lambda: state(made)),
        Target("ranges.json", made.ranges / "ranges.json", lambda: read_ranges(made.ranges / "ranges.json").to_json()),
        Target("card.json", made.ranges / "card.json", lambda: card(made.ranges / "card.json")),
        Target("TensorRT cache", cache, lambda: tensorrt_cache(artifact, cache)),
        Target("record of the cache", Path(f"{cache}.json"), lambda: tensorrt_cache(artifact, cache)),
        Target("bench file", made.bench, lambda: read_bench(made.bench)),
        Target("policy", made.policy, lambda: read_policy(made.policy).to_json(), by_hand=True),
        Target("recipe", made.recipe, lambda: load_recipe(made.recipe).to_json(), by_hand=True),
    ]
    if (made.family / "weights.bin").exists():
        found.append(
            Target("weights.bin of a family", made.family / "weights.bin", lambda: predictions(made, made.family))
        )
    found += bundle_targets(made)
    if key := made.key():
        engines = artifact / "engines"
        found.append(Target("engine", engines / f"{key}.engine", lambda: engine(artifact, key)))
        found.append(Target("record of the engine", engines / f"{key}.json", lambda: engine(artifact, key)))
    return found


def bundle_targets(made: Materials) -> list[Target]:
    """Makes a bundle of the artefact; returns one target for each of its files, all read by the check of the whole bundle."""
    folder = made.root / "bundle"
    if not folder.exists():
        shutil.copytree(made.artifact, folder / ARTIFACT)
        (folder / "labels.txt").write_text(
            "\n".join(load_artifact(folder / ARTIFACT).manifest.labels), encoding="utf-8"
        )
        write_record(folder, "onnxruntime")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        Target(f"bundle: {path.relative_to(folder).as_posix()}", path, lambda: checked_bundle(folder)) for path in files
    ]


def measure(made: Materials, count: int, seed: int, seconds: float = float("inf")) -> list[FlipResult]:
    """Changes every kind of file ``count`` times.

    Args:
        made: files to change; each is restored after every change.
        count: changes per kind.
        seed: seed of the changes.
        seconds: time for all kinds; each gets an equal part of the remaining time. Large files are slowest and come last.
    """
    results = {}
    every = targets(made)
    end = time.monotonic() + seconds
    for number, target in enumerate(sorted(every, key=lambda target: target.file.stat().st_size)):
        until = time.monotonic() + (end - time.monotonic()) / (len(every) - number)
        results[target.kind] = flip(target, count, seed, until)
    return [results[target.kind] for target in every]


def flip(target: Target, count: int, seed: int, until: float = float("inf")) -> FlipResult:
    """Changes one file ``count`` times; every change starts from the intact content."""
    intact = target.file.read_bytes()
    changes = [draw(intact, random.Random(f"{seed}/{target.kind}/{number}")) for number in range(count)]
    expected: list[str] = []

    def attack(change: Change) -> Kind:
        if not expected:
            expected.append(text_of(target.use()))
        try:
            write_change(target.file, intact, change)
            found = text_of(target.use())
        finally:
            restore(target.file, intact, change)
        if found == expected[0]:
            return "harmless"
        return "edited" if target.by_hand else "accepted"

    try:
        outcomes = list(run_contained([lambda c=c: attack(c) for c in changes], DEFAULT, until))  # type: ignore[misc]
    finally:
        if target.file.read_bytes() != intact:  # the process ended between change and restoration
            target.file.write_bytes(intact)
    counts: Counter[str] = Counter(outcome.kind for outcome in outcomes)
    bad = [o for o in outcomes if o.kind not in ("refused", "harmless", "edited", "ok")]
    examples = [f"{o.kind}: {changes[o.number].describe()} {o.detail}".strip() for o in bad]
    return FlipResult(target.kind, len(outcomes), dict(counts), tuple(examples[:5]))


def write_change(file: Path, intact: bytes, change: Change) -> None:
    """Writes a changed file; writes only the changed bytes if the length stays the same."""
    if len(change.new) == change.size:
        with file.open("r+b") as opened:
            opened.seek(change.place)
            opened.write(change.new)
    else:
        file.write_bytes(change.apply(intact))


def restore(file: Path, intact: bytes, change: Change) -> None:
    """Undoes :func:`write_change`."""
    original = intact[change.place : change.place + change.size]
    if len(change.new) == change.size:
        write_change(file, intact, Change("restore", change.place, change.size, original))
    else:
        file.write_bytes(intact)


def text_of(value: object) -> str:
    """Returns a result as text; equal results give equal texts."""
    return json.dumps(value, sort_keys=True, default=repr)


def predictions(made: Materials, artifact: Path) -> object:
    """Returns exact digests of an artefact's outputs for two images, and its predictions."""
    from gft_edge.runtime.classifier import Classifier

    classifier = Classifier.open(artifact, "onnxruntime", threads=1, huge_pages=False)
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    outputs = classifier.session.compute(classifier.prepare(images))
    decoded = classifier.decode(outputs)
    return [_digests(outputs), [(one.label, one.probability) for one in decoded]]


def golden(artifact: Path) -> object:
    """Returns digests of the golden arrays."""
    from gft_edge.runtime.golden import read_golden

    return _digests(read_golden(load_artifact(artifact)))


def manifest(made: Materials, artifact: Path) -> object:
    """Returns a manifest's content and the artefact's predictions."""
    loaded = load_artifact(artifact)
    for name in loaded.manifest.files:
        loaded.file(name)
    return [loaded.manifest.to_json(), predictions(made, artifact)]


def registered(artifact: Path, name: str) -> object:
    """Returns the hash of a file that the manifest lists."""
    return hashlib.sha256(load_artifact(artifact).file(name).read_bytes()).hexdigest()


def engine(artifact: Path, key: str) -> object:
    """Returns the engine's hash and its record after all checks that precede deserialisation."""
    from gft_edge.runtime.backends.engine_files import EngineHost, check_engine

    version = key.removeprefix("rtx").partition("_")[0]
    path, record = check_engine(load_artifact(artifact), key, EngineHost("tensorrt_rtx", version, "8.6"))
    return [hashlib.sha256(path.read_bytes()).hexdigest(), record]


def checkpoint(folder: Path) -> object:
    """Returns a checkpoint's information and digests of its weights."""
    from gft_edge.checkpoint import load_checkpoint

    loaded = load_checkpoint(folder)
    return [loaded.info.to_json(), loaded.sha256, _tensors(loaded.model.state_dict())]


def state(made: Materials) -> object:
    """Returns the state from which a training resumes."""
    from gft_edge.config.recipe import load_recipe
    from gft_edge.model.build import build_model
    from gft_edge.train.optim import make_optimizer
    from gft_edge.train.state import TrainingState, restore_state

    recipe = load_recipe(made.recipe)
    config = recipe.model.resolve(4)
    model = build_model(config)
    training = TrainingState(
        model,
        make_optimizer(model, config, recipe.train),
        torch.amp.GradScaler("cpu", enabled=False),
        None,
    )
    progress = restore_state(made.trained, recipe, training, torch.device("cpu"))
    return [vars(progress), _tensors(model.state_dict()), _tensors(training.optimizer.state_dict())]


def card(file: Path) -> object:
    """Returns the content of a calibration card."""
    from gft_edge.calibration.images import CalibrationSet
    from gft_edge.files import read_json

    return CalibrationSet.from_json(read_json(file, "calibration card"), str(file)).to_json()


def tensorrt_cache(artifact: Path, cache: Path) -> object:
    """Returns the scales of a cache that belongs to this artefact's graph, and the cache's record."""
    from gft_edge.calibration.cache import read_cache, sidecar
    from gft_edge.files import read_json
    from gft_edge.manifest import MODEL

    graph = load_artifact(artifact).manifest.files[MODEL].sha256
    return [dict(read_cache(cache, graph_sha256=graph).scales), read_json(sidecar(cache), "record")]


def checked_bundle(folder: Path) -> object:
    """Returns the record of a bundle and the manifest of its artefact, after the check of every file."""
    bundle = load_bundle(folder)
    return [bundle.artifact_sha256, sorted(bundle.files), bundle.check().manifest.to_json()]


def _digests(arrays: Any) -> dict[str, str]:
    return {
        name: f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
        for name, value in arrays.items()
    }


def _tensors(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return hashlib.sha256(state.contiguous().numpy().tobytes()).hexdigest() + str(tuple(state.shape))
    if isinstance(state, dict):
        return {str(key): _tensors(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [_tensors(value) for value in state]
    return repr(state)
