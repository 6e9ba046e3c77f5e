"""What Linux tells of clocks and temperatures, read from sysfs; a machine that tells nothing gives empty tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_clocks(root: Path = Path("/")) -> dict[str, Any]:
    """Clocks and temperatures of this moment.

    Args:
        root: where sys/ lies; recorded trees in tests.

    Returns:
        ``governors`` (of the cores, each named once), ``cpu_mhz`` (lowest and highest current clock of the cores, or None),
        ``gpu_mhz`` by devfreq device, ``temperatures_c`` by thermal zone. What cannot be read is left out: a power-gated
        sensor answers EAGAIN.
    """
    cores = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    governors = {text for core in cores if (text := _text(core / "scaling_governor"))}
    clocks = [khz / 1e3 for core in cores if (khz := _number(core / "scaling_cur_freq")) is not None]
    gpus = {
        device.name: hertz / 1e6
        for device in sorted((root / "sys/class/devfreq").glob("*"))
        if "gpu" in device.name and (hertz := _number(device / "cur_freq")) is not None
    }
    zones = {
        _text(zone / "type") or zone.name: millidegrees / 1e3
        for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"))
        if (millidegrees := _number(zone / "temp")) is not None and millidegrees > -200_000  # -256 C: switched off
    }
    return {
        "governors": sorted(governors),
        "cpu_mhz": [min(clocks), max(clocks)] if clocks else None,
        "gpu_mhz": gpus,
        "temperatures_c": zones,
    }


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _number(file: Path) -> int | None:
    try:
        return int(_text(file) or "")
    except ValueError:
        return None
