"""What a search is asked for, checked before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from gft_edge.data.splits import Split
from gft_edge.errors import ConfigError, did_you_mean

PRECISIONS = ("fp32", "fp16", "int8")
UNITS = {"ms": "ms", "mj": "mJ", "gmac": "billion MACs"}
"""Costs by name, each with its unit."""


@dataclass(frozen=True)
class Limits:
    """The most that one image may cost; None is no limit.

    Attributes:
        ms: milliseconds.
        mj: millijoules.
        gmac: billions of multiply-accumulates.

    Raises:
        ConfigError: a limit that is not a positive number.
    """

    ms: float | None = None
    mj: float | None = None
    gmac: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"--max-{name} must be a number above 0, found {value:g}")

    def items(self) -> list[tuple[str, float]]:
        """Returns name and value of the limits that are set."""
        values = (("ms", self.ms), ("mj", self.mj), ("gmac", self.gmac))
        return [(name, value) for name, value in values if value is not None]

    def describe(self) -> str:
        """Returns the limits in words; empty without one."""
        return " and ".join(f"{value:g} {UNITS[name]}" for name, value in self.items())


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        data: as for :func:`~gft_edge.data.datasets.open_images`; None is the data that the first checkpoint was trained on.
        split: part that accuracies are measured on; None is val, or test where there are no val images, so that test images have no
            part in the choice.
        images: on which the front is measured, at most.
        subset: on which the other points are measured, at most.
        points: budgets and precisions that are measured, of each checkpoint.
        precisions: some of :data:`PRECISIONS`.
        policies: files of mixed precision; each adds a precision ``int8:NAME`` by the name of the file.
        limits: of the cost.
        min_accuracy: required top-1, as a share; None requires less than 1 point of loss.
        align: the tokens that stay are a multiple of it.
        target: device whose roofline bounds the latency, or None.
        backend: whose latency is measured here, or None.
        costs: bench file of a board, or None.
        calibration_images: of INT8.
        seed: of draws.
        threads: of PyTorch; 0 takes one per core.

    Raises:
        ConfigError: unknown or repeated precisions, values out of range, two sources of the cost, a limit without a source.
    """

    data: str | None = None
    split: Split | None = None
    images: int = 1600
    subset: int = 320
    points: int = 120
    precisions: tuple[str, ...] = ("fp32",)
    policies: tuple[Path, ...] = ()
    limits: Limits = field(default_factory=Limits)
    min_accuracy: float | None = None
    align: int = 8
    target: str | None = None
    backend: str | None = None
    costs: Path | None = None
    calibration_images: int = 256
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        for name in self.precisions:
            if name not in PRECISIONS:
                raise ConfigError(
                    f"precision {name!r}{did_you_mean(name, PRECISIONS)}: unknown; there are: {', '.join(PRECISIONS)}"
                )
        if not self.precisions and not self.policies:
            raise ConfigError("no precision: give --precision fp32, or --policy FILE")
        names = self.all_precisions
        if len(set(names)) < len(names):
            raise ConfigError(
                f"precisions {', '.join(names)}: one is given twice; policies go by the name of their file"
            )
        if self.min_accuracy is not None and not 0 < self.min_accuracy <= 1:
            raise ConfigError(
                f"--min-accuracy must be a share above 0 and at most 1, or per cent such as 94%, found {self.min_accuracy:g}"
            )
        if self.align < 1:
            raise ConfigError(f"--align must be a positive integer, found {self.align}")
        if self.threads < 0:
            raise ConfigError(f"threads must be 0 (one per core) or more, found {self.threads}")
        sources = [("--target", self.target), ("--backend", self.backend), ("--costs", self.costs)]
        given = [name for name, value in sources if value is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)}: give one source of the cost")
        if self.limits.ms is not None and not given:
            raise ConfigError(
                "--max-ms needs latencies: give --backend onnxruntime (measured here), --costs BENCH.json (measured on a board) "
                "or --target DEVICE (a bound)"
            )
        if self.limits.mj is not None and self.costs is None:
            raise ConfigError("--max-mj needs energies: give --costs BENCH.json of a bench with --power")

    @property
    def all_precisions(self) -> tuple[str, ...]:
        """Names of the precisions, those of policies last."""
        return (*self.precisions, *(f"int8:{path.stem}" for path in self.policies))

    @property
    def axis(self) -> str:
        """The cost that the front is drawn over: millijoules where they are limited, else latency where there is one, else MACs."""
        if self.limits.mj is not None:
            return "mj"
        has_latency = self.target is not None or self.backend is not None or self.costs is not None
        return "ms" if has_latency else "gmac"
