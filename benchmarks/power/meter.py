"""A power meter over whatever this machine has: INA3221 rails, tegrastats, or NVML.

with open_meter("auto") as meter:
    energy = measure_energy(run, meter, images_per_run=1)
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from gft_edge.benchmarks.power.energy import Energy, PowerTrace, WindowPower, energy_of, mean_power, throttling
from gft_edge.benchmarks.power.ina3221 import find_channels, read_rails
from gft_edge.benchmarks.power.log_times import LineTimes, line_times
from gft_edge.benchmarks.power.nvml import NvmlGpu, load_nvml
from gft_edge.benchmarks.power.tegrastats import TegraStats, TegrastatsProcess, read_log
from gft_edge.errors import ConfigError, GFTEdgeError, did_you_mean
from gft_edge.hardware.devices import DEVICES
from gft_edge.hardware.jetson import gpu_clock

PowerSource = Literal["auto", "none", "tegrastats", "ina3221", "nvml"]

INA3221_INTERVAL_S = 0.05
TEGRASTATS_INTERVAL_MS = 100
NVML_INTERVAL_S = 0.1
FIRST_SAMPLE_S = 5.0
"""How long a source may take for its first sample."""


@dataclass(frozen=True)
class Reading:
    """One sample: power of each rail, mW, and of the GPU its clock and why that is held down, where the source says it."""

    time_s: float
    rails_mw: Mapping[str, float]
    gpu_mhz: float | None = None
    slowdowns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    Attributes:
        name: as asked for.
        rails: whose sum is the total.
        interval_s: nominal, between samples.
        readings: yields samples until told to stop.
        close: lets go of what was opened, and makes ``readings`` end if it is waiting.
    """

    name: str
    rails: tuple[str, ...]
    interval_s: float
    readings: Callable[[threading.Event], Iterator[Reading]]
    close: Callable[[], None]


class PowerMeter:
    """Samples power in a thread of its own. Without a source it says why, and gives no numbers.

    Attributes:
        source: name of the source, or ``"none"``.
        reasons: why there is no source, one line for each that was tried.
    """

    def __init__(self, source: Source | None, reasons: tuple[str, ...] = ()) -> None:
        self._source = source
        self._stop = threading.Event()
        self._readings: list[tuple[float, float, float | None, tuple[str, ...]]] = []
        self._failed: str | None = None
        self._thread = threading.Thread(target=self._collect, name="power meter", daemon=True)
        self.source = source.name if source else "none"
        self.reasons = reasons

    def __bool__(self) -> bool:
        return self._source is not None

    def start(self) -> None:
        """Begins to sample; returns with the first sample, or without one after ``FIRST_SAMPLE_S``."""
        if self._source:
            self._thread.start()
            deadline = time.perf_counter() + FIRST_SAMPLE_S
            while not self._readings and not self._failed and time.perf_counter() < deadline:
                time.sleep(0.01)

    def stop(self) -> None:
        """Ends sampling and lets go of the source."""
        self._stop.set()
        if self._source:
            self._source.close()
            self._thread.join(timeout=FIRST_SAMPLE_S)

    @property
    def unavailable(self) -> str | None:
        """Why there are no numbers, in one line; None when there is a source."""
        if self._source is None:
            return f"no power source ({'; '.join(self.reasons)})"
        if self._failed:
            return f"{self.source} stopped: {self._failed}"
        if not self._readings:
            return f"{self.source} gives no samples of {' + '.join(self._source.rails)}"
        return None

    def trace(self) -> PowerTrace:
        """The samples so far."""
        columns = zip(*list(self._readings)) if self._readings else ((), (), (), ())
        source = self._source
        return PowerTrace(self.source, source.rails if source else (), source.interval_s if source else 0.0, *columns)

    def window(self, start_s: float, end_s: float) -> WindowPower:
        """Mean power between two readings of ``time.perf_counter``, once the sample after the end has come."""
        if self.unavailable:
            return WindowPower(max(0.0, end_s - start_s), 0, 0.0, None, self.unavailable)
        interval = self.trace().interval_s
        deadline = time.perf_counter() + 5 * interval
        while self._readings[-1][0] < end_s and time.perf_counter() < deadline:
            time.sleep(interval / 5)
        return mean_power(self.trace(), start_s, end_s)

    def idle(self, seconds: float = 3.0) -> WindowPower:
        """Mean power of doing nothing for so long."""
        start = time.perf_counter()
        if self._source:
            time.sleep(seconds)
        return self.window(start, time.perf_counter())

    def _collect(self) -> None:
        source = self._source
        if source is None:
            return
        try:
            for reading in source.readings(self._stop):
                if self._stop.is_set():
                    return
                # A rail that did not answer leaves a gap, which the coverage shows.
                if all(rail in reading.rails_mw for rail in source.rails):
                    total = sum(reading.rails_mw[rail] for rail in source.rails)
                    self._readings.append((reading.time_s, total, reading.gpu_mhz, reading.slowdowns))
            if not self._stop.is_set():
                self._failed = "the program ended"
        except Exception as error:  # whatever a driver throws must not end silently in a thread
            self._failed = str(error) or type(error).__name__


