"""Recognises this machine: its device profile, with the evidence. One answer for builds, engine checks and benchmarks."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import DEVICES, MODEL_WORDS, PARTS, Device
from gft_edge.hardware.environment import board
from gft_edge.hardware.sysfs import read_text

TIMEOUT_S = 30
"""A driver that hangs makes nvidia-smi wait for ever."""


@dataclass(frozen=True)
class Recognized:
    """A device profile and what it was recognised by.

    Args:
        profile: of this machine.
        evidence: for people, for example ``"part number p3767-0005 in the device tree, 7.8 GB of memory"``.
    """

    profile: Device
    evidence: str


def device_here(root: Path = Path("/")) -> Recognized:
    """Returns the Jetson module by its device tree and memory, else the first GPU that nvidia-smi lists.

    Raises:
        ConfigError: no NVIDIA GPU is found, nvidia-smi does not answer, or the board is unknown.
    """
    found = module_here(root)
    if found is not None:
        return found
    name = board(root)
    if name is not None:
        raise ConfigError(f"board {name!r} is not one of the known Jetson modules; give --target DEVICE")
    return _first_gpu(root)


def module_here(root: Path = Path("/")) -> Recognized | None:
    """Returns the Jetson module by its part number, else by the words of its name; None on other machines.

    Where several profiles have that part number or name, the nearest memory decides, and the largest where the memory is
    unknown. It is the "super" profile where the system allows its clocks, whatever the power mode: a bound must hold in all of
    them.
    """
    tree = root / "proc/device-tree"
    compatible, name = (read_text(tree / "compatible") or "").lower(), (board(root) or "").lower()
    part = next((part for part in PARTS if part in compatible), None)
    words = next((words for words in MODEL_WORDS if words in name), None)
    if part is not None:
        start, evidence = PARTS[part], f"part number {part} in the device tree"
    elif words is not None:
        start, evidence = MODEL_WORDS[words], f"{words!r} in the name of the board"
    else:
        return None
    found = [profile for profile in DEVICES.values() if profile.is_jetson and profile.name.startswith(start)]
    is_super = "super" in compatible or "super" in (read_text(tree / "model") or "").lower()
    found = [p for p in found if p.name.endswith("-super") == is_super] or found
    total_kb = memory_total_kb(root)
    if total_kb is None:
        return Recognized(max(found, key=lambda p: p.memory_gb), evidence)
    memory_gb = total_kb / 1e6
    nearest = min(found, key=lambda p: abs(p.memory_gb - memory_gb))
    return Recognized(nearest, f"{evidence}, {memory_gb:.1f} GB of memory")


def memory_total_kb(root: Path = Path("/")) -> int | None:
    """Returns the memory that the kernel manages; None where it is unknown."""
    return memory_kb("MemTotal", root)


def memory_kb(name: str, root: Path = Path("/")) -> int | None:
    """Returns a value of /proc/meminfo, for example ``"MemAvailable"``; None where it is unknown."""
    match = re.search(rf"^{name}:\s+(\d{{1,15}}) kB", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) if match else None


def same_module(first: Device, second: Device) -> bool:
    """Returns True if two profiles are one piece of hardware, whatever its clocks."""
    return first.name.removesuffix("-super") == second.name.removesuffix("-super")


def _first_gpu(root: Path) -> Recognized:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        raise ConfigError(
            "no NVIDIA GPU found here (neither a Jetson board nor nvidia-smi); plan with --target DEVICE --plan"
        )
    query = [smi, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            query, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"nvidia-smi gives no answer in {TIMEOUT_S} s; check the driver, or give --target DEVICE"
        ) from None
    except OSError as error:
        raise ConfigError(f"nvidia-smi cannot be run ({error.strerror or error}); give --target DEVICE") from None
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise ConfigError(f"nvidia-smi finds no GPU: {(done.stderr or done.stdout).strip() or 'no output'}")
    return Recognized(parse_gpu(lines[0], memory_total_kb(root)), "first GPU of nvidia-smi")


def parse_gpu(line: str, shared_kb: int | None = None) -> Device:
    """Returns a profile from nvidia-smi's ``name, compute_cap, memory.total`` (MiB); its peaks are unknown.

    Args:
        line: of its CSV output, without header and units.
        shared_kb: memory of the machine. It counts where nvidia-smi gives ``[N/A]``: such a GPU has none of its own.

    Raises:
        ConfigError: another format, or ``[N/A]`` without ``shared_kb``.
    """
    match = re.fullmatch(r"\s*(.+?),\s*(\d+\.\d+),\s*(\d+|\[N/A\]|\[Not Supported\])\s*", line)
    if match is None:
        raise ConfigError(
            f"nvidia-smi: cannot read {line!r} as name, compute capability and memory; give --target DEVICE"
        )
    title, capability, mib = match.groups()
    name = re.sub(r"[^a-z0-9]+", "-", title.lower().removeprefix("nvidia ")).strip("-")
    if mib.isdigit():
        memory = round(int(mib) / 1024)
    elif shared_kb is not None:
        memory = round(shared_kb / 1024**2)
    else:
        raise ConfigError(f"nvidia-smi: {line!r} has no memory, nor does /proc/meminfo; give --target DEVICE")
    return Device(name, title, capability, None, None, None, 0, memory, 0, 0, False, (), None, (), "nvidia-smi")
