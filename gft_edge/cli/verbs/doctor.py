"""List what is installed, what works here, what does not, and why."""

from __future__ import annotations

import argparse
from dataclasses import asdict

EXAMPLE = "gft-edge doctor --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb has no arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.abilities import abilities
    from gft_edge.cli.console import result, table
    from gft_edge.errors import EXIT_OK
    from gft_edge.hardware.environment import machine, versions
    from gft_edge.hardware.this_device import module_here

    where, found, able, module = machine(), versions(), abilities(), module_here()
    data = {"machine": where, "versions": found, "abilities": [asdict(a) for a in able]}
    cpu = where["cpu"]
    lines = [
        f"machine   {where['board'] or cpu['model']}, {cpu['cores']} cores, {', '.join(cpu['features']) or 'no SIMD found'}",
        f"system    {where['system']}, Python {found['python']}",
        f"GPU       {'NVIDIA driver found' if where['nvidia_driver'] else 'no NVIDIA driver'}",
        *([f"module    {module.profile.title} ({module.evidence})"] if module else []),
        "",
        table(("package", "version"), [(name, version or "not installed") for name, version in found.items()]),
        "",
        table(("what", "works here", "why"), [(a.name, "yes" if a.works else "no", a.reason) for a in able]),
    ]
    result(args, data, "\n".join(lines))
    return EXIT_OK
