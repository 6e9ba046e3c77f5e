"""The interface between a power meter and what it reads: a source yields samples of power rails until it is stopped.

A new source is a module with a function of type :data:`Opener`, and one row in :data:`gft_edge.benchmarks.power.meter.SOURCES`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import DEVICES

FIRST_SAMPLE_S = 5.0
"""How long a source may take for its first sample."""


@dataclass(frozen=True)
class Machine:
    """Machine on which sources are searched.

    Attributes:
        root: folder of ``sys``; another one than ``/`` in tests.
        gpu: index of the GPU.
    """

    root: Path = Path("/")
    gpu: int = 0


@dataclass(frozen=True)
class Reading:
    """One sample.

    Attributes:
        time_s: on the clock of ``time.perf_counter``.
        rails_mw: power of each rail.
        gpu_mhz: clock of the GPU, None where the source does not report it.
        slowdowns: reasons why that clock is held down, where the source reports them.
    """

    time_s: float
    rails_mw: Mapping[str, float]
    gpu_mhz: float | None = None
    slowdowns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """An open source of samples.

    Attributes:
        name: of the source.
        rails: rails whose sum is the total.
        interval_s: nominal time between samples.
        readings: yields samples until the event is set.
        close: releases what was opened, and ends ``readings`` if it waits for data.
    """

    name: str
    rails: tuple[str, ...]
    interval_s: float
    readings: Callable[[threading.Event], Iterator[Reading]]
    close: Callable[[], None]


Opener = Callable[[Machine], Source]
"""Opens a source; raises a GFTEdgeError, which begins with the source's name, if it does not work on the machine."""


def total_rails(rails: Iterable[str]) -> tuple[str, ...] | None:
    """Returns those rails whose sum is the power of the whole module; None if the rails match no known board."""
    found = set(rails)
    known = dict.fromkeys(profile.total_rails for profile in DEVICES.values() if profile.total_rails)
    return next((names for names in known if found.issuperset(names)), None)


def require_total(rails: Iterable[str], where: str) -> tuple[str, ...]:
    """Returns :func:`total_rails`.

    Raises:
        ConfigError: the rails match no known board.
    """
    rails = sorted(rails)
    if (total := total_rails(rails)) is None:
        raise ConfigError(f"{where}: rails {', '.join(rails) or 'none'} are not known to make up the power of a board")
    return total
