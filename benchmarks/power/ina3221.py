"""Power rails of a Jetson from the INA3221 monitors on its module, through sysfs.

The numbers of hwmon folders change from boot to boot, so channels are found by their labels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gft_edge.benchmarks.power.source import Machine, Reading, Source, require_total
from gft_edge.errors import ConfigError
from gft_edge.hardware.jetson import gpu_clock
from gft_edge.hardware.sysfs import read_int, read_text

INTERVAL_S = 0.05

HWMON = ("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*", "sys/bus/i2c/devices/*/hwmon/hwmon*")
IIO = ("sys/bus/i2c/drivers/ina3221*/*/iio:device*", "sys/bus/i2c/devices/*/iio:device*")
"""JetPack 4."""


@dataclass(frozen=True)
class Channel:
    """The files of one rail: voltage in mV and current in mA, or power in mW where the driver computes it."""

    rail: str
    millivolts: Path | None
    milliamperes: Path | None
    milliwatts: Path | None = None

    def read_mw(self) -> float | None:
        """Returns the present power in mW; None if a file cannot be read."""
        if self.milliwatts is not None:
            return _float(read_int(self.milliwatts))
        if self.millivolts is None or self.milliamperes is None:
            return None
        volts, amperes = read_int(self.millivolts), read_int(self.milliamperes)
        return None if volts is None or amperes is None else volts * amperes / 1000

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that :meth:`read_mw` reads."""
        return tuple(f for f in (self.millivolts, self.milliamperes, self.milliwatts) if f is not None)


def find_channels(root: Path = Path("/")) -> tuple[Channel, ...]:
    """Returns every labelled channel, sorted by label, without unconnected channels and the sum of shunt voltages."""
    found: dict[str, Channel] = {}
    for folder in _folders(root, HWMON):
        for label in sorted(folder.glob("in[1-3]_label")):  # in7 is the sum of shunt voltages
            number = label.name[2 : -len("_label")]
            rail = read_text(label)
            current = folder / f"curr{number}_input"
            if rail and rail != "NC" and current.exists():
                found.setdefault(rail, Channel(rail, folder / f"in{number}_input", current))
    for folder in _folders(root, IIO):
        for label in sorted(folder.glob("rail_name_*")):
            number = label.name[len("rail_name_") :]
            rail = read_text(label)
            power = folder / f"in_power{number}_input"
            if rail and rail != "NC" and power.exists():
                found.setdefault(rail, Channel(rail, None, None, power))
    return tuple(found[rail] for rail in sorted(found))


def read_rails(channels: tuple[Channel, ...]) -> Mapping[str, float]:
    """Returns the present power of each rail in mW, without rails that do not answer."""
    values = ((channel.rail, channel.read_mw()) for channel in channels)
    return {rail: value for rail, value in values if value is not None}


def open_source(machine: Machine) -> Source:
    """Opens the monitors of a board.

    Raises:
        ConfigError: no monitor, no known total, or no permission.
    """
    channels = find_channels(machine.root)
    if not channels:
        raise ConfigError(f"ina3221: no labelled power monitor below {machine.root / 'sys/bus/i2c'}")
    rails = require_total((channel.rail for channel in channels), "ina3221")
    needed = tuple(channel for channel in channels if channel.rail in rails)
    for channel in needed:
        for file in channel.files:
            try:
                file.read_bytes()
            except PermissionError:
                raise ConfigError(f"ina3221: no permission to read {file}; run with sudo") from None
            except OSError:
                pass  # the monitor sleeps and may answer later

    def readings(stop: threading.Event) -> Iterator[Reading]:
        while not stop.wait(INTERVAL_S):
            started = time.perf_counter()
            power = read_rails(needed)
            yield Reading((started + time.perf_counter()) / 2, power, gpu_clock(machine.root).now)

    return Source("ina3221", rails, INTERVAL_S, readings, lambda: None)


def _folders(root: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Returns the folders that match, each once even if two links lead to it, monitors in the order of their addresses."""
    return sorted({path.resolve() for pattern in patterns for path in root.glob(pattern)})


def _float(value: int | None) -> float | None:
    return None if value is None else float(value)
