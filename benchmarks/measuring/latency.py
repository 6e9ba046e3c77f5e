"""Latency and throughput of artefacts, measured interleaved in one process."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.measuring.bench_files import SCHEMA
from gft_edge.benchmarks.measuring.fresh_process import fresh_processes
from gft_edge.benchmarks.measuring.protocol import ONE_ROUND, BenchProtocol, Latency, Warmup, conditions, ratio_interval
from gft_edge.benchmarks.measuring.recorded_accuracy import Accuracy, recorded_accuracy
from gft_edge.benchmarks.power.meter import PowerMeter, measure_energy, open_meter
from gft_edge.benchmarks.roofline import implausible, roofline
from gft_edge.budget import patches_per_block
from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import Device, PeakPrecision
from gft_edge.hardware.jetson import locked_mhz, watch_board
from gft_edge.hardware.this_device import module_here
from gft_edge.manifest import MODEL, Artifact
from gft_edge.progress import Track, silent
from gft_edge.runtime.backends import BACKENDS
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.sessions import open_session

Candidates = Mapping[str, Callable[[], object]]
AccuracyOf = Callable[[Artifact, str], Accuracy]
"""Of an artefact on a backend."""

PARTS = ("stages", "throughput", "process")
"""What is measured besides the latency of inference; each can be left out."""

STAGE_ROUNDS = 10
CPU_BACKENDS = tuple(backend.name for backend in BACKENDS if not backend.on_gpu)
CONCURRENT = tuple(backend.name for backend in BACKENDS if backend.concurrent)
"""Backends whose sessions may be called by several threads; the others have one request in flight."""


def measure(candidates: Candidates, protocol: BenchProtocol, track: Track = silent) -> dict[str, Latency]:
    """Times callables against each other.

    Args:
        candidates: by name; each call is one request.
        protocol: how often, in which order.
        track: progress display.

    Raises:
        DataError: the clock went backwards, or is too coarse for what is measured.
    """
    warmups = {name: warm_up(run, protocol) for name, run in candidates.items()}
    rounds: dict[str, list[list[float]]] = {name: [] for name in candidates}
    names = list(candidates)
    for number in track(range(protocol.rounds), "bench", protocol.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            run = candidates[name]
            rounds[name].append([_milliseconds(run) for _ in range(protocol.runs_per_round)])
    return {name: Latency.of(samples, warmups[name]) for name, samples in rounds.items()}


def warm_up(run: Callable[[], object], protocol: BenchProtocol) -> Warmup:
    """Runs until the medians of two successive windows agree, the least time has passed, or the cap is reached."""
    started = time.perf_counter()
    window = protocol.warmup_seconds / 2
    if not window:
        run()
        return Warmup(time.perf_counter() - started, 1, "none")
    medians: list[float] = []
    requests = 0
    while True:
        began = time.perf_counter()
        samples = [_milliseconds(run)]
        while time.perf_counter() - began < window:
            samples.append(_milliseconds(run))
        requests += len(samples)
        medians.append(float(np.median(samples)))
        seconds = time.perf_counter() - started
        if len(medians) > 1 and seconds >= protocol.warmup_seconds:
            if abs(medians[-1] - medians[-2]) <= protocol.warmup_tolerance * medians[-2]:
                return Warmup(seconds, requests, "stable")
            if seconds >= protocol.warmup_cap_seconds:
                return Warmup(seconds, requests, "cap")


def _milliseconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def measure_throughput(candidates: Candidates, protocol: BenchProtocol) -> dict[str, dict[str, Any]]:
    """Images per second with several requests in flight, in interleaved windows.

    Args:
        candidates: by name; each call is one request of ``protocol.batch`` images and may be made by several threads.
        protocol: how many at a time, how long.
    """
    windows: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
    names = list(candidates)
    with ThreadPoolExecutor(protocol.in_flight) as pool:
        for number in range(protocol.throughput_windows):
            for name in names if number % 2 == 0 else reversed(names):
                windows[name].append(_window(candidates[name], protocol, pool))
    return {
        name: {
            "in_flight": protocol.in_flight,
            "images_per_s": float(np.median([w["images_per_s"] for w in found])),
            "windows": found,
        }
        for name, found in windows.items()
    }


def _window(run: Callable[[], object], protocol: BenchProtocol, pool: ThreadPoolExecutor) -> dict[str, float]:
    """One window: each of the threads makes requests until the time is over; all that were made are counted."""
    started = time.perf_counter()
    end = started + protocol.throughput_seconds

    def requests() -> int:
        count = 0
        while not count or time.perf_counter() < end:
            run()
            count += 1
        return count

    done = sum(f.result() for f in [pool.submit(requests) for _ in range(protocol.in_flight)])
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "requests": done, "images_per_s": done * protocol.batch / seconds}


def require_batches(artifacts: Sequence[Artifact], batches: Sequence[int]) -> None:
    """Refuses a batch that an artefact was not exported for.

    Raises:
        ConfigError: naming artefact, batch and the range.
    """
    for artifact in artifacts:
        low, usual, high = artifact.manifest.batch
        for batch in batches:
            if not low <= batch <= high:
                takes = f"{low} to {high} images" if low < high else f"exactly {low} image{'s' * (low > 1)}"
                wider = f"{min(low, batch)}:{usual}:{max(high, batch)}"
                raise ConfigError(
                    f"bench: {artifact.address} was exported for requests of {takes}, not {batch}; export it with "
                    f"--batch {wider}, or give another --batch here"
                )


def bench_artifacts(
    artifacts: Sequence[Artifact],
    protocol: BenchProtocol,
    backend: str | Sequence[str] = "onnxruntime",
    track: Track = silent,
    batches: Sequence[int] = (),
    threads: Sequence[int] = (),
    skip: Collection[str] = PARTS,
    power: str = "none",
    target: Device | None = None,
    accuracy: AccuracyOf = recorded_accuracy,
) -> dict[str, Any]:
    """Measures artefacts against each other, on each backend, at each batch and number of threads.

    What is run at one batch and number of threads is interleaved, and the first artefact on the first backend is what the
    others are compared with.

    Args:
        artifacts: of different folder names.
        protocol: how; ``batch`` and ``threads`` count where no list is given.
        backend: one or several.
        track: progress display.
        batches, threads: points of a sweep.
        skip: which of ``PARTS`` to leave out; by default only the latency of inference is measured.
        power: source of :func:`gft_edge.benchmarks.power.meter.open_meter`; each row tells its energy or why it has none.
        target: device to hold the figures of GPU backends against; on a Jetson the board's own by default.
        accuracy: for the energy per correct image; by default what verify recorded. Asked for only where there is a power source.

    Returns:
        plain JSON values, the content of a bench file: ``schema``, ``machine`` and ``results``, one row per artefact,
        backend, batch and number of threads, each with its protocol, figures and raw samples.

    Raises:
        ConfigError: two artefacts of the same folder name, an unknown backend or part.
    """
    if len({a.name for a in artifacts}) != len(artifacts):
        raise ConfigError("bench: artefacts must have different folder names, which label the results")
    require_batches(artifacts, batches or [protocol.batch])
    backends = [backend] if isinstance(backend, str) else list(backend)
    if target and set(backends) <= set(CPU_BACKENDS):
        raise ConfigError(
            f"bench: {target.title} bounds no figure of {', '.join(backends)} on this processor; leave --target out"
        )
    where = conditions()
    results = []
    with open_meter(power) as meter, watch_board() as watched:
        for count in dict.fromkeys(threads or [protocol.threads]):
            for batch in dict.fromkeys(batches or [protocol.batch]):
                point = replace(protocol, batch=batch, threads=count)
                results += _bench_point(
                    artifacts, point, list(dict.fromkeys(backends)), track, skip, meter, target, accuracy
                )
    after = conditions()
    held = [f"{row['name']}: {text}" for row in results for text in row["energy"]["throttled"]]
    return {
        "schema": SCHEMA,
        "source": "gft-edge bench",
        "machine": {
            **where,
            "clocks_after": after["clocks"],
            "load_average_after": after["load_average"],
            **({"jetson": watched} if watched else {}),
        },
        "results": results,
        "warnings": list(dict.fromkeys([*watched.get("throttled", []), *held])),
    }


def _bench_point(
    artifacts: Sequence[Artifact],
    protocol: BenchProtocol,
    backends: Sequence[str],
    track: Track,
    skip: Collection[str],
    meter: PowerMeter,
    target: Device | None,
    accuracy: AccuracyOf,
) -> list[dict[str, Any]]:
    """Rows of one batch and number of threads."""
    pixels = np.random.default_rng(protocol.seed)
    candidates: dict[str, Callable[[], object]] = {}
    classifiers: dict[str, Classifier] = {}
    for backend in backends:
        for artifact in artifacts:
            session = open_session(artifact, backend, protocol.threads, huge_pages=True)
            tensor = artifact.manifest.inputs[0]
            shape = (protocol.batch, *(int(size) for size in tensor.shape[1:]))
            if tensor.dtype == "uint8":
                images: npt.NDArray[Any] = pixels.integers(0, 256, shape, dtype=np.uint8)
            else:
                images = pixels.standard_normal(shape, dtype=np.float32)
            name = f"{artifact.name} {backend}"
            candidates[name] = functools.partial(session, images)
            classifiers[name] = Classifier(artifact, session)
    figures = measure(candidates, protocol, track)
    at_a_time = protocol.in_flight if set(backends) <= set(CONCURRENT) else 1
    throughput = {} if "throughput" in skip else measure_throughput(candidates, replace(protocol, in_flight=at_a_time))
    stages = {} if "stages" in skip else measure_stages(classifiers, protocol)
    known = {name: accuracy(c.artifact, c.session.backend) for name, c in classifiers.items()} if meter else {}
    energy = measure_energies(candidates, protocol, meter, known)
    rows = []
    first = next(iter(figures))
    for name, classifier in classifiers.items():
        artifact, session = classifier.artifact, classifier.session
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
            "baseline": classifiers[first].artifact.name,
            "speedup": speedup,
            "speedup_interval": [low, high],
            "energy": energy[name],
        }
        if protocol.rounds == 1:  # nothing to take a spread of
            row |= {"variation": None, "verdict": ONE_ROUND, "speedup_interval": None}
        if session.backend not in CPU_BACKENDS and (device := target or _module()):
            row |= bound_of(artifact, device, protocol.batch, figures[name].p50_ms)
        if name in throughput:
            row["throughput"] = throughput[name]
        if name in stages:
            row["stages"] = stages[name]
        if "process" not in skip:
            row["process"] = fresh_processes(artifact.address, session.backend, protocol)
        rows.append(row)
    return rows


def _module() -> Device | None:
    here = module_here()
    return here.profile if here else None


def identity(artifact: Artifact) -> dict[str, Any]:
    """What tells which graph was measured."""
    manifest = artifact.manifest
    return {
        "name": artifact.name,
        "precision": manifest.precision,
        "budget": manifest.budget.id,
        "mean_tokens": mean_tokens(artifact),
        "model_sha256": manifest.files[MODEL].sha256,
    }


def mean_tokens(artifact: Artifact) -> float | None:
    """Tokens a block works on, class token included, averaged over the blocks that the logits need; None for a baseline."""
    model, budget = artifact.manifest.model, artifact.manifest.budget
    if model.is_baseline:
        return None
    if model.variant == "published":  # its stages choose patches but the logits do not read them
        return float(model.num_patches + model.num_prefix_tokens)
    patches = patches_per_block(model.stages, budget.keep, model.num_patches, model.depth)
    return sum(count + model.num_prefix_tokens for count in patches) / model.depth


def measure_energies(
    candidates: Candidates, protocol: BenchProtocol, meter: PowerMeter, accuracies: Mapping[str, Accuracy]
) -> dict[str, dict[str, Any]]:
    """Energy of each candidate's requests back to back, or why there is none.

    A phase of its own: power is sampled every 50 to 100 ms, far longer than a round of the latency.
    """
    idle = meter.idle() if meter else None
    locked = locked_mhz()
    found = {}
    for name, run in candidates.items():
        known = accuracies.get(name, Accuracy(None))
        energy = measure_energy(
            run, meter, protocol.batch, protocol.energy_seconds, idle=idle, accuracy=known.top1, locked_mhz=locked
        )
        found[name] = {**energy.to_json(), "accuracy": asdict(known)}
    return found


def bound_of(artifact: Artifact, device: Device, batch: int, measured_ms: float) -> dict[str, Any]:
    """Roofline of an artefact on a device, and a sentence if a measurement contradicts it.

    An FP32 graph is held against the device's FP16: engines may be built so, and a bound must hold for them too.
    """
    precision: PeakPrecision = "int8" if artifact.manifest.precision == "int8" else "fp16"
    bound = roofline(artifact.manifest, device, batch, precision)
    return {"roofline": bound.to_json(), "implausible": implausible(measured_ms, bound)}


def measure_stages(classifiers: Mapping[str, Classifier], protocol: BenchProtocol) -> dict[str, dict[str, Any]]:
    """A request taken apart: preprocessing, inference, postprocessing, and all of it end to end.

    Transfers to a device are no stage of a CPU backend and are absent, not zero.
    """
    shape = (protocol.batch, *protocol.source_size, 3)
    pictures = list(np.random.default_rng(protocol.seed).integers(0, 256, shape, dtype=np.uint8))
    short = replace(
        protocol, rounds=min(protocol.rounds, STAGE_ROUNDS), warmup_seconds=min(protocol.warmup_seconds, 0.1)
    )
    calls: dict[str, Callable[[], object]] = {}
    for name, classifier in classifiers.items():
        inputs = classifier.prepare(pictures)
        outputs = classifier.session(inputs)
        calls |= {
            f"{name}/preprocessing": functools.partial(classifier.prepare, pictures),
            f"{name}/inference": functools.partial(classifier.session, inputs),
            f"{name}/postprocessing": functools.partial(classifier.decode, outputs),
            f"{name}/end_to_end": functools.partial(classifier.predict, pictures),
        }
    stages: dict[str, dict[str, Any]] = {name: {} for name in classifiers}
    for call, latency in measure(calls, short).items():
        name, _, stage = call.rpartition("/")
        keys = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "variation", "rounds_ms")
        stages[name][stage] = {key: getattr(latency, key) for key in keys}
    return stages
