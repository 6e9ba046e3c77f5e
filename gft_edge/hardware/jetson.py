"""Reads the state of a Jetson: software, power mode, clocks, temperatures, throttling.

Everything is read from files below a root folder, without root rights where the kernel allows it; values that cannot be read
are None or left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gft_edge.hardware.environment import board
from gft_edge.hardware.sysfs import read_int, read_text
from gft_edge.hardware.this_device import memory_total_kb, module_here

RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
IN_CONTAINER = re.compile(r"[rR]?(\d{1,4}(?:\.\d{1,4})*)")
POWER_MODE = re.compile(r"NV Power Mode: (\S+)\s+(\d{1,6})")
POWER_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d{1,6})\s+NAME=(\S+)\s*>")
STATUS = re.compile(r"pmode:(\d{1,6})(?:\s+fmode:(\S+))?")

JETPACKS = {
    "35.1": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5": "5.1.3",
    "35.6": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "35.6.3": "5.1.5",
    "35.6.4": "5.1.6",
    "36.2": "6.0 DP",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
    "39": "7.2 EA",
    "39.2": "7.2",
}
"""JetPack by L4T release, final zeros left out."""

GPU_DEVFREQ = ("17000000.gpu", "17000000.ga10b", "17000000.gv11b", "gpu-gpc-0")
GPU_LOAD = ("sys/devices/platform/gpu.0/load", "sys/devices/platform/bus@0/17000000.gpu/load")
OVER_CURRENT = {
    "oc1": "under-voltage",
    "oc2": "average over-current",
    "oc3": "instantaneous over-current",
}


@dataclass(frozen=True)
class Clock:
    """A clock and its limits, MHz."""

    now: float | None
    min: float | None
    max: float | None


@dataclass(frozen=True)
class PowerMode:
    """A mode of nvpmodel; its number differs from board to board, its name does not."""

    name: str | None
    number: int | None
    fan: str | None = None


@dataclass(frozen=True)
class ThrottleCounts:
    """Counters since boot, and throttle alerts now.

    Attributes:
        events: over-current and under-voltage events by counter, ``oc1`` to ``oc3``.
        alerts: state of each throttle alert, by type; it is raised above 0.
    """

    events: Mapping[str, int]
    alerts: Mapping[str, int]


def l4t(root: Path = Path("/")) -> str | None:
    """Returns the release of Jetson Linux, for example ``"36.4.3"``; in a container without the file, that of L4T_VERSION.

    Some container images write the variable as ``r36.4.3``.
    """
    match = RELEASE.search(read_text(root / "etc/nv_tegra_release") or "")
    if match:
        return f"{match[1]}.{match[2].rstrip('.')}"
    named = IN_CONTAINER.match(os.environ.get("L4T_VERSION", ""))
    return named[1] if named else None


def jetpack(release: str | None) -> str | None:
    """Returns the JetPack of an L4T release, None for an unknown one."""
    parts = (release or "").split(".")
    while len(parts) > 1 and parts[-1] == "0":
        parts.pop()
    return JETPACKS.get(".".join(parts))


def gpu_clock(root: Path = Path("/")) -> Clock:
    """Returns the clock of the GPU and the limits of the power mode."""
    for name in GPU_DEVFREQ:
        folder = root / "sys/class/devfreq" / name
        if (now := read_int(folder / "cur_freq")) is not None:
            return Clock(now / 1e6, _scaled(folder / "min_freq", 1e6), _scaled(folder / "max_freq", 1e6))
    return Clock(None, None, None)


def locked_mhz(root: Path = Path("/")) -> float | None:
    """Returns the clock that the GPU is locked to, by ``jetson_clocks`` or by hand; None where it may vary."""
    clock = gpu_clock(root)
    return clock.min if clock.min == clock.max else None


def gpu_load(root: Path = Path("/")) -> float | None:
    """Returns the busy share of the GPU in per cent; the kernel counts per mille."""
    values = (_scaled(root / name, 10) for name in GPU_LOAD)
    return next((value for value in values if value is not None), None)


def cpu_clocks(root: Path = Path("/")) -> dict[str, Clock]:
    """Returns the clock of each group of cores, by the kernel's name."""
    return {
        folder.name: Clock(*(_scaled(folder / f"scaling_{which}_freq", 1e3) for which in ("cur", "min", "max")))
        for folder in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    }


