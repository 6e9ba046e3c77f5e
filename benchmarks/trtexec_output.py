"""What trtexec prints and exports, of TensorRT 8.2 to 11, read back and checked."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gft_edge.benchmarks.protocol import Latency
from gft_edge.errors import ArtifactError, ConfigError

METRICS = ("Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency")
ROUND = 10
"""Queries per round of the raw samples; the default of trtexec's --avgRuns."""

_PREFIX = r"(?:^|\] )\[(?P<level>[IWE])\] "
_METRIC = re.compile(rf"{_PREFIX}(?P<name>{'|'.join(METRICS)}): (?P<figures>.*)$")
_FIGURE = re.compile(r"(min|max|mean|median|percentile\(([\d.]+)%\)) = ([\d.eE+-]+) ms")
_NUMBERS = {
    "throughput_qps": re.compile(r"\[I\] Throughput: ([\d.eE+-]+) qps"),
    "host_walltime_s": re.compile(r"\[I\] Total Host Walltime: ([\d.eE+-]+) s"),
    "gpu_time_s": re.compile(r"\[I\] Total GPU Compute Time: ([\d.eE+-]+) s"),
    "build_s": re.compile(r"\[I\] Engine built in ([\d.eE+-]+) sec"),
    "deserialize_s": re.compile(r"\[I\] Engine deserialized in ([\d.eE+-]+) sec"),
    "engine_mib": re.compile(r"(?:Created engine with|Loaded engine with|Loaded engine) size: ([\d.eE+-]+) MiB"),
    "queries": re.compile(r"Timing trace has (\d+) queries"),
    "warmup_queries": re.compile(r"Warmup completed (\d+) queries"),
    "warmup_ms": re.compile(r"Warmup completed \d+ queries over ([\d.eE+-]+) ms"),
}
_TEXTS = {
    "device": re.compile(r"\[I\] Selected Device: (.+)$"),
    "compute_capability": re.compile(r"\[I\] Compute Capability: ([\d.]+)"),
    "sms": re.compile(r"\[I\] SMs: (\d+)"),
}
_RUNNING = re.compile(r"&&&& RUNNING TensorRT\.trtexec \[TensorRT v(\d+)\](?: \[b\d+\])? # (.*)$")
_VERDICT = re.compile(r"&&&& (PASSED|FAILED) TensorRT\.trtexec")
_VERSION = re.compile(r"\[I\] TensorRT version: ([\d.]+)")
_VARIANCE = re.compile(r"coefficient of variance = ([\d.]+)%")


def parse_version(text: str) -> tuple[int, int]:
    """``"10.3.0"``, or the integer of trtexec's banner (``"8601"``, ``"100300"``), to (major, minor).

    Raises:
        ConfigError: neither.
    """
    if re.fullmatch(r"\d+(\.\d+){1,3}", text, re.ASCII):
        major, minor = (int(part) for part in text.split(".")[:2])
    elif re.fullmatch(r"\d{4}", text, re.ASCII):  # up to 8.6: 8601
        major, minor = int(text[0]), int(text[1])
    elif re.fullmatch(r"\d{6}", text, re.ASCII):  # from 10.0: 100300
        major, minor = int(text[:2]), int(text[2:4])
    else:
        raise ConfigError(f"TensorRT version {text!r}: expected a text like 10.3.0 or 8601")
    if not 8 <= major <= 11:
        raise ConfigError(f"TensorRT version {text!r}: generations 8, 10 and 11 are known")
    return major, minor


def timing_of(command: str, version: tuple[int, int] | None) -> dict[str, bool] | None:
    """Timing settings in force, from a command line and the defaults of the version; None for an unknown version."""
    if version is None:
        return None
    try:
        given = set(shlex.split(command))
    except ValueError:
        given = set(command.split())
    new = version[0] >= 11
    return {
        "cuda_graph": "--noCudaGraph" not in given if new else "--useCudaGraph" in given,
        "spin_wait": "--noSpinWait" not in given if new else "--useSpinWait" in given,
        "transfers": "--includeDataTransfers" in given if new else "--noDataTransfers" not in given,
    }


