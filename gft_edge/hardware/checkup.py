"""The state of a board or PC for deployment, and what to do next, in order, with commands."""

from __future__ import annotations

import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gft_edge.errors import ConfigError
from gft_edge.hardware.environment import board, has_nvidia_driver
from gft_edge.hardware.installed import TensorRTParts, system_python, tensorrt_parts
from gft_edge.hardware.jetson import (
    OVER_CURRENT,
    PowerMode,
    gpu_clock,
    jetpack,
    l4t,
    locked_mhz,
    power_mode,
    power_modes,
    temperatures_c,
    throttle_counts,
)
from gft_edge.hardware.sysfs import read_text
from gft_edge.hardware.tensorrt_versions import generation
from gft_edge.hardware.this_device import memory_kb, module_here

BUILD_MB = 3000
"""Free memory below which a build of a ViT-B engine is likely to be killed."""
SMALL_MB = 10_000
"""Memory of modules on which a build needs swap on a disk."""
OLDEST_L4T = 36


@dataclass(frozen=True)
class Action:
    """One thing to do next.

    Attributes:
        why: a sentence.
        command: for a shell, empty where there is none.
        is_problem: something does not work until it is done; else it makes measurements faster or repeatable.
    """

    why: str
    command: str = ""
    is_problem: bool = False


@dataclass(frozen=True)
class Memory:
    """Memory in MiB; None where unknown.

    Attributes:
        total, free: of the system; free is what new processes can have.
        swap: total.
        zram: part of the swap that lies compressed in memory, not on a disk.
    """

    total: int | None
    free: int | None
    swap: int | None
    zram: int


