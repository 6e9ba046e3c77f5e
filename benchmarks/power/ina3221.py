"""Power rails of a Jetson from the INA3221 monitors on its module, by sysfs.

Numbers of hwmon folders change from boot to boot, so channels are found by their labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gft_edge.hardware.sysfs import read_int, read_text

HWMON = ("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*", "sys/bus/i2c/devices/*/hwmon/hwmon*")
IIO = ("sys/bus/i2c/drivers/ina3221*/*/iio:device*", "sys/bus/i2c/devices/*/iio:device*")
"""JetPack 4."""


@dataclass(frozen=True)
class Channel:
    """One rail: files of its voltage in mV and current in mA, or of its power in mW where the driver works it out."""

    rail: str
    millivolts: Path | None
    milliamperes: Path | None
    milliwatts: Path | None = None

    def read_mw(self) -> float | None:
        """Power now, mW; None when a file cannot be read."""
        if self.milliwatts is not None:
            return _float(read_int(self.milliwatts))
        if self.millivolts is None or self.milliamperes is None:
            return None
        volts, amperes = read_int(self.millivolts), read_int(self.milliamperes)
        return None if volts is None or amperes is None else volts * amperes / 1000

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read."""
        return tuple(f for f in (self.millivolts, self.milliamperes, self.milliwatts) if f is not None)


def find_channels(root: Path = Path("/")) -> tuple[Channel, ...]:
    """Every labelled channel, by label; channels that are not connected and the sum of shunt voltages are left out."""
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
    """Power of each rail now, mW; rails that do not answer are left out."""
    values = ((channel.rail, channel.read_mw()) for channel in channels)
    return {rail: value for rail, value in values if value is not None}


def _folders(root: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Folders that match, each once though links lead to it twice, monitors in the order of their addresses."""
    return sorted({path.resolve() for pattern in patterns for path in root.glob(pattern)})


def _float(value: int | None) -> float | None:
    return None if value is None else float(value)