@dataclass(frozen=True)
class TrtexecLog:
    """What trtexec printed.

    Attributes:
        version: (major, minor) of TensorRT, None where the log does not tell.
        command: trtexec's command line, empty where the log does not tell.
        metrics: by name of ``METRICS``, figures in ms by ``"min"``, ``"max"``, ``"mean"``, ``"median"`` and ``"90"`` (percentile).
        numbers: ``throughput_qps``, ``host_walltime_s``, ``gpu_time_s``, ``build_s``, ``deserialize_s``, ``engine_mib``,
            ``queries``, ``warmup_queries``, ``warmup_ms``: those that are there.
        device: ``device``, ``compute_capability``, ``sms``: those that are there.
        variance: coefficient of variation of the GPU time as trtexec warned of it, as a share.
        warnings: its ``[W]`` lines that concern the measurement, and what this reader noticed.
        complete: whether it ends with trtexec's own verdict.
    """

    version: tuple[int, int] | None
    command: str
    metrics: Mapping[str, Mapping[str, float]]
    numbers: Mapping[str, float]
    device: Mapping[str, str]
    variance: float | None
    warnings: tuple[str, ...]
    complete: bool

    @property
    def timing(self) -> dict[str, bool] | None:
        """Timing settings in force."""
        return timing_of(self.command, self.version) if self.command else None


def parse_log(text: str, where: str = "trtexec log") -> TrtexecLog:
    """Reads trtexec's output, of TensorRT 8.2 to 11.

    Raises:
        ArtifactError: no output of trtexec, of a failed run, cut off before or in the performance summary, or figures that
            cannot be (negative or zero times).
    """
    metrics: dict[str, dict[str, float]] = {}
    numbers: dict[str, float] = {}
    device: dict[str, str] = {}
    version, command, verdict, variance = None, "", None, None
    warnings: list[str] = []
    lines = text.splitlines()
    summary = False
    for line in lines:
        summary = summary or "=== Performance summary ===" in line
        if match := _METRIC.search(line):
            metrics[match["name"]] = _figures(match["figures"])
        elif match := _RUNNING.search(line):
            version, command = version_or_none(match[1]), match[2].strip()
        elif match := _VERDICT.search(line):
            verdict = match[1]
        elif match := _VERSION.search(line):
            version = version_or_none(match[1]) or version
        for name, pattern in _NUMBERS.items():
            if match := pattern.search(line):
                numbers[name] = _number(match[1], where)
        for name, pattern in _TEXTS.items():
            if match := pattern.search(line):
                device[name] = match[1].strip()
        if match := _VARIANCE.search(line):
            variance = _number(match[1], where) / 100
        if (place := line.find("[W] * ")) >= 0:
            warnings.append(line[place + len("[W] * ") :].strip())
    if verdict == "FAILED":
        raise ArtifactError(f"{where}: the run failed: {first_error(text)}")
    if not summary and not metrics and verdict is None and not command:
        raise ArtifactError(f"{where}: this is no output of trtexec")
    _require_summary(metrics, numbers, where)
    if verdict is None:
        warnings.append("the log ends before trtexec's own verdict (PASSED)")
    return TrtexecLog(version, command, metrics, numbers, device, variance, tuple(warnings), verdict is not None)


def _figures(text: str) -> dict[str, float]:
    found = {}
    for name, percentile, value in _FIGURE.findall(text):
        try:
            found[f"{float(percentile):g}" if percentile else name] = float(value)
        except ValueError:
            continue
    return found


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArtifactError(f"{where}: {text!r} is no number; the log is damaged")
    return value


def version_or_none(text: str) -> tuple[int, int] | None:
    """The same, None for what is no known version."""
    try:
        return parse_version(text)
    except ConfigError:
        return None