@dataclass(frozen=True)
class Checkup:
    """What :func:`checkup` found.

    Attributes:
        board: name in the device tree; None on a PC.
        module: title of the device profile.
        driver: an NVIDIA driver is loaded.
        l4t, jetpack: releases.
        tensorrt: versions of its parts.
        python, own_python: of the system, and of this process; the second is None for a recorded tree.
        mode: power mode.
        gpu_mhz: clock now.
        locked_mhz: clock that the GPU is locked to, None where it may vary.
        memory: see there.
        hottest_c: hottest sensor.
        actions: what to do next, in order.
    """

    board: str | None
    module: str | None
    driver: bool
    l4t: str | None
    jetpack: str | None
    tensorrt: TensorRTParts
    python: str | None
    own_python: str | None
    mode: PowerMode
    gpu_mhz: float | None
    locked_mhz: float | None
    memory: Memory
    hottest_c: float | None
    actions: tuple[Action, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain JSON values."""
        return asdict(self)


def checkup(root: Path = Path("/")) -> Checkup:
    """Reads the state of a system and lists what to do next.

    Args:
        root: folder of proc/, sys/, etc/, var/ and usr/; this machine's or recorded ones.

    Raises:
        ConfigError: no such folder, or one without proc/ and sys/.
    """
    if not any((root / name).is_dir() for name in ("proc", "sys")):
        raise ConfigError(f"--root {root}: no folder with proc/ or sys/; give / or a copy of a board's files")
    here, release, title = module_here(root), l4t(root), board(root)
    is_jetson = title is not None
    state = Checkup(
        board=title,
        module=here.profile.title if here else None,
        driver=has_nvidia_driver(root) or is_jetson,
        l4t=release if is_jetson else None,
        jetpack=jetpack(release) if is_jetson else None,
        tensorrt=tensorrt_parts(root),
        python=system_python(root),
        own_python=platform.python_version() if root == Path("/") else None,
        mode=power_mode(root, ask=root == Path("/")),
        gpu_mhz=gpu_clock(root).now,
        locked_mhz=locked_mhz(root),
        memory=read_memory(root),
        hottest_c=max(temperatures_c(root).values(), default=None),
    )
    actions = _board_actions(state, root) if is_jetson else _pc_actions(state)
    return Checkup(**{**state.__dict__, "actions": tuple(actions)})


def read_memory(root: Path = Path("/")) -> Memory:
    """Returns memory and swap."""
    total, free, swap = (memory_kb(name, root) for name in ("MemTotal", "MemAvailable", "SwapTotal"))
    sizes = re.findall(r"^/dev/zram\d+\s+\S+\s+(\d{1,15})", read_text(root / "proc/swaps") or "", re.MULTILINE)
    mib = [None if kb is None else kb // 1024 for kb in (total, free, swap)]
    return Memory(mib[0], mib[1], mib[2], sum(map(int, sizes)) // 1024)


def _board_actions(state: Checkup, root: Path) -> list[Action]:
    if state.l4t is not None and int(state.l4t.split(".")[0]) < OLDEST_L4T:
        why = f"L4T {state.l4t} is older than JetPack 6 (L4T {OLDEST_L4T}), the oldest that gft-edge supports"
        if state.module is not None and "Xavier" in state.module:
            return [Action(f"{why}, and Xavier modules have no newer one; use another board", is_problem=True)]
        return [Action(f"{why}; flash JetPack 6 or newer with NVIDIA's SDK Manager", is_problem=True)]
    actions = []
    if state.l4t is None:
        why = "etc/nv_tegra_release cannot be read, so the release is unknown; in a container mount it"
        actions.append(Action(why, "docker run -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro ...", True))
    return [
        *actions,
        *software_actions(state),
        *_memory_actions(state.memory),
        *_speed_actions(state, root),
        Action("build the engines on this board, in this power mode", "gft-edge build ARTIFACT --target this-gpu"),
        Action("check them against the outputs that were exported", "gft-edge verify ARTIFACT --backend tensorrt"),
    ]


def software_actions(state: Checkup) -> list[Action]:
    """Returns what is wrong with the TensorRT and the Python of a system."""
    parts, actions = state.tensorrt, []
    packages = {"library": "tensorrt", "bindings": "python3-libnvinfer", "trtexec": "libnvinfer-bin"}
    missing = [packages[name] for name, version in asdict(parts).items() if version is None]
    if missing:
        why = f"TensorRT is incomplete: {', '.join(missing)} not installed"
        actions.append(Action(why, f"sudo apt install {' '.join(missing)}", True))
    if parts.differing:
        named = ", ".join(f"{name} {version}" for name, version in asdict(parts).items() if version)
        why = f"the parts of TensorRT differ ({named}); an engine of one is refused by the other"
        command = "pip uninstall tensorrt; sudo apt install --reinstall tensorrt python3-libnvinfer libnvinfer-bin"
        actions.append(Action(why, command, True))
    if parts.library is not None:
        try:
            generation(".".join(parts.library.split(".")[:3]))
        except ConfigError as error:
            actions.append(Action(str(error), is_problem=True))
    if state.python and state.own_python and not f"{state.own_python}.".startswith(f"{state.python}."):
        why = f"this is Python {state.own_python}; JetPack's TensorRT can be imported by Python {state.python} alone"
        actions.append(Action(why, f"python{state.python} -m venv --system-site-packages ~/gft", True))
    return actions


def _memory_actions(memory: Memory) -> list[Action]:
    actions = []
    on_disk = (memory.swap or 0) - memory.zram
    if memory.total is not None and memory.total < SMALL_MB and on_disk < memory.total // 4:
        found = f"the {memory.zram} MiB of swap are in memory too (zram)" if memory.zram else "there is no swap"
        why = f"{memory.total} MiB of memory and {found}: a build may be killed; add a swap file"
        command = "sudo fallocate -l 8G /swap && sudo chmod 600 /swap && sudo mkswap /swap && sudo swapon /swap"
        actions.append(Action(why, command))
    if memory.free is not None and memory.free < BUILD_MB:
        why = f"{memory.free} MiB of memory are free, a build takes about {BUILD_MB}: stop the desktop"
        actions.append(Action(why, "sudo systemctl isolate multi-user.target"))
    return actions


def _speed_actions(state: Checkup, root: Path) -> list[Action]:
    actions = []
    counts = throttle_counts(root)
    named = [f"{OVER_CURRENT.get(name, name)} {count} times" for name, count in counts.events.items() if count]
    named += [f"{name} is raised" for name, value in counts.alerts.items() if value > 0]
    if named:
        why = f"the board throttled since it started ({', '.join(named)}): check supply and fan, or take a lower power mode"
        actions.append(Action(why, "sudo nvpmodel -q"))
    fastest = next((name for name in power_modes(root) if name.startswith("MAXN")), None)
    if fastest and state.mode.name != fastest:
        why = f"power mode is {state.mode.name or 'unknown'}, the fastest is {fastest}; choose before building"
        actions.append(Action(why, f"sudo nvpmodel -m {power_modes(root)[fastest]}"))
    if state.locked_mhz is None:
        actions.append(Action("the clocks vary; lock them for a measurement", "sudo jetson_clocks"))
    return actions


def _pc_actions(state: Checkup) -> list[Action]:
    if not state.driver:
        return [
            Action("no NVIDIA driver is loaded: models run on the processor", "gft-edge bench ARTIFACT"),
            Action("plan engines for a board without one", "gft-edge build ARTIFACT --target orin-nano --plan"),
        ]
    if state.tensorrt.differing:
        return software_actions(state)
    if state.tensorrt.bindings is None:
        return [Action("the TensorRT bindings are not installed", "pip install 'gft-edge[trt]'", True)]
    return [Action("build engines for this GPU", "gft-edge build ARTIFACT --target this-gpu")]
