"""A power meter that reads the first source of this machine that works: INA3221 rails, tegrastats, or NVML.

with open_meter("auto") as meter:
    energy = measure_energy(run, meter, Load(images_per_run=1))
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from gft_edge.benchmarks.power import ina3221, nvml, tegrastats
from gft_edge.benchmarks.power.energy import Energy, PowerTrace, WindowPower, energy_of, mean_power, throttling
from gft_edge.benchmarks.power.source import FIRST_SAMPLE_S, Machine, Opener, Source
from gft_edge.errors import ConfigError, GFTEdgeError, did_you_mean

SOURCES: dict[str, Opener] = {
    "ina3221": ina3221.open_source,
    "tegrastats": tegrastats.open_source,
    "nvml": nvml.open_source,
}
"""In the order in which ``"auto"`` tries them."""
CHOICES = ("auto", "none", *SOURCES)
NOT_ASKED_FOR = "not asked for"


class PowerMeter:
    """Samples power in its own thread. Without a source it gives no numbers, and the reason.

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
        """Starts to sample; returns with the first sample, or without one after ``FIRST_SAMPLE_S``."""
        if self._source:
            self._thread.start()
            deadline = time.perf_counter() + FIRST_SAMPLE_S
            while not self._readings and not self._failed and time.perf_counter() < deadline:
                time.sleep(0.01)

    def stop(self) -> None:
        """Stops sampling and closes the source."""
        self._stop.set()
        if self._source:
            self._source.close()
            self._thread.join(timeout=FIRST_SAMPLE_S)

    @property
    def unavailable(self) -> str | None:
        """Reason why there are no numbers, in one line; None if there is a source."""
        if self._source is None:
            return f"no power source ({'; '.join(self.reasons)})"
        if self._failed:
            return f"{self.source} stopped: {self._failed}"
        if not self._readings:
            return f"{self.source} gives no samples of {' + '.join(self._source.rails)}"
        return None

    def trace(self) -> PowerTrace:
        """Returns the samples so far."""
        columns = zip(*list(self._readings)) if self._readings else ((), (), (), ())
        source = self._source
        return PowerTrace(self.source, source.rails if source else (), source.interval_s if source else 0.0, *columns)

    def window(self, start_s: float, end_s: float) -> WindowPower:
        """Returns the mean power between two readings of ``time.perf_counter``; waits for the sample after the end."""
        if self.unavailable:
            return WindowPower(max(0.0, end_s - start_s), 0, 0.0, None, self.unavailable)
        interval = self.trace().interval_s
        deadline = time.perf_counter() + 5 * interval
        while self._readings[-1][0] < end_s and time.perf_counter() < deadline:
            time.sleep(interval / 5)
        return mean_power(self.trace(), start_s, end_s)

    def idle(self, seconds: float = 3.0) -> WindowPower:
        """Returns the mean power while nothing runs, measured for so many seconds."""
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
        except Exception as error:  # an error of a driver must not end the thread silently
            self._failed = str(error) or type(error).__name__


@contextlib.contextmanager
def open_meter(source: str = "auto", machine: Machine | None = None) -> Iterator[PowerMeter]:
    """Opens a meter that samples while the ``with`` block runs.

    Args:
        source: ``"auto"`` takes the first of ``SOURCES`` that works; if none does, the meter gives no numbers and the
            reasons. ``"none"`` measures nothing.
        machine: this one by default.

    Raises:
        ConfigError: unknown source, or the named source does not work here.
        MissingExtraError: NVML was named and nvidia-ml-py is not installed.
    """
    meter = _find_meter(source, machine or Machine())
    try:
        meter.start()
        yield meter
    finally:
        meter.stop()


def require_source(source: str) -> None:
    """Checks the name of a source.

    Raises:
        ConfigError: unknown source.
    """
    if source not in CHOICES:
        raise ConfigError(
            f"unknown power source {source!r}{did_you_mean(source, CHOICES)}; there are: {', '.join(CHOICES)}"
        )


def _find_meter(source: str, machine: Machine) -> PowerMeter:
    require_source(source)
    if source == "none":
        return PowerMeter(None, (NOT_ASKED_FOR,))
    if source != "auto":
        return PowerMeter(SOURCES[source](machine))
    reasons = []
    for opener in SOURCES.values():
        try:
            return PowerMeter(opener(machine))
        except GFTEdgeError as error:
            reasons.append(str(error))
    return PowerMeter(None, tuple(reasons))


@dataclass(frozen=True)
class Load:
    """A load whose energy is measured.

    Args:
        images_per_run: images in each request.
        seconds: how long to measure.
        settle_seconds: time of the same load before, until clocks and temperature follow.
        accuracy: share of images classified correctly, for the energy per correct image.
        locked_mhz: clock that the GPU was locked to, None if it was free to vary.

    Raises:
        ConfigError: no time or no images to measure.
    """

    images_per_run: int
    seconds: float = 10.0
    settle_seconds: float = 2.0
    accuracy: float | None = None
    locked_mhz: float | None = None

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.settle_seconds < 0:
            raise ConfigError(
                "energy: seconds must be above 0 and settle_seconds must not be negative, "
                f"found {self.seconds}, {self.settle_seconds}"
            )
        if self.images_per_run < 1:
            raise ConfigError(f"energy: images_per_run must be at least 1, found {self.images_per_run}")


def measure_energy(run: Callable[[], object], meter: PowerMeter, load: Load, idle: WindowPower | None = None) -> Energy:
    """Measures the energy of one kind of request, repeated back to back.

    Needs its own phase: sources sample every 50 to 100 ms, far longer than the alternating rounds of a latency
    comparison.

    Args:
        run: one request; returns when it is done.
        meter: open; without a source nothing is run and the answer is a refusal.
        load: how much and how long.
        idle: from :meth:`PowerMeter.idle`, just before.
    """
    if meter.unavailable:
        nothing = WindowPower(0.0, 0, 0.0, None, meter.unavailable)
        return energy_of(meter.trace(), nothing, load.images_per_run, idle, load.accuracy)
    _repeat(run, load.settle_seconds)
    start = time.perf_counter()
    runs = _repeat(run, load.seconds)
    end = time.perf_counter()
    window, trace = meter.window(start, end), meter.trace()
    held = throttling(trace, start, end, load.locked_mhz)
    energy = energy_of(trace, window, runs * load.images_per_run, idle, load.accuracy)
    return replace(energy, throttled=tuple(held))


def _repeat(run: Callable[[], object], seconds: float) -> int:
    """Runs for so long; returns how often."""
    end = time.perf_counter() + seconds
    runs = 0
    while time.perf_counter() < end:
        run()
        runs += 1
    return runs
