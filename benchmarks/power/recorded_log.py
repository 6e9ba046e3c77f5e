"""Power and energy from a log of tegrastats that was recorded while a load ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gft_edge.benchmarks.power.energy import Energy, PowerTrace, energy_of, mean_power
from gft_edge.benchmarks.power.log_times import LineTimes, line_times
from gft_edge.benchmarks.power.source import require_total
from gft_edge.benchmarks.power.tegrastats import TegraStats, read_log


def _trace_at(log: Sequence[TegraStats], lines: LineTimes) -> PowerTrace:
    """Returns the power at the times of lines; those without the needed rails leave a gap."""
    rails = require_total({name for stats in log for name in stats.rails}, "tegrastats log")
    found = [(time, stats) for time, stats in zip(lines.times_s, log) if all(rail in stats.rails for rail in rails)]
    return PowerTrace(
        source="tegrastats",
        rails=rails,
        interval_s=lines.interval_s,
        times_s=tuple(seconds for seconds, _ in found),
        power_mw=tuple(float(sum(stats.rails[rail].now_mw for rail in rails)) for _, stats in found),
        gpu_mhz=tuple(float(stats.gpu_mhz[0]) if stats.gpu_mhz else None for _, stats in found),
    )


def log_energy(path: Path, interval_s: float, images_per_s: float, accuracy: float | None = None) -> Energy:
    """Returns the energy of a load from a log that was recorded while it ran, and no longer.

    Args:
        path: written by ``tegrastats --logfile``.
        interval_s: interval that tegrastats was started with.
        images_per_s: throughput of the load; with 0 there is no energy.
        accuracy: share of images classified correctly, for the energy per correct image.

    Raises:
        ConfigError: no interval, or the rails match no known board.
        DataError: no log of tegrastats, or its clock goes backwards.
    """
    log = read_log(path)
    lines = line_times([stats.date for stats in log], interval_s)
    trace = _trace_at(log, lines)
    start, end = (trace.times_s[0], trace.times_s[-1]) if trace.times_s else (0.0, 0.0)
    load = mean_power(trace, start, end)
    if load.refused and lines.gaps:
        reason = f"{load.refused}: the log has {'; '.join(lines.gaps)}; record it while the load runs"
        load = replace(load, refused=reason)
    if not images_per_s > 0:
        load = replace(load, mean_mw=None, refused=f"the throughput of the load is {images_per_s:g} images/s")
    images = max(1, round(images_per_s * load.duration_s)) if images_per_s > 0 else 1
    energy = energy_of(trace, load, images, None, accuracy)
    return replace(energy, notes=(*lines.notes, *(f"the log has {gap}" for gap in lines.gaps)))