def _require_summary(metrics: Mapping[str, Mapping[str, float]], numbers: Mapping[str, float], where: str) -> None:
    for name in ("Latency", "GPU Compute Time"):
        if not {"min", "max", "mean", "median"} <= set(metrics.get(name, {})):
            raise ArtifactError(
                f"{where}: cut off: its performance summary has no complete line {name!r}; run trtexec again"
            )
    for name, figures in metrics.items():
        if any(not math.isfinite(value) or value < 0 for value in figures.values()):
            raise ArtifactError(
                f"{where}: {name} has negative or impossible times: the clock went backwards; run trtexec again"
            )
    if not metrics["Latency"]["median"] > 0 or not metrics["GPU Compute Time"]["median"] > 0:
        raise ArtifactError(f"{where}: a run of zero length; give trtexec a longer --duration")
    if "throughput_qps" not in numbers:
        raise ArtifactError(f"{where}: cut off: its performance summary has no Throughput; run trtexec again")


def first_error(text: str) -> str:
    """trtexec's first error line."""
    errors = [line.partition("[E]")[2].strip() for line in text.splitlines() if "[E]" in line]
    return errors[0] if errors else "it gives no reason"


def percentile(samples: Sequence[float], percent: float) -> float:
    """trtexec's percentile: the element at max(n - 1 - int((1 - p / 100) n), 0) of the sorted samples.

    In 32-bit floats like there (sampleReporting.cpp, findPercentile): of 100 queries p90 is the 90th, p99 the 100th.
    """
    ordered = sorted(samples)
    excluded = int((np.float32(1) - np.float32(percent) / np.float32(100)) * np.float32(len(ordered)))
    return ordered[max(len(ordered) - 1 - excluded, 0)]


TIMES = ("startComputeMs", "endComputeMs", "h2dMs", "computeMs", "d2hMs", "latencyMs")


def parse_times(data: object, where: str = "times") -> list[dict[str, float]]:
    """Checks what --exportTimes wrote: one object per query.

    Raises:
        ArtifactError: something else, a run without queries, or a clock that goes backwards.
    """
    if not isinstance(data, list) or not all(isinstance(query, dict) for query in data):
        raise ArtifactError(f"{where}: expected the list of objects that --exportTimes writes")
    if not data:
        raise ArtifactError(f"{where}: a run of zero length: it has no query")
    queries, before = [], -math.inf
    for number, query in enumerate(data, start=1):
        values = {}
        for name, value in query.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ArtifactError(f"{where}: query {number}: {name} {value!r} is no number")
            values[str(name)] = float(value)
        missing = [name for name in TIMES if name not in values]
        if missing:
            raise ArtifactError(f"{where}: query {number} has no {missing[0]}")
        start = values.get("startH2dMs", values["startComputeMs"])  # the order trtexec sorts by
        negative = min(values[name] for name in ("h2dMs", "computeMs", "d2hMs", "latencyMs")) < 0
        if negative or values["endComputeMs"] < values["startComputeMs"] or start < before:
            raise ArtifactError(f"{where}: query {number}: the clock goes backwards; run trtexec again")
        before = start
        queries.append(values)
    if not any(query["latencyMs"] for query in queries):
        raise ArtifactError(f"{where}: a run of zero length: every query took 0 ms")
    return queries


def latency_of(queries: Sequence[Mapping[str, float]], name: str = "latencyMs") -> Latency:
    """Figures of exported times by trtexec's own rules, with the raw samples in rounds of ten successive queries."""
    samples = [query[name] for query in queries]
    rounds = [samples[i : i + ROUND] for i in range(0, len(samples), ROUND)]
    figures = Latency.of(rounds)
    p90, p95, p99 = (percentile(samples, p) for p in (90, 95, 99))
    return Latency(
        **{**figures.__dict__, "p90_ms": p90, "p95_ms": p95, "p99_ms": p99, "p50_ms": float(np.median(samples))}
    )
