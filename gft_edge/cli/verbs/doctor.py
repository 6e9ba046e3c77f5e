"""List what is installed, what works here, what does not and why, and what to do next; on a board also its state."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gft_edge.hardware.checkup import Checkup

EXAMPLE = "gft-edge doctor --json"
HERE = Path("/")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    parser.add_argument(
        "--root",
        type=Path,
        default=HERE,
        metavar="DIR",
        help="judge a board by a copy of its files (proc/, sys/, etc/, var/lib/, usr/lib/) instead of this machine (/)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.abilities import abilities
    from gft_edge.cli.console import result, table
    from gft_edge.errors import EXIT_OK
    from gft_edge.hardware.checkup import checkup
    from gft_edge.hardware.environment import machine, versions
    from gft_edge.hardware.this_device import module_here

    state = checkup(args.root)
    if args.root != HERE:
        result(args, {"checkup": state.to_json()}, "\n".join([*_state(state), "", *_next(state)]))
        return EXIT_OK
    where, found, able, module = machine(), versions(), abilities(), module_here()
    data = {"machine": where, "versions": found, "abilities": [asdict(a) for a in able], "checkup": state.to_json()}
    cpu = where["cpu"]
    lines = [
        f"machine   {where['board'] or cpu['model']}, {cpu['cores']} cores, {', '.join(cpu['features']) or 'no SIMD found'}",
        f"system    {where['system']}, Python {found['python']}",
        f"GPU       {'NVIDIA driver found' if where['nvidia_driver'] else 'no NVIDIA driver'}",
        *([f"module    {module.profile.title} ({module.evidence})"] if module else []),
        *(_state(state) if state.board else []),
        "",
        table(("package", "version"), [(name, version or "not installed") for name, version in found.items()]),
        "",
        table(("what", "works here", "why"), [(a.name, "yes" if a.works else "no", a.reason) for a in able]),
        "",
        *_next(state),
    ]
    result(args, data, "\n".join(lines))
    return EXIT_OK


def _state(state: Checkup) -> list[str]:
    """Returns the lines on a board."""
    parts, memory = state.tensorrt, state.memory
    if state.board is None:
        return [f"board     none (a PC, {'with' if state.driver else 'without'} an NVIDIA driver)"]
    locked = f"locked at {state.locked_mhz:.0f} MHz" if state.locked_mhz else "not locked"
    clock = "unknown" if state.gpu_mhz is None else f"{state.gpu_mhz:.0f} MHz, {locked}"
    swap = "none" if not memory.swap else f"{memory.swap} MiB" + (f", {memory.zram} of it zram" if memory.zram else "")
    return [
        f"board     {state.board} ({state.module or 'unknown module'})",
        f"release   L4T {state.l4t or 'unknown'}, JetPack {state.jetpack or 'unknown'}, Python {state.python or 'unknown'}",
        f"TensorRT  library {parts.library or 'missing'}, bindings {parts.bindings or 'missing'}, "
        f"trtexec {parts.trtexec or 'missing'}",
        f"power     mode {state.mode.name or 'unknown'}, GPU {clock}"
        + (f", hottest sensor {state.hottest_c:.0f} C" if state.hottest_c is not None else ""),
        f"memory    {memory.free if memory.free is not None else '?'} of {memory.total or '?'} MiB free, swap {swap}",
    ]


def _next(state: Checkup) -> list[str]:
    """Returns the list of what to do next."""
    lines = ["what to do next"]
    for number, action in enumerate(state.actions, start=1):
        lines.append(f"{number:2}. {'PROBLEM: ' if action.is_problem else ''}{action.why}")
        lines += [f"    {action.command}"] if action.command else []
    return lines
