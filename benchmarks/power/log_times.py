"""Time of each line in a recorded log of tegrastats: by the interval that was given, checked against the lines' dates."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from gft_edge.benchmarks.power.energy import MAX_GAP
from gft_edge.errors import ConfigError, DataError

DATE_STEP_S = 1.0
"""Dates have whole seconds."""
TOLERANCE = 0.1
"""Share by which tegrastats may be slower than its interval before its dates are used in place of the interval."""
HOUR_S = 3600.0
SUMMER_TIME = ", an hour as when summer time begins or ends"


@dataclass(frozen=True)
class LineTimes:
    """Times of the lines of a log.

    Attributes:
        times_s: of each line, from the first.
        interval_s: between lines where nothing is missing.
        gaps: parts that the log does not cover, one sentence each.
        notes: other remarks for readers, one sentence each.
    """

    times_s: tuple[float, ...]
    interval_s: float
    gaps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Step:
    """The step from one dated line to the next one."""

    lines: int
    seconds: float
    start: datetime
    end: datetime


def line_times(dates: Sequence[datetime | None], interval_s: float) -> LineTimes:
    """Returns the times of lines from their dates, or from the interval where dates are missing or agree with it.

    Args:
        dates: date of each line, in whole seconds, None where it has none.
        interval_s: interval that tegrastats was started with; dates that contradict it take precedence.

    Raises:
        ConfigError: ``interval_s`` not above 0.
        DataError: the dates go backwards, so the board's clock was set meanwhile.
    """
    if not 0 < interval_s < float("inf"):
        raise ConfigError(f"tegrastats log: interval must be above 0 s, found {interval_s}")
    steps = _steps(dates)
    even = tuple(index * interval_s for index in range(len(dates)))
    if not steps:
        return LineTimes(even, interval_s)
    if not any(step.seconds for step in steps):
        lasts = sum(step.lines for step in steps) * interval_s
        note = f"all its dates are {steps[0].start}, so times follow from the interval of {interval_s:g} s alone"
        return LineTimes(even, interval_s, (), (note,) * (lasts > 2 * DATE_STEP_S))
    by_dates = _interval(steps)
    kept = [step for step in steps if not _is_gap(step, by_dates)]
    lines, seconds = sum(step.lines for step in kept), sum(step.seconds for step in kept)
    agree = abs(lines * interval_s - seconds) <= DATE_STEP_S + TOLERANCE * seconds
    interval = interval_s if agree or not lines else by_dates
    notes = []
    if interval != interval_s:
        notes.append(
            f"its dates show a line every {interval:.3g} s, not every {interval_s:g} s as given: the dates are used"
        )
    undated = sum(date is None for date in dates)
    if undated:
        notes.append(f"{undated} of its {len(dates)} lines have no date; their times are interpolated")
    return LineTimes(_times(dates, steps, interval), interval, _gaps(steps, interval), tuple(notes))


def _steps(dates: Sequence[datetime | None]) -> list[_Step]:
    dated = [(index, date) for index, date in enumerate(dates) if date is not None]
    steps = []
    for (first, start), (second, end) in itertools.pairwise(dated):
        seconds = (end - start).total_seconds()
        if seconds < 0:
            hint = SUMMER_TIME if -seconds <= HOUR_S and -seconds > HOUR_S - 60 else ""
            raise DataError(
                f"tegrastats log: the clock goes backwards, from {start} to {end}{hint}, at line {second + 1}; record it again"
            )
        steps.append(_Step(second - first, seconds, start, end))
    return steps


def _interval(steps: Sequence[_Step]) -> float:
    """Returns seconds per line, over the steps in which nothing is missing."""
    usual = max(DATE_STEP_S, statistics.median(step.seconds / step.lines for step in steps))
    kept = [step for step in steps if step.seconds <= MAX_GAP * usual * step.lines] or steps
    return sum(step.seconds for step in kept) / sum(step.lines for step in kept) or DATE_STEP_S


def _is_gap(step: _Step, interval_s: float) -> bool:
    return step.seconds > MAX_GAP * interval_s * step.lines + DATE_STEP_S


def _gaps(steps: Sequence[_Step], interval_s: float) -> tuple[str, ...]:
    found = []
    for step in steps:
        if _is_gap(step, interval_s):
            hint = SUMMER_TIME if abs(step.seconds - HOUR_S) <= DATE_STEP_S + MAX_GAP * interval_s * step.lines else ""
            found.append(f"a gap of {step.seconds:.0f} s{hint}, from {step.start} to {step.end}")
    return tuple(found)


def _times(dates: Sequence[datetime | None], steps: Sequence[_Step], interval_s: float) -> tuple[float, ...]:
    """Returns evenly spaced times, with the length of each gap before the line that ends it."""
    extra = {}
    index = next(number for number, date in enumerate(dates) if date is not None)
    for step in steps:
        index += step.lines
        if _is_gap(step, interval_s):
            extra[index] = step.seconds - step.lines * interval_s
    late, times = 0.0, []
    for number in range(len(dates)):
        late += extra.get(number, 0.0)
        times.append(number * interval_s + late)
    return tuple(times)