@contextlib.contextmanager
def open_meter(source: str = "auto", root: Path = Path("/"), gpu: int = 0) -> Iterator[PowerMeter]:
    """A meter that samples while the ``with`` block runs.

    Args:
        source: ``"auto"`` takes the first that works of ina3221, tegrastats, nvml, and gives a meter without numbers that
            says why when none does; ``"none"`` measures nothing.
        root: where sysfs is looked for.
        gpu: index for NVML.

    Raises:
        ConfigError: unknown source, or the one asked for by name does not work here.
        MissingExtraError: NVML was asked for and nvidia-ml-py is not installed.
    """
    meter = _find_meter(source, root, gpu)
    try:
        meter.start()
        yield meter
    finally:
        meter.stop()


def _find_meter(source: str, root: Path, gpu: int) -> PowerMeter:
    names = get_args(PowerSource)
    if source not in names:
        raise ConfigError(
            f"unknown power source {source!r}{did_you_mean(source, names)}; there are: {', '.join(names)}"
        )
    if source == "none":
        return PowerMeter(None, ("not asked for",))
    openers: dict[str, Callable[[], Source]] = {
        "ina3221": lambda: _open_ina3221(root),
        "tegrastats": _open_tegrastats,
        "nvml": lambda: _open_nvml(gpu),
    }
    if source != "auto":
        return PowerMeter(openers[source]())
    reasons = []
    for opener in openers.values():
        try:
            return PowerMeter(opener())
        except GFTEdgeError as error:
            reasons.append(str(error))
    return PowerMeter(None, tuple(reasons))


def total_rails(rails: Iterable[str]) -> tuple[str, ...] | None:
    """Those of the rails found whose sum is the power of the whole module; None when they are no known board's."""
    found = set(rails)
    known = dict.fromkeys(profile.total_rails for profile in DEVICES.values() if profile.total_rails)
    return next((names for names in known if found.issuperset(names)), None)


def _require_total(rails: Iterable[str], where: str) -> tuple[str, ...]:
    rails = sorted(rails)
    if (total := total_rails(rails)) is None:
        raise ConfigError(f"{where}: rails {', '.join(rails) or 'none'} are not known to make up the power of a board")
    return total


def _open_ina3221(root: Path) -> Source:
    channels = find_channels(root)
    if not channels:
        raise ConfigError(f"ina3221: no labelled power monitor below {root / 'sys/bus/i2c'}")
    rails = _require_total((channel.rail for channel in channels), "ina3221")
    needed = tuple(channel for channel in channels if channel.rail in rails)
    for channel in needed:
        for file in channel.files:
            try:
                file.read_bytes()
            except PermissionError:
                raise ConfigError(f"ina3221: no permission to read {file}; run with sudo") from None
            except OSError:
                pass  # asleep now; may answer later

    def readings(stop: threading.Event) -> Iterator[Reading]:
        while not stop.wait(INA3221_INTERVAL_S):
            started = time.perf_counter()
            power = read_rails(needed)
            yield Reading((started + time.perf_counter()) / 2, power, gpu_clock(root).now)

    return Source("ina3221", rails, INA3221_INTERVAL_S, readings, lambda: None)


def _open_tegrastats() -> Source:
    program = shutil.which("tegrastats")
    if program is None:
        raise ConfigError("tegrastats: not on PATH; it comes with Jetson Linux")
    probe = TegrastatsProcess(program, TEGRASTATS_INTERVAL_MS)
    watchdog = threading.Timer(FIRST_SAMPLE_S, probe.close)
    watchdog.start()
    stream = iter(probe)
    try:
        first = next(stream, None)
    finally:
        watchdog.cancel()
    if first is None or first[1].is_empty:
        probe.close()
        raise ConfigError(f"tegrastats: {program} prints nothing that can be read")
    try:
        rails = _require_total(first[1].rails, "tegrastats")
    except ConfigError as error:
        probe.close()
        raise ConfigError(f"{error}; run with sudo") from None

    def readings(stop: threading.Event) -> Iterator[Reading]:
        for arrived, stats in stream:
            power = {name: float(rail.now_mw) for name, rail in stats.rails.items()}
            yield Reading(arrived, power, float(stats.gpu_mhz[0]) if stats.gpu_mhz else None)

    return Source("tegrastats", rails, TEGRASTATS_INTERVAL_MS / 1e3, readings, probe.close)


def _open_nvml(index: int) -> Source:
    gpu = NvmlGpu(load_nvml(), index)
    rail = f"{gpu.name} board"

    def readings(stop: threading.Event) -> Iterator[Reading]:
        while not stop.wait(NVML_INTERVAL_S):
            power = gpu.read_mw()
            rails = {} if power is None else {rail: power}
            yield Reading(time.perf_counter(), rails, gpu.read_mhz(), tuple(gpu.slowdowns()))

    return Source("nvml", (rail,), NVML_INTERVAL_S, readings, gpu.close)


