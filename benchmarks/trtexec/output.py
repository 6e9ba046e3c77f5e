"""Reads and checks the output of trtexec of TensorRT 8.0 to 11, one run at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gft_edge.benchmarks.logs import clean
from gft_edge.benchmarks.trtexec.failure import cause_of_failure, is_failure
from gft_edge.benchmarks.trtexec.settings import Settings, sections, settings_of
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.hardware.tensorrt_versions import MAJOR_NUMBERS

METRICS = ("Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency")
FEW_QUERIES = 10
"""Least number that trtexec repeats by default; fewer show little."""

_PREFIX = r"(?:^|[\]\s|])\[(?P<level>[IWE])\] "
_METRIC = re.compile(rf"{_PREFIX}(?P<name>{'|'.join(METRICS)}): (?P<figures>.*)$")
_OLD_LAYOUT = re.compile(r"\[I\] (?:Host Latency|GPU Compute)\s*$|\[I\] (?:min|median): [\d.]+ ms \(end to end")
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
_BANNER = r"TensorRT\.trtexec(?: \[TensorRT v(\d+)\])?(?: \[b\d+\])?"
_RUNNING = re.compile(rf"&&&& RUNNING {_BANNER} # (.*)$")
_VERDICT = re.compile(rf"&&&& (PASSED|FAILED) {_BANNER}(?: # (.*))?")
_VERSION = re.compile(r"\[I\] TensorRT version: ([\d.]+)")
_VARIANCE = re.compile(r"coefficient of variance = ([\d.]+)%")


def parse_version(text: str) -> tuple[int, int]:
    """Parses ``"10.3.0"`` or the integer of trtexec's banner (``"8601"``, ``"100300"``); returns (major, minor).

    Raises:
        ConfigError: another text.
    """
    if re.fullmatch(r"\d+(\.\d+){1,3}", text, re.ASCII):
        major, minor = (int(part) for part in text.split(".")[:2])
    elif re.fullmatch(r"\d{4}", text, re.ASCII):  # up to 8.6: 8601
        major, minor = int(text[0]), int(text[1])
    elif re.fullmatch(r"\d{6}", text, re.ASCII):  # from 10.0: 100300
        major, minor = int(text[:2]), int(text[2:4])
    else:
        raise ConfigError(f"TensorRT version {text!r}: expected a text like 10.3.0 or 8601")
    if not MAJOR_NUMBERS[0] <= major <= MAJOR_NUMBERS[-1]:
        raise ConfigError(f"TensorRT version {text!r}: major numbers {', '.join(map(str, MAJOR_NUMBERS))} are known")
    return major, minor


@dataclass(frozen=True)
class TrtexecLog:
    """The output of one run of trtexec.

    Attributes:
        version: (major, minor) of TensorRT, None if the log does not contain it.
        command: trtexec's command line, empty if the log does not contain it.
        metrics: by name of ``METRICS``, figures in ms by ``"min"``, ``"max"``, ``"mean"``, ``"median"`` and ``"90"`` (percentile).
        numbers: ``throughput_qps``, ``host_walltime_s``, ``gpu_time_s``, ``build_s``, ``deserialize_s``, ``engine_mib``,
            ``queries``, ``warmup_queries``, ``warmup_ms``: as far as present.
        device: ``device``, ``compute_capability``, ``sms``: as far as present.
        variance: coefficient of variation of the GPU time in trtexec's warning, as a share.
        warnings: its ``[W]`` lines that concern the measurement, and remarks of this reader.
        settings: timing, streams and shapes in force.
    """

    version: tuple[int, int] | None
    command: str
    metrics: Mapping[str, Mapping[str, float]]
    numbers: Mapping[str, float]
    device: Mapping[str, str]
    variance: float | None
    warnings: tuple[str, ...]
    settings: Settings

    @property
    def timing(self) -> Mapping[str, bool] | None:
        """Timing settings in force."""
        return self.settings.timing


def parse_runs(text: str, where: str = "trtexec log") -> list[TrtexecLog]:
    """Returns every complete run of trtexec in a log, each with its own command; at least one.

    A cut off or failed run besides a complete one is left out, with a warning in the first complete one.

    Raises:
        ArtifactError: not output of trtexec; or no complete run, with the reason: failed, cut off before or in the
            performance summary, of an unknown layout, or impossible figures (negative or zero times).
    """
    parts = [part for part in sections(clean(text).splitlines()) if _is_run(part)]
    if not parts:
        raise ArtifactError(f"{where}: this is not output of trtexec; save what it prints: trtexec ... > FILE 2>&1")
    if len(parts) == 1:
        return [_parse_run(parts[0], where)]
    runs, left_out = [], []
    for number, part in enumerate(parts, start=1):
        try:
            runs.append(_parse_run(part, f"{where}: run {number} of {len(parts)}"))
        except ArtifactError as error:
            left_out.append((number, _command_of(part), str(error).removeprefix(f"{where}: ")))
    if not runs:
        raise ArtifactError(f"{where}: " + "; ".join(reason for _, _, reason in left_out))
    omitted = tuple(f"{reason}; left out ({command or 'no command'})" for _, command, reason in left_out)
    return [replace(runs[0], warnings=(*runs[0].warnings, *omitted)), *runs[1:]]


def _is_run(lines: Sequence[str]) -> bool:
    return any(
        "&&&& " in line or "=== Performance summary ===" in line or _METRIC.search(line) or _OLD_LAYOUT.search(line)
        for line in lines
    )


def _command_of(lines: Sequence[str]) -> str:
    return next((match[2].strip() for line in lines if (match := _RUNNING.search(line))), "")


def _parse_run(lines: Sequence[str], where: str) -> TrtexecLog:
    metrics: dict[str, dict[str, float]] = {}
    numbers: dict[str, float] = {}
    device: dict[str, str] = {}
    version, command, verdict, variance = None, "", None, None
    warnings: list[str] = []
    summaries = 0
    for line in lines:
        summaries += "=== Performance summary ===" in line
        if match := _METRIC.search(line):
            metrics[match["name"]] = _figures(match["figures"])
        elif match := _RUNNING.search(line):
            version, command = version_or_none(match[1] or ""), match[2].strip()
        elif match := _VERDICT.search(line):
            verdict, ended = match[1], (match[3] or "").rstrip("\ufffd").strip()
            if command and not command.startswith(ended):  # a verdict may be cut off
                raise ArtifactError(
                    f"{where}: begins as {command!r} and ends as {ended!r}: two runs are mixed; write one log per run"
                )
            version, command = version or version_or_none(match[2] or ""), command or ended
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
    text = "\n".join(lines)
    if verdict == "FAILED" or (verdict is None and not metrics and is_failure(text)):
        raise ArtifactError(f"{where}: the run failed: {cause_of_failure(text)}")
    if not metrics and any(_OLD_LAYOUT.search(line) for line in lines):
        raise ArtifactError(
            f"{where}: has the layout of trtexec before TensorRT 8.2 (such as 7.2), which is not supported; use a newer trtexec"
        )
    if verdict == "PASSED" and not metrics:
        raise ArtifactError(
            f"{where}: the run passed but timed nothing ({command}); run it with --loadEngine and without --skipInference "
            "or --buildOnly"
        )
    if summaries > 1:
        raise ArtifactError(f"{where}: has {summaries} performance summaries under one command; write one log per run")
    _require_summary(metrics, numbers, where)
    settings = settings_of(lines, command, version)
    warnings += settings.notes
    warnings += _noticed(numbers, settings)
    if verdict is None:
        warnings.append("the log ends before trtexec's own verdict (PASSED)")
    return TrtexecLog(version, command, metrics, numbers, device, variance, tuple(warnings), settings)


def _noticed(numbers: Mapping[str, float], settings: Settings) -> list[str]:
    found = []
    if settings.streams > 1:
        found.append(
            f"{settings.streams} streams ran at a time: latency is that of a query next to {settings.streams - 1} others, "
            "longer than alone"
        )
    if numbers["throughput_qps"] <= 0:
        found.append("trtexec reports a throughput of 0: there are no images/s and no energy")
    if (queries := numbers.get("queries")) is not None and queries < FEW_QUERIES:
        found.append(f"the figures are of {queries:.0f} queries; give trtexec a longer --duration")
    return found


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
        raise ArtifactError(f"{where}: {text!r} is not a finite number; the log is damaged")
    return value


def version_or_none(text: str) -> tuple[int, int] | None:
    """Returns :func:`parse_version`, None for an unknown version."""
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
