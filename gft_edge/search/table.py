"""Latency tables: measured budgets of one model on one machine and backend, and the cost model that they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from gft_edge.benchmarks.measuring.artifact_facts import architecture
from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError, did_you_mean
from gft_edge.model.macs import count_macs
from gft_edge.search.latency import FEWEST, Fit, fit_latencies
from gft_edge.search.point import Cost, OperatingPoint


def require_architecture(found: object, config: GFTConfig, what: str, remedy: str) -> None:
    """Raises ConfigError, naming the first difference, unless ``found`` is the :func:`architecture` of a model."""
    expected = architecture(config)
    if found == expected:
        return
    fields = found if isinstance(found, dict) else {}
    key = next((key for key in sorted(expected) if fields.get(key) != expected[key]), "fields")
    raise ConfigError(
        f"{what} is of another model: {key} {fields.get(key)!r}, this one has {expected.get(key)!r}; {remedy}"
    )


@dataclass(frozen=True)
class LatencyTable:
    """Measured budgets of one precision.

    Attributes:
        where: names the source in messages, such as ``"bench file b.json"``.
        precision: of the model.
        ms: milliseconds of one image by budget.
        mj: millijoules of one image by budget, where they were measured.
        is_exact: a measured budget has its measured figure; else every budget has the fitted one, so that the costs of all
            budgets are sums over blocks.
    """

    where: str
    precision: str
    ms: Mapping[TokenBudget, float]
    mj: Mapping[TokenBudget, float] = field(default_factory=dict)
    is_exact: bool = False

    def cost(self, config: GFTConfig, budget: TokenBudget) -> Cost:
        """Returns the cost of a budget.

        Raises:
            ConfigError: it lies outside of the measured range, or too few budgets are measured to interpolate.
        """
        gmac = count_macs(config, budget) / 1e9
        if self.is_exact and budget in self.ms:
            return Cost(self.ms[budget], gmac, "measured", self.mj.get(budget))
        self._require_range(budget)
        ms, mj = self._fits(config)
        return Cost(ms.predict(config, budget), gmac, "measured", mj.predict(config, budget) if mj else None)

    def _require_range(self, budget: TokenBudget) -> None:
        if len(self.ms) < FEWEST:
            known = ", ".join(sorted(b.id for b in self.ms))
            raise ConfigError(
                f"{self.where}: budget {budget.id} in {self.precision} is not measured, and {len(self.ms)} budgets ({known}) are "
                f"too few to interpolate; measure {FEWEST} or more"
            )
        for stage, kept in enumerate(budget.keep):
            low, high = (end(b.keep[stage] for b in self.ms) for end in (min, max))
            if not low <= kept <= high:
                raise ConfigError(
                    f"{self.where}: budget {budget.id} is outside of the measured range: stage {stage + 1} keeps {kept}, measured "
                    f"are {low} to {high}; measure budgets around it too"
                )

    @cached_property
    def _known(self) -> dict[str, tuple[Fit, Fit | None]]:
        return {}

    def _fits(self, config: GFTConfig) -> tuple[Fit, Fit | None]:
        key = repr(architecture(config))
        if key not in self._known:
            mj = fit_latencies(config, self.mj) if len(self.mj) >= FEWEST else None
            self._known[key] = fit_latencies(config, self.ms), mj
        return self._known[key]


@dataclass(frozen=True)
class TableCosts:
    """The cost model of latency tables; see :data:`gft_edge.search.point.CostModel`.

    Attributes:
        config: of the measured model; only its budget may differ from that of a point.
        tables: by precision.
    """

    config: GFTConfig
    tables: Mapping[str, LatencyTable]

    def __call__(self, point: OperatingPoint) -> Cost:
        """Returns the cost of a point.

        Raises:
            ConfigError: another model, a precision without a table, or a budget outside of the measured range.
        """
        if point.precision not in self.tables:
            near = did_you_mean(point.precision, self.tables)
            raise ConfigError(
                f"costs: precision {point.precision!r} is not measured{near}; there are: {', '.join(self.tables)}"
            )
        table = self.tables[point.precision]
        require_architecture(
            architecture(point.config),
            self.config,
            f"point of {point.checkpoint}",
            f"{table.where} has no figures of it",
        )
        return table.cost(point.config, point.budget)