def log_trace(log: Sequence[TegraStats], interval_s: float) -> PowerTrace:
    """Power of a recorded log of tegrastats, with time counted from its first line.

    Lines are ``interval_s`` apart unless their dates say otherwise; lines without the needed rails leave a gap.

    Args:
        log: from :func:`gft_edge.benchmarks.power.tegrastats.read_log`.
        interval_s: what tegrastats was told.

    Raises:
        ConfigError: ``interval_s`` not above 0, or the rails are of no known board.
        DataError: the dates go backwards, so the board's clock was set meanwhile.
    """
    return _trace_at(log, line_times([stats.date for stats in log], interval_s))


def _trace_at(log: Sequence[TegraStats], lines: LineTimes) -> PowerTrace:
    rails = _require_total({name for stats in log for name in stats.rails}, "tegrastats log")
    found = [(time, stats) for time, stats in zip(lines.times_s, log) if all(rail in stats.rails for rail in rails)]
    return PowerTrace(
        source="tegrastats",
        rails=rails,
        interval_s=lines.interval_s,
        times_s=tuple(seconds for seconds, _ in found),
        power_mw=tuple(float(sum(stats.rails[rail].now_mw for rail in rails)) for _, stats in found),
        gpu_mhz=tuple(float(stats.gpu_mhz[0]) if stats.gpu_mhz else None for _, stats in found),
    )


def measure_energy(
    run: Callable[[], object],
    meter: PowerMeter,
    images_per_run: int,
    seconds: float = 10.0,
    settle_seconds: float = 2.0,
    idle: WindowPower | None = None,
    accuracy: float | None = None,
    locked_mhz: float | None = None,
) -> Energy:
    """Energy of one kind of request, repeated back to back.

    Needs a phase of its own: sources sample every 50 to 100 ms, far longer than the alternating rounds of a latency
    comparison.

    Args:
        run: one request, returning when it is done.
        meter: open; without a source nothing is run and the answer is a refusal.
        images_per_run: images in each request.
        seconds: how long to measure.
        settle_seconds: of the same load before, until clocks and temperature follow.
        idle: from :meth:`PowerMeter.idle`, just before.
        accuracy: share of images classified correctly, for the energy per correct image.
        locked_mhz: what the GPU's clock was locked to, None where it was free to vary.

    Raises:
        ConfigError: no time or no images to measure.
    """
    if seconds <= 0 or settle_seconds < 0:
        raise ConfigError(
            f"energy: seconds must be above 0 and settle_seconds not below, found {seconds}, {settle_seconds}"
        )
    if images_per_run < 1:
        raise ConfigError(f"energy: images_per_run must be at least 1, found {images_per_run}")
    if meter.unavailable:
        return energy_of(
            meter.trace(), WindowPower(0.0, 0, 0.0, None, meter.unavailable), images_per_run, idle, accuracy
        )
    _repeat(run, settle_seconds)
    start = time.perf_counter()
    runs = _repeat(run, seconds)
    end = time.perf_counter()
    load, trace = meter.window(start, end), meter.trace()
    held = throttling(trace, start, end, locked_mhz)
    return replace(energy_of(trace, load, runs * images_per_run, idle, accuracy), throttled=tuple(held))


def log_energy(path: Path, interval_s: float, images_per_s: float, accuracy: float | None = None) -> Energy:
    """Energy of a load from a log of tegrastats that was recorded while it ran, and no longer.

    Args:
        path: written by ``tegrastats --logfile``.
        interval_s: what tegrastats was told.
        images_per_s: of the load; without any there is no energy.
        accuracy: share of images classified correctly, for the energy per correct image.

    Raises:
        ConfigError: no interval, or rails of no known board.
        DataError: no log of tegrastats, or its clock goes backwards.
    """
    log = read_log(path)
    lines = line_times([stats.date for stats in log], interval_s)
    trace = _trace_at(log, lines)
    start, end = (trace.times_s[0], trace.times_s[-1]) if trace.times_s else (0.0, 0.0)
    load = mean_power(trace, start, end)
    if load.refused and lines.gaps:
        load = replace(
            load, refused=f"{load.refused}: the log has {'; '.join(lines.gaps)}; record it while the load runs"
        )
    if not images_per_s > 0:
        load = replace(load, mean_mw=None, refused=f"the throughput of the load is {images_per_s:g} images/s")
    images = max(1, round(images_per_s * load.duration_s)) if images_per_s > 0 else 1
    energy = energy_of(trace, load, images, None, accuracy)
    return replace(energy, notes=(*lines.notes, *(f"the log has {gap}" for gap in lines.gaps)))


def _repeat(run: Callable[[], object], seconds: float) -> int:
    end = time.perf_counter() + seconds
    runs = 0
    while time.perf_counter() < end:
        run()
        runs += 1
    return runs
