"""Bench of artefacts: everything that ``gft-edge bench`` measures on this machine."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.measuring.accuracy import AccuracyFigure, AccuracyOf, recorded_accuracy
from gft_edge.benchmarks.measuring.artifact_facts import bound_of, identity
from gft_edge.benchmarks.measuring.bench_files import SCHEMA
from gft_edge.benchmarks.measuring.fresh_process import fresh_processes
from gft_edge.benchmarks.measuring.latency import Candidates, measure, measure_throughput
from gft_edge.benchmarks.measuring.protocol import ONE_ROUND, BenchProtocol, Latency, conditions, ratio_interval
from gft_edge.benchmarks.power.meter import Load, PowerMeter, measure_energy, open_meter, require_source
from gft_edge.errors import ConfigError
from gft_edge.hardware.clocks import locked_clocks
from gft_edge.hardware.devices import Device
from gft_edge.hardware.jetson import locked_mhz, watch_board
from gft_edge.hardware.this_device import module_here
from gft_edge.manifest import Artifact
from gft_edge.progress import Track, silent
from gft_edge.runtime.backends import DEFAULT, find_backend
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.sessions import open_session

Part = Literal["stages", "throughput", "process"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Measurements besides the latency of inference and the energy; each can be left out."""

STAGE_ROUNDS = 10


@dataclass(frozen=True)
class BenchOptions:
    """Options of :func:`bench`.

    Args:
        artifacts: at least one, of different folder names.
        protocol: how to measure; the sweep below replaces its ``batch`` and ``threads``.
        backends: every artefact runs on each.
        batches, threads: points of the sweep.
        skip: parts to leave out.
        power: source of :func:`gft_edge.benchmarks.power.meter.open_meter`; without one each result has the reason.
        target: device whose roofline the figures of GPU backends are compared with; on a Jetson the board itself by
            default.
        accuracy: for the energy per correct image; called only if there is a power source.
        lock_clocks: hold a Jetson's clocks at their maximum meanwhile.

    Raises:
        ConfigError: no artefact, two of the same folder name, a batch that an artefact does not accept, an unknown
            backend, part or power source, a target with CPU backends only, or values that the protocol refuses.
    """

    artifacts: tuple[Artifact, ...]
    protocol: BenchProtocol = field(default_factory=BenchProtocol)
    backends: tuple[str, ...] = (DEFAULT,)
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    skip: tuple[Part, ...] = ()
    power: str = "auto"
    target: Device | None = None
    accuracy: AccuracyOf = recorded_accuracy
    lock_clocks: bool = False

    def __post_init__(self) -> None:
        if not self.artifacts:
            raise ConfigError("no artefact is given")
        if len({artifact.name for artifact in self.artifacts}) != len(self.artifacts):
            raise ConfigError("artefacts must have different folder names, which label the results")
        if unknown := [part for part in self.skip if part not in PARTS]:
            raise ConfigError(f"unknown part {unknown[0]!r} to skip; there are: {', '.join(PARTS)}")
        require_source(self.power)
        for backend in self.backends:
            find_backend(backend)
        self.points()
        for artifact in self.artifacts:
            _require_batches(artifact, self.batches)
        if self.target and not any(find_backend(backend)[0].on_gpu for backend in self.backends):
            raise ConfigError(
                f"{self.target.title} bounds no figure of {', '.join(self.backends)} on this processor; "
                "leave --target out"
            )

    def points(self) -> list[BenchProtocol]:
        """Returns the protocol of every point of the sweep, each once."""
        return [
            replace(self.protocol, batch=batch, threads=threads)
            for threads in dict.fromkeys(self.threads)
            for batch in dict.fromkeys(self.batches)
        ]


def _require_batches(artifact: Artifact, batches: tuple[int, ...]) -> None:
    low, usual, high = artifact.manifest.batch
    for batch in batches:
        if not low <= batch <= high:
            takes = f"{low} to {high} images" if low < high else f"exactly {low} image{'s' * (low > 1)}"
            wider = f"{min(low, batch)}:{usual}:{max(high, batch)}"
            raise ConfigError(
                f"{artifact.address} was exported for requests of {takes}, not {batch}; export it with "
                f"--batch {wider}, or give another --batch here"
            )


