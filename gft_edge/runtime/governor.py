"""The governor: a token budget for each frame from deadline, measured latency, temperature and power mode.

A pure state machine, without clock, thread or sensor: time is counted in frames, and the caller says what it measured. Budgets are
levels, 0 for the largest.

- *Latency.* The caller gives one latency per budget, measured at rest. A frame that takes ``r`` times the latency of its budget is
  a sign that the machine is slow, for every budget alike: the slowdown is a running quantile of ``r`` over the last frames.
- *Down at once.* A budget that no longer fits the deadline, or that temperature or power mode forbid, is left in the same frame,
  also within the dwell time: a late frame and a hot board are worse than a change.
- *Up after calm.* One level at a time, after the next larger budget was allowed and had room to spare for ``dwell`` frames in a row
  since the last change. A climb that the deadline undoes at once doubles that wait, up to :data:`LONGEST_WAIT` times.

What follows is proved by tests on simulated traces. Let every latency be ``base x slowdown x noise`` with noise within
``1 - e ... 1 + e``, and let the slowdown grow by at most ``g`` over any ``window + 1`` frames.

- With ``1 + margin >= (1 + g)(1 + e) / (1 - e)`` no frame is late in which the smallest budget would have been on time.
- With ``1 + hysteresis >= (1 + e) / (1 - e)`` and a steady load a budget that was climbed to is not left again.
- From one state a hotter frame never gets a larger budget; nor does a trace that is hotter in every frame, under a steady load.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from gft_edge.errors import ConfigError, did_you_mean

LONGEST_WAIT = 16


@dataclass(frozen=True)
class GovernorOptions:
    """How the governor decides.

    Attributes:
        dwell: frames between a change and the next one upwards.
        margin: share of the expected latency that must be free below the deadline.
        hysteresis: further share that must be free before a larger budget is taken.
        window: frames that the slowdown is estimated from.
        quantile: of these frames; 1.0 takes the slowest, which reacts in one frame, 0.8 ignores a single slow frame in eight.
        warm_c: degrees Celsius at which the largest budget is forbidden.
        hot_c: degrees Celsius at which all but the smallest are; those between follow in equal steps.
        cool_by_c: degrees Celsius below its limit at which a budget is allowed again.
        power_limits: name of a power mode to the largest budget that it allows; other modes allow all.

    Raises:
        ConfigError: a value is out of range.
    """

    dwell: int = 30
    margin: float = 0.1
    hysteresis: float = 0.15
    window: int = 8
    quantile: float = 0.8
    warm_c: float = 85.0
    hot_c: float = 95.0
    cool_by_c: float = 3.0
    power_limits: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("dwell", "window"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"governor: {name} must be a whole number of frames from 1 on, found {value!r}")
        for name in ("margin", "hysteresis", "cool_by_c"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"governor: {name} must be 0 or more, found {value!r}")
        if not 0 < self.quantile <= 1:
            raise ConfigError(f"governor: quantile must be above 0 and at most 1, found {self.quantile!r}")
        if not (math.isfinite(self.warm_c) and math.isfinite(self.hot_c) and self.warm_c <= self.hot_c):
            raise ConfigError(f"governor: warm_c must be at most hot_c, found {self.warm_c!r} and {self.hot_c!r}")


class Governor:
    """Chooses a budget for each frame.

    Attributes:
        budgets: ids, the largest first.
        level: index of the present budget.
    """

    def __init__(self, options: GovernorOptions, latencies_ms: Mapping[str, float]) -> None:
        """Begins at the largest budget.

        Args:
            options: see there.
            latencies_ms: of each budget at rest, the largest budget first. A budget counts as no faster than a smaller one.

        Raises:
            ConfigError: no budget, a latency that is no positive number, or a power limit with an unknown budget.
        """
        if not latencies_ms:
            raise ConfigError("governor: needs the latency of one budget or more")
        for budget, ms in latencies_ms.items():
            _require_ms(ms, f"latency of budget {budget}")
        self.options = options
        self.budgets = tuple(latencies_ms)
        base = list(latencies_ms.values())
        self._base = [max(base[level:]) for level in range(len(base))]
        self._power_levels = {mode: self._level(budget) for mode, budget in options.power_limits.items()}
        self._slow = deque([1.0] * options.window, options.window)
        self._thermal = 0
        self._calm = 0
        self._wait = options.dwell
        self._trial: int | None = None
        self.level = 0

    @property
    def slowdown(self) -> float:
        """The estimate of how many times slower than at rest this machine is now."""
        return sorted(self._slow)[math.ceil(self.options.quantile * len(self._slow)) - 1]

    def expected_ms(self, budget: str) -> float:
        """Returns the latency that a budget is expected to have in the next frame.

        Raises:
            ConfigError: no such budget.
        """
        return self._base[self._level(budget)] * self.slowdown

    def observe(self, budget: str, ms: float) -> None:
        """Records the latency of a frame.

        Raises:
            ConfigError: no such budget, or no positive number.
        """
        _require_ms(ms, "latency of a frame")
        self._slow.append(ms / self._base[self._level(budget)])

    def choose(self, deadline_ms: float, temperature_c: float | None = None, power_mode: str | None = None) -> str:
        """Returns the budget of the next frame; the smallest if none fits the deadline.

        Args:
            deadline_ms: for the frame; it may differ from frame to frame.
            temperature_c: hottest sensor; None, where a sensor sleeps, keeps the last limit.
            power_mode: its name; numbers of modes differ between boards.

        Raises:
            ConfigError: a deadline that is no positive number, or a temperature that is none.
        """
        _require_ms(deadline_ms, "deadline")
        options, last = self.options, len(self.budgets) - 1
        limit = max(self._thermal_level(temperature_c), self._power_levels.get(power_mode or "", 0))
        worst = self.slowdown * (1 + options.margin)
        fitting = self._first_within(deadline_ms / worst)
        needed = max(limit, fitting)
        roomy = max(limit, self._first_within(deadline_ms / (worst * (1 + options.hysteresis))))
        if self._trial is not None:
            self._trial += 1
            if self._trial > self._wait:
                self._trial, self._wait = None, options.dwell
        if needed > self.level:
            if self._trial is not None and fitting > self.level:
                self._wait = min(2 * self._wait, LONGEST_WAIT * options.dwell)
            self.level, self._calm, self._trial = min(needed, last), 0, None
        elif roomy < self.level:
            self._calm += 1
            if self._calm >= self._wait:
                self.level, self._calm, self._trial = self.level - 1, 0, 0
        else:
            self._calm = 0
        return self.budgets[self.level]

    def _first_within(self, ms: float) -> int:
        """Returns the level of the largest budget whose latency at rest is at most ``ms``, else the smallest."""
        return next((level for level, base in enumerate(self._base) if base <= ms), len(self._base) - 1)

    def _thermal_level(self, temperature_c: float | None) -> int:
        """Returns the first level that the temperature allows; a forbidden one is allowed again only ``cool_by_c`` lower."""
        if temperature_c is None:
            return self._thermal
        if not math.isfinite(temperature_c):
            raise ConfigError(f"governor: temperature must be a number or None, found {temperature_c!r}")
        options, steps = self.options, len(self.budgets) - 1
        width = (options.hot_c - options.warm_c) / max(steps - 1, 1)
        limits = [options.warm_c + width * step for step in range(steps)]
        reached = sum(temperature_c >= limit for limit in limits)
        held = sum(temperature_c >= limit - options.cool_by_c for limit in limits)
        self._thermal = max(reached, min(self._thermal, held))
        return self._thermal

    def _level(self, budget: str) -> int:
        if budget not in self.budgets:
            raise ConfigError(
                f"governor: no budget {budget!r}{did_you_mean(budget, self.budgets)}; there are: {', '.join(self.budgets)}"
            )
        return self.budgets.index(budget)


def _require_ms(value: float, what: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"governor: {what} must be a positive number of milliseconds, found {value!r}")
