"""The device of this machine, as a profile that a build can be planned for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import DEVICES, Device
from gft_edge.hardware.environment import board

_MODULES = (
    ("agx orin", "agx-orin"),
    ("orin nano", "orin-nano"),
    ("orin nx", "orin-nx"),
    ("thor", "thor"),
    ("xavier nx", "xavier-nx"),
    ("agx xavier", "agx-xavier"),
)
"""Words of the device tree's model name, and how the names of that module's profiles begin."""


def device_here(root: Path = Path("/")) -> Device:
    """The Jetson module by its device tree and memory, else the first GPU nvidia-smi lists.

    Raises:
        ConfigError: no NVIDIA GPU is found.
    """
    name = board(root)
    return _discrete() if name is None else _jetson(name, _memory_gb(root))


def same_module(first: Device, second: Device) -> bool:
    """Whether two profiles are one piece of hardware, whatever its clocks."""
    return first.name.removesuffix("-super") == second.name.removesuffix("-super")


def power_mode(root: Path = Path("/")) -> str | None:
    """Number of a Jetson's power mode, which the timing of kernels depends on; None elsewhere."""
    try:
        status = (root / "var/lib/nvpmodel/status").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"pmode:(\d+)", status)
    return f"mode{int(match.group(1))}" if match else None


def _jetson(name: str, memory_gb: float) -> Device:
    words = name.lower()
    prefix = next((prefix for part, prefix in _MODULES if part in words), None)
    if prefix is None:
        raise ConfigError(f"board {name!r} is not one of the known Jetson modules; give --target DEVICE")
    found = [d for d in DEVICES.values() if d.name.startswith(prefix) and d.is_jetson]
    wants_super = "super" in words and any(d.name.endswith("-super") for d in found)
    found = [d for d in found if d.name.endswith("-super") == wants_super]
    return min(found, key=lambda d: abs(d.memory_gb - memory_gb))


def _memory_gb(root: Path) -> float:
    match = re.search(r"MemTotal:\s*(\d+) kB", (root / "proc/meminfo").read_text(encoding="utf-8"))
    return int(match.group(1)) / 1e6 if match else 0.0


def _discrete() -> Device:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        raise ConfigError(
            "no NVIDIA GPU found here (neither a Jetson board nor nvidia-smi); plan with --target DEVICE --plan"
        )
    query = [smi, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise ConfigError(f"nvidia-smi finds no GPU: {(done.stderr or done.stdout).strip() or 'no output'}")
    return parse_gpu(lines[0])


def parse_gpu(line: str) -> Device:
    """A profile from nvidia-smi's ``name, compute_cap, memory.total`` (MiB); its peaks are not known.

    Raises:
        ConfigError: another form.
    """
    match = re.fullmatch(r"\s*(.+?),\s*(\d+\.\d+),\s*(\d+)\s*", line)
    if match is None:
        raise ConfigError(f"nvidia-smi: cannot read {line!r}")
    title, capability, mib = match.groups()
    name = re.sub(r"[^a-z0-9]+", "-", title.lower().removeprefix("nvidia ")).strip("-")
    memory = round(int(mib) / 1024)
    return Device(name, title, capability, None, None, None, 0, memory, 0, 0, False, (), None, (), "nvidia-smi")
