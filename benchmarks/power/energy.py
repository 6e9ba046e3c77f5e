"""Energy of a timed window from samples of power: integrated over exactly that window, or refused with the reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gft_edge.errors import ConfigError

MIN_COVERAGE = 0.95
MIN_SAMPLES = 10
MAX_GAP = 5
"""Nominal intervals between two samples above which the power between them counts as unknown."""
ROUNDING = 1e-9
CLOCK_TOLERANCE = 0.02
"""Share by which a reading of a locked clock may lie below it."""


@dataclass(frozen=True)
class PowerTrace:
    """Samples of the power of the whole module or board.

    Attributes:
        source: its name, or ``"none"``.
        rails: rails that are summed.
        interval_s: nominal time between samples.
        times_s: on the clock of ``time.perf_counter``.
        power_mw: at those times.
        gpu_mhz: clock of the GPU at those times, None where the source does not report it.
        slowdowns: reasons why it was held down at those times, where the source reports them.
    """

    source: str
    rails: tuple[str, ...]
    interval_s: float
    times_s: tuple[float, ...] = ()
    power_mw: tuple[float, ...] = ()
    gpu_mhz: tuple[float | None, ...] = ()
    slowdowns: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class WindowPower:
    """Mean power over a window.

    Attributes:
        duration_s: length of the window.
        num_samples: samples inside it.
        coverage: share of the window between samples close enough to each other.
        mean_mw: by the trapezoidal rule, power at the window's ends interpolated; None when refused.
        refused: why there is no mean.
    """

    duration_s: float
    num_samples: int
    coverage: float
    mean_mw: float | None
    refused: str | None = None


@dataclass(frozen=True)
class Energy:
    """Energy of a load and idle power; a missing number is None, with the reason in ``refused``.

    Attributes:
        source, rails: of the samples.
        num_images: images processed in the window.
        duration_s, num_samples, coverage: of the window.
        mean_mw, energy_mj: of everything on the rails.
        mj_per_image: ``energy_mj`` over ``num_images``.
        mj_per_correct_image: the same over the images classified correctly.
        throttled: reasons why the GPU was held down in the window, one sentence each.
        idle_mw: mean power before the load.
        net_mj_per_image: without the idle power over the same time.
        refused: why there is no energy.
        idle_refused: why there is no idle power.
        notes: remarks about the samples, one sentence each.
    """

    source: str
    rails: tuple[str, ...]
    num_images: int
    duration_s: float
    num_samples: int
    coverage: float
    mean_mw: float | None = None
    energy_mj: float | None = None
    mj_per_image: float | None = None
    mj_per_correct_image: float | None = None
    idle_mw: float | None = None
    net_mj_per_image: float | None = None
    refused: str | None = None
    idle_refused: str | None = None
    throttled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {**asdict(self), "rails": list(self.rails), "throttled": list(self.throttled), "notes": list(self.notes)}


def mean_power(trace: PowerTrace, start_s: float, end_s: float) -> WindowPower:
    """Returns the mean power of a window.

    Power is linear between two samples, and unknown if they are more than ``MAX_GAP`` nominal intervals apart.

    Args:
        trace: samples around the window.
        start_s, end_s: on the samples' clock.

    Returns:
        a refusal in place of the mean if the window is empty, the clock runs backwards, fewer than ``MIN_SAMPLES``
        samples are inside, or they cover less than ``MIN_COVERAGE`` of it.
    """
    duration = end_s - start_s
    if not (np.isfinite(duration) and duration > 0):
        return WindowPower(0.0, 0, 0.0, None, f"the timed window lasts {duration:g} s")
    times, power = np.asarray(trace.times_s, float), np.asarray(trace.power_mw, float)
    if len(times) != len(power) or not (np.isfinite(times).all() and np.isfinite(power).all()):
        return WindowPower(duration, 0, 0.0, None, "times and powers are not finite numbers of the same count")
    steps = np.diff(times)
    if (steps < 0).any():
        return WindowPower(
            duration, 0, 0.0, None, f"the clock of the samples goes backwards after sample {int(np.argmax(steps < 0))}"
        )
    inside = int(((times >= start_s) & (times <= end_s)).sum())
    covered, energy = _integrate(times, power, start_s, end_s, MAX_GAP * trace.interval_s)
    coverage = min(1.0, covered / duration)
    if inside < MIN_SAMPLES:
        least = MIN_SAMPLES * trace.interval_s
        reason = f"{inside} samples in the window of {duration:.3g} s; measure for {least:.3g} s or more"
        return WindowPower(duration, inside, coverage, None, reason)
    if coverage < MIN_COVERAGE:
        reason = f"samples cover {coverage:.0%} of the window of {duration:.3g} s, {MIN_COVERAGE:.0%} are needed"
        return WindowPower(duration, inside, coverage, None, reason)
    return WindowPower(duration, inside, coverage, energy / covered)


def _integrate(
    times: NDArray[np.float64], power: NDArray[np.float64], start: float, end: float, longest: float
) -> tuple[float, float]:
    """Returns seconds covered and mW s, over the parts of the window between samples at most ``longest`` apart."""
    step = np.diff(times)
    low, high = np.clip(times[:-1], start, end), np.clip(times[1:], start, end)
    width = np.where((step > 0) & (step <= longest), high - low, 0.0)
    slope = np.diff(power) / np.where(step > 0, step, 1.0)
    middle = power[:-1] + slope * ((low + high) / 2 - times[:-1])  # the mean of a line is its value in the middle
    return float(width.sum()), float((width * middle).sum())


def energy_of(
    trace: PowerTrace,
    load: WindowPower,
    num_images: int,
    idle: WindowPower | None = None,
    accuracy: float | None = None,
) -> Energy:
    """Returns the energy of a load.

    Args:
        trace: samples.
        load: mean power under load.
        num_images: images processed in that window.
        idle: mean power just before, without load.
        accuracy: share of images classified correctly, for the energy per correct image.

    Raises:
        ConfigError: no images, or an accuracy outside 0 to 1.
    """
    if num_images < 1:
        raise ConfigError(f"energy: needs at least one image in the window, found {num_images}")
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ConfigError(f"energy: accuracy must be 0 to 1, found {accuracy}")
    mean, idle_mw = load.mean_mw, idle.mean_mw if idle else None
    idle_refused = idle.refused if idle else "idle power was not measured"
    energy = None if mean is None else mean * load.duration_s
    per_image = None if energy is None else energy / num_images
    net = None
    if mean is not None and idle_mw is not None:
        if idle_mw <= mean * (1 + ROUNDING):
            net = max(0.0, mean - idle_mw) * load.duration_s / num_images
        else:
            idle_refused = (
                f"idle power ({idle_mw:.0f} mW) is above the load's ({mean:.0f} mW): something else was running"
            )
    return Energy(
        source=trace.source,
        rails=trace.rails,
        num_images=num_images,
        duration_s=load.duration_s,
        num_samples=load.num_samples,
        coverage=load.coverage,
        mean_mw=mean,
        energy_mj=energy,
        mj_per_image=per_image,
        mj_per_correct_image=None if per_image is None or not accuracy else per_image / accuracy,
        idle_mw=idle_mw,
        net_mj_per_image=net,
        refused=load.refused,
        idle_refused=idle_refused,
    )


def clock_drops(trace: PowerTrace, start_s: float, end_s: float, locked_mhz: float) -> str | None:
    """Returns one sentence if the GPU ran below its locked clock in the window, else None.

    Args:
        trace: with clocks.
        start_s, end_s: the window; under load, since an idle GPU may sleep.
        locked_mhz: clock that it was locked to.
    """
    clocks = [c for t, c in zip(trace.times_s, trace.gpu_mhz) if c is not None and start_s <= t <= end_s]
    low = [c for c in clocks if c < locked_mhz * (1 - CLOCK_TOLERANCE)]
    if not low:
        return None
    return (
        f"GPU below its locked {locked_mhz:.0f} MHz in {len(low)} of {len(clocks)} samples, down to {min(low):.0f} MHz: "
        "it was throttled"
    )


def throttling(trace: PowerTrace, start_s: float, end_s: float, locked_mhz: float | None = None) -> list[str]:
    """Returns why the GPU was held down in a window, one sentence each: clocks below the lock, and the driver's reasons.

    Args:
        trace: with clocks or slowdowns.
        start_s, end_s: the window.
        locked_mhz: clock that it was locked to, None if it was free to vary.
    """
    inside = [why for t, why in zip(trace.times_s, trace.slowdowns) if start_s <= t <= end_s]
    counts = Counter(reason for reasons in inside for reason in reasons)
    found = [f"GPU {reason} in {count} of {len(inside)} samples" for reason, count in counts.items()]
    drops = None if locked_mhz is None else clock_drops(trace, start_s, end_s, locked_mhz)
    return [drops, *found] if drops else found