def temperatures_c(root: Path = Path("/")) -> dict[str, float]:
    """Returns the temperatures by type of thermal zone, degrees Celsius; power-gated units answer EAGAIN and are left out."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = read_text(zone / "type"), _scaled(zone / "temp", 1e3)
        if name and value is not None and value > -200:
            found[name.removesuffix("-thermal").removesuffix("_thermal")] = value
    return found


def throttle_counts(root: Path = Path("/")) -> ThrottleCounts:
    """Reads the over-current counters and throttle alerts."""
    events = {}
    for folder in (root / "sys/class/hwmon").glob("hwmon*"):
        if read_text(folder / "name") == "soctherm_oc":
            for file in sorted(folder.glob("oc*_event_cnt")):
                if (count := read_int(file)) is not None:
                    events[file.name.removesuffix("_event_cnt")] = count
    alerts = {}
    for folder in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        name, state = read_text(folder / "type"), read_int(folder / "cur_state")
        if name and name.endswith("-throttle-alert") and state is not None:
            alerts[name] = state
    return ThrottleCounts(events, alerts)


def throttling(before: ThrottleCounts, after: ThrottleCounts) -> list[str]:
    """Returns a sentence for everything that throttled between two readings; counters reset in between count from zero."""
    found = []
    for name, count in after.events.items():
        start = before.events.get(name, 0)
        times = count - start if count >= start else count
        if times:
            found.append(f"{OVER_CURRENT.get(name, name)}: {times} throttle event{'s' if times > 1 else ''} ({name})")
    raised = {name for counts in (before, after) for name, state in counts.alerts.items() if state > 0}
    return found + [f"{name} is raised" for name in sorted(raised)]


def power_mode(root: Path = Path("/"), timeout_s: float = 10, ask: bool = True) -> PowerMode:
    """Returns the power mode, by ``nvpmodel -q`` unless ``ask`` is False, else from the files it keeps."""
    status = _stored_mode(root)
    fan = status[2] if status else None
    program = shutil.which("nvpmodel") if ask else None
    if program:
        try:
            asked = subprocess.run(
                [program, "-q"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
            )
            if (match := POWER_MODE.search(asked.stdout)) is not None:
                return PowerMode(match[1], int(match[2]), fan)
        except (OSError, subprocess.TimeoutExpired):
            pass
    number = int(status[1]) if status else None
    name = next((name for name, value in power_modes(root).items() if value == number), None)
    return PowerMode(name, number, fan)


def power_mode_mark(root: Path = Path("/")) -> str | None:
    """Returns ``"mode2"`` for power mode 2, which the timing of kernels depends on; None where nvpmodel stores none."""
    status = _stored_mode(root)
    return f"mode{int(status[1])}" if status else None


def _stored_mode(root: Path) -> re.Match[str] | None:
    return STATUS.search(read_text(root / "var/lib/nvpmodel/status") or "")


def power_modes(root: Path = Path("/")) -> dict[str, int]:
    """Returns the numbers of the modes of this board by name, from nvpmodel.conf."""
    return {name: int(number) for number, name in POWER_MODEL.findall(read_text(root / "etc/nvpmodel.conf") or "")}


@contextlib.contextmanager
def watch_board(root: Path = Path("/")) -> Iterator[dict[str, Any]]:
    """Records the state of the board before and after the block, and its throttling, for a benchmark record.

    Yields:
        a dictionary filled when the block ends: ``before``, ``after`` (:func:`board_conditions`) and ``throttled``, a list of
        sentences; it stays empty on other machines.
    """
    record: dict[str, Any] = {}
    before, counts = board_conditions(root), throttle_counts(root)
    try:
        yield record
    finally:
        if before:
            throttled = throttling(counts, throttle_counts(root))
            record.update(before=before, after=board_conditions(root), throttled=throttled)


def board_conditions(root: Path = Path("/")) -> dict[str, Any]:
    """Returns the state of the board now, as plain JSON values; empty on other machines."""
    title = board(root)
    if title is None:
        return {}
    here = module_here(root)
    release = l4t(root)
    memory_kb = memory_total_kb(root)
    return {
        "board": title,
        "device": here.profile.name if here else None,
        "l4t": release,
        "jetpack": jetpack(release),
        "memory_mb": memory_kb // 1024 if memory_kb else None,
        "power_mode": asdict(power_mode(root)),
        "gpu_mhz": asdict(gpu_clock(root)),
        "gpu_load_percent": gpu_load(root),
        "cpu_mhz": {name: asdict(clock) for name, clock in cpu_clocks(root).items()},
        "temperatures_c": temperatures_c(root),
        "throttle": asdict(throttle_counts(root)),
    }


def _scaled(file: Path, divisor: float) -> float | None:
    value = read_int(file)
    return None if value is None else value / divisor
