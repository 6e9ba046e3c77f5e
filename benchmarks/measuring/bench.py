"""Bench of artefacts and of ONNX files of other programs: everything that ``gft-edge bench`` measures on this machine."""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from gft_edge.benchmarks.measuring.accuracy import AccuracyFigure, AccuracyOf, recorded_accuracy
from gft_edge.benchmarks.measuring.bench_files import SCHEMA
from gft_edge.benchmarks.measuring.fresh_process import fresh_processes
from gft_edge.benchmarks.measuring.latency import Candidates, measure, measure_throughput
from gft_edge.benchmarks.measuring.protocol import ONE_ROUND, BenchProtocol, Latency, conditions, ratio_interval
from gft_edge.benchmarks.measuring.subjects import Subject, subjects_of
from gft_edge.benchmarks.power.meter import Load, PowerMeter, measure_energy, open_meter, require_source
from gft_edge.errors import ConfigError
from gft_edge.export.foreign.opening import Model
from gft_edge.hardware.clocks import locked_clocks
from gft_edge.hardware.devices import Device
from gft_edge.hardware.jetson import locked_mhz, watch_board
from gft_edge.hardware.this_device import module_here
from gft_edge.manifest import Artifact
from gft_edge.progress import Track, silent
from gft_edge.runtime.backends.sessions import ONNXRUNTIME, Session
from gft_edge.runtime.backends.table import DEFAULT, find_backend
from gft_edge.runtime.classifier import Classifier