def bench(options: BenchOptions, track: Track = silent) -> dict[str, Any]:
    """Measures artefacts against each other, on each backend, at each batch and number of threads.

    Requests at one batch and number of threads are interleaved; the first artefact on the first backend is their baseline.

    Returns:
        plain JSON values, the content of a bench file: ``schema``, ``machine`` and ``results``, one row per artefact,
        backend, batch and number of threads, each with its protocol, figures and raw samples.

    Raises:
        ConfigError: a power source that does not work here, or clocks that cannot be locked.
        ArtifactError: a graph or engine was changed or cannot be loaded.
    """
    with locked_clocks() if options.lock_clocks else contextlib.nullcontext():
        before = conditions()
        results = []
        with open_meter(options.power) as meter, watch_board() as watched:
            for protocol in options.points():
                results += _Point(options, protocol, meter, track).rows()
        after = conditions()
    held = [f"{row['name']}: {text}" for row in results for text in row["energy"]["throttled"]]
    held += [
        f"{row['name']}: {row['backend']} ignores {', '.join(row['options']['ignored_options'])}"
        for row in results
        if row["options"].get("ignored_options")
    ]
    return {
        "schema": SCHEMA,
        "source": "gft-edge bench",
        "machine": {
            **before,
            "clocks_after": after["clocks"],
            "load_average_after": after["load_average"],
            **({"jetson": watched} if watched else {}),
            "clocks_locked": options.lock_clocks,
        },
        "results": results,
        "warnings": list(dict.fromkeys([*watched.get("throttled", []), *held])),
    }


class _Point:
    """One batch and number of threads of the sweep: its sessions, and their requests by candidate's name."""

    def __init__(self, options: BenchOptions, protocol: BenchProtocol, meter: PowerMeter, track: Track) -> None:
        self.options, self.protocol, self.meter, self.track = options, protocol, meter, track
        self.classifiers: dict[str, Classifier] = {}
        self.requests: dict[str, Callable[[], object]] = {}
        pixels = np.random.default_rng(protocol.seed)
        for backend in dict.fromkeys(options.backends):
            for artifact in options.artifacts:
                session = open_session(artifact, backend, protocol.threads, huge_pages=True)
                name = f"{artifact.name} {backend}"
                self.classifiers[name] = Classifier(artifact, session)
                self.requests[name] = functools.partial(
                    session.compute, random_images(artifact, protocol.batch, pixels)
                )

    def rows(self) -> list[dict[str, Any]]:
        """Measures, and returns one result per candidate."""
        figures = measure(self.requests, self.protocol, self.track)
        throughput = {} if "throughput" in self.options.skip else self._throughput()
        stages = {} if "stages" in self.options.skip else measure_stages(self.classifiers, self.protocol)
        transfers = {} if "stages" in self.options.skip else self._transfers()
        energy = self._energies()
        rows = []
        for name in self.classifiers:
            row = self._row(name, figures) | {"energy": energy[name]}
            if name in throughput:
                row["throughput"] = throughput[name]
            if name in stages:
                row["stages"] = stages[name]
            if name in transfers:
                row["transfers"] = transfers[name]
            if "process" not in self.options.skip:
                classifier = self.classifiers[name]
                address, backend = classifier.artifact.address, classifier.session.backend
                row["process"] = fresh_processes(address, backend, self.protocol)
            rows.append(row)
        return rows

    def _throughput(self) -> dict[str, dict[str, Any]]:
        concurrent = all(find_backend(backend)[0].concurrent for backend in self.options.backends)
        in_flight = self.protocol.in_flight if concurrent else 1
        return measure_throughput(self.requests, replace(self.protocol, in_flight=in_flight))

    def _transfers(self) -> dict[str, dict[str, Any]]:
        """Measures the copies to and from a GPU apart from the computation, where the session tells them."""
        pixels = np.random.default_rng(self.protocol.seed)
        found = {}
        for name, classifier in self.classifiers.items():
            images = random_images(classifier.artifact, self.protocol.batch, pixels)
            told: list[dict[str, float]] = []
            while len(told) < STAGE_ROUNDS and (sample := classifier.session.times(images)) is not None:
                told.append(sample)
            if told:
                found[name] = {f"{part}_ms": float(np.median([sample[part] for sample in told])) for part in told[0]}
        return found

    def _energies(self) -> dict[str, dict[str, Any]]:
        accuracies = {
            name: self.options.accuracy(classifier.artifact, classifier.session.backend)
            for name, classifier in (self.classifiers if self.meter else {}).items()
        }
        return measure_energies(self.requests, self.protocol, self.meter, accuracies)

    def _row(self, name: str, figures: Mapping[str, Latency]) -> dict[str, Any]:
        protocol, first = self.protocol, next(iter(figures))
        artifact, session = self.classifiers[name].artifact, self.classifiers[name].session
        speedup, low, high = ratio_interval(figures[first], figures[name], protocol.seed)
        row = {
            **identity(artifact),
            "backend": session.backend,
            "options": dict(session.options),
            "batch": protocol.batch,
            "threads": protocol.threads,
            "protocol": asdict(protocol),
            **asdict(figures[name]),
            "verdict": figures[name].verdict,
            "baseline": self.classifiers[first].artifact.name,
            "speedup": speedup,
            "speedup_interval": [low, high],
        }
        if protocol.rounds == 1:  # one round has no spread
            row |= {"variation": None, "verdict": ONE_ROUND, "speedup_interval": None}
        device = self.options.target or _board()
        if device and find_backend(session.backend)[0].on_gpu:
            row |= bound_of(artifact, device, protocol.batch, figures[name].p50_ms)
        return row


