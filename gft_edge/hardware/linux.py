"""Reads the present clocks and temperatures from Linux; tables are empty where a machine has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gft_edge.hardware.jetson import cpu_clocks, gpu_clock, temperatures_c
from gft_edge.hardware.sysfs import read_text


def read_clocks(root: Path = Path("/")) -> dict[str, Any]:
    """Returns governors and clocks by group of cores, the GPU's clock, temperatures by zone.

    Args:
        root: folder of sys/; recorded trees in tests.
    """
    groups = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    governors = {group.name: text for group in groups if (text := read_text(group / "scaling_governor"))}
    return {
        "governors": governors,
        "cpu_mhz": {name: clock.now for name, clock in cpu_clocks(root).items() if clock.now is not None},
        "gpu_mhz": gpu_clock(root).now,
        "temperatures_c": temperatures_c(root),
    }