Part = Literal["stages", "throughput", "process"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Measurements besides the latency of inference and the energy; each can be left out."""

STAGE_ROUNDS = 10
X86 = ("x86_64", "AMD64")
"""Names that Python gives to processors for which ONNX Runtime computes FP16 in FP32, with conversions around each product."""


@dataclass(frozen=True)
class BenchOptions:
    """Options of :func:`bench`.

    Args:
        artifacts: at least one, of different names; artefacts, or ONNX files of other programs.
        protocol: how to measure; the sweep below replaces its ``batch`` and ``threads``.
        backends: every artefact runs on each.
        batches, threads: points of the sweep.
        skip: parts to leave out.
        power: source of :func:`gft_edge.benchmarks.power.meter.open_meter`; without one each result has the reason.
        target: device whose roofline the figures of GPU backends are compared with; on a Jetson the board itself by
            default.
        accuracy: for the energy per correct image; the recorded one is read only if there is a power source.
        lock_clocks: hold a Jetson's clocks at their maximum meanwhile.

    Raises:
        ConfigError: no artefact, two of the same name, a batch that an artefact does not accept, an unknown
            backend, part or power source, a target with CPU backends only, or values that the protocol refuses.
    """

    artifacts: tuple[Model, ...]
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
        if len({subject.name for subject in self.subjects}) != len(self.artifacts):
            raise ConfigError("artefacts must have different folder names, which label the results")
        if unknown := [part for part in self.skip if part not in PARTS]:
            raise ConfigError(f"unknown part {unknown[0]!r} to skip; there are: {', '.join(PARTS)}")
        require_source(self.power)
        for backend in self.backends:
            find_backend(backend)
        self.points()
        for subject in self.subjects:
            _require_batches(subject, self.batches)
        if self.target and not any(find_backend(backend)[0].on_gpu for backend in self.backends):
            raise ConfigError(
                f"{self.target.title} bounds no figure of {', '.join(self.backends)} on this processor; "
                "leave --target out"
            )

    @functools.cached_property
    def subjects(self) -> tuple[Subject, ...]:
        """What is measured."""
        return subjects_of(self.artifacts)

    def points(self) -> list[BenchProtocol]:
        """Returns the protocol of every point of the sweep, each once."""
        return [
            replace(self.protocol, batch=batch, threads=threads)
            for threads in dict.fromkeys(self.threads)
            for batch in dict.fromkeys(self.batches)
        ]


def _require_batches(subject: Subject, batches: tuple[int, ...]) -> None:
    low, usual, high = subject.batch
    for batch in batches:
        if not low <= batch <= high:
            takes = f"{low} to {high} images" if low < high else f"exactly {low} image{'s' * (low > 1)}"
            wider = (
                f"--batch {min(low, batch)}:{usual}:{max(high, batch)}" if subject.form is None else "a dynamic batch"
            )
            raise ConfigError(
                f"{subject.address} was exported for requests of {takes}, not {batch}; export it with {wider}, or give "
                "another --batch here"
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
        "warnings": list(dict.fromkeys([*watched.get("throttled", []), *held, *_slow_types(options)])),
    }


def _slow_types(options: BenchOptions) -> list[str]:
    """Returns a warning if artefacts with FP16 parts ran on an x86 processor: their latency is that of conversions."""
    if ONNXRUNTIME not in options.backends or platform.machine() not in X86:
        return []
    names = [s.name for s in options.subjects if isinstance(s.model, Artifact) and s.model.manifest.rest == "fp16"]
    if not names:
        return []
    return [
        f"{', '.join(names)}: exported with --precision fp16, which ONNX Runtime computes in FP32 with conversions on this "
        "processor: slower than FP32, and no figure of a GPU; for a CPU export with --precision fp32"
    ]


class _Point:
    """One batch and number of threads of the sweep: its sessions, and their requests by candidate's name."""

    def __init__(self, options: BenchOptions, protocol: BenchProtocol, meter: PowerMeter, track: Track) -> None:
        self.options, self.protocol, self.meter, self.track = options, protocol, meter, track
        self.subjects: dict[str, Subject] = {}
        self.sessions: dict[str, Session] = {}
        self.requests: dict[str, Callable[[], object]] = {}
        pixels = np.random.default_rng(protocol.seed)
        for backend in dict.fromkeys(options.backends):
            for subject in options.subjects:
                session = subject.open(backend, protocol.threads)
                name = f"{subject.name} {backend}"
                self.subjects[name], self.sessions[name] = subject, session
                self.requests[name] = functools.partial(session.compute, subject.images(protocol.batch, pixels))

    def rows(self) -> list[dict[str, Any]]:
        """Measures, and returns one result per candidate."""
        figures = measure(self.requests, self.protocol, self.track)
        throughput = {} if "throughput" in self.options.skip else self._throughput()
        stages = {} if "stages" in self.options.skip else measure_stages(self._classifiers(), self.protocol)
        transfers = {} if "stages" in self.options.skip else self._transfers()
        energy = self._energies()
        rows = []
        for name, subject in self.subjects.items():
            row = self._row(name, figures) | {"energy": energy[name]}
            if name in throughput:
                row["throughput"] = throughput[name]
            if name in stages:
                row["stages"] = stages[name]
            if name in transfers:
                row["transfers"] = transfers[name]
            backend = self.sessions[name].backend
            if "process" not in self.options.skip and (subject.form is None or backend == ONNXRUNTIME):
                row["process"] = fresh_processes(subject.address, backend, self.protocol, subject.form)
            rows.append(row)
        return rows

    def _classifiers(self) -> dict[str, Classifier]:
        known = {name: subject.classifier for name, subject in self.subjects.items()}
        return {name: make(self.sessions[name]) for name, make in known.items() if make is not None}

    def _throughput(self) -> dict[str, dict[str, Any]]:
        concurrent = all(find_backend(backend)[0].concurrent for backend in self.options.backends)
        in_flight = self.protocol.in_flight if concurrent else 1
        return measure_throughput(self.requests, replace(self.protocol, in_flight=in_flight))

    def _transfers(self) -> dict[str, dict[str, Any]]:
        """Measures the copies to and from a GPU apart from the computation, where the session tells them."""
        pixels = np.random.default_rng(self.protocol.seed)
        found = {}
        for name, subject in self.subjects.items():
            images = subject.images(self.protocol.batch, pixels)
            told: list[dict[str, float]] = []
            while len(told) < STAGE_ROUNDS and (sample := self.sessions[name].times(images)) is not None:
                told.append(sample)
            if told:
                found[name] = {f"{part}_ms": float(np.median([sample[part] for sample in told])) for part in told[0]}
        return found

    def _energies(self) -> dict[str, dict[str, Any]]:
        asked = self.options.accuracy is not recorded_accuracy  # a recorded one serves the energy alone
        accuracies = {
            name: self.options.accuracy(subject.model, self.sessions[name].backend)
            for name, subject in (self.subjects if self.meter or asked else {}).items()
        }
        return measure_energies(self.requests, self.protocol, self.meter, accuracies)

    def _row(self, name: str, figures: Mapping[str, Latency]) -> dict[str, Any]:
        protocol, first = self.protocol, next(iter(figures))
        subject, session = self.subjects[name], self.sessions[name]
        speedup, low, high = ratio_interval(figures[first], figures[name], protocol.seed)
        row = {
            **subject.identity,
            "backend": session.backend,
            "options": dict(session.options),
            "batch": protocol.batch,
            "threads": protocol.threads,
            "protocol": asdict(protocol),
            **asdict(figures[name]),
            "verdict": figures[name].verdict,
            "baseline": self.subjects[first].name,
            "speedup": speedup,
            "speedup_interval": [low, high],
        }
        if protocol.rounds == 1:  # one round has no spread
            row |= {"variation": None, "verdict": ONE_ROUND, "speedup_interval": None}
        device = self.options.target or _board()
        if device and find_backend(session.backend)[0].on_gpu:
            row |= subject.bound(device, protocol.batch, figures[name].p50_ms)
        return row


def _board() -> Device | None:
    here = module_here()
    return here.profile if here else None


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
    if not classifiers:
        return {}
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