def _board() -> Device | None:
    here = module_here()
    return here.profile if here else None


def random_images(artifact: Artifact, batch: int, generator: np.random.Generator) -> npt.NDArray[Any]:
    """Returns random input of an artefact, of its shape and type."""
    tensor = artifact.manifest.inputs[0]
    shape = (batch, *(int(size) for size in tensor.shape[1:]))
    if artifact.manifest.input_kind != "float":
        return generator.integers(0, 256, shape, dtype=np.uint8).astype(tensor.dtype, copy=False)
    return generator.standard_normal(shape, dtype=np.float32)


def measure_energies(
    candidates: Candidates, protocol: BenchProtocol, meter: PowerMeter, accuracies: Mapping[str, AccuracyFigure]
) -> dict[str, dict[str, Any]]:
    """Measures the energy of each candidate's requests back to back; without power samples gives the reason.

    Needs its own phase: power is sampled every 50 to 100 ms, far longer than a round of the latency.
    """
    idle = meter.idle() if meter else None
    locked = locked_mhz()
    found = {}
    for name, run in candidates.items():
        known = accuracies.get(name, AccuracyFigure(None))
        load = Load(protocol.batch, protocol.energy_seconds, accuracy=known.top1, locked_mhz=locked)
        energy = measure_energy(run, meter, load, idle)
        found[name] = {**energy.to_json(), "accuracy": asdict(known)}
    return found


def measure_stages(classifiers: Mapping[str, Classifier], protocol: BenchProtocol) -> dict[str, dict[str, Any]]:
    """Measures the stages of a request: preprocessing, inference, postprocessing, and all of it end to end.

    Transfers to a device are not a stage of a CPU backend: they are absent, not zero.
    """
    shape = (protocol.batch, *protocol.source_size, 3)
    pictures = list(np.random.default_rng(protocol.seed).integers(0, 256, shape, dtype=np.uint8))
    short = replace(
        protocol, rounds=min(protocol.rounds, STAGE_ROUNDS), warmup_seconds=min(protocol.warmup_seconds, 0.1)
    )
    calls: dict[str, Callable[[], object]] = {}
    for name, classifier in classifiers.items():
        inputs = classifier.prepare(pictures)
        outputs = classifier.session.compute(inputs)
        calls |= {
            f"{name}/preprocessing": functools.partial(classifier.prepare, pictures),
            f"{name}/inference": functools.partial(classifier.session.compute, inputs),
            f"{name}/postprocessing": functools.partial(classifier.decode, outputs),
            f"{name}/end_to_end": functools.partial(classifier.predict, pictures),
        }
    stages: dict[str, dict[str, Any]] = {name: {} for name in classifiers}
    for call, latency in measure(calls, short).items():
        name, _, stage = call.rpartition("/")
        keys = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "variation", "rounds_ms")
        stages[name][stage] = {key: getattr(latency, key) for key in keys}
    return stages
