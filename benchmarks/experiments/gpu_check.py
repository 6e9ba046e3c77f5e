"""Runs what the GPU or board at hand can run, and says what it left out and why: `make gpu-check`.

For each backend that computes on a GPU it says whether it can run here. For those that need no engine it compares the built-in
model with its golden outputs; then it runs the tests marked gpu or jetson. Exit code 1 when a test or a comparison failed;
0 otherwise, also when nothing could run, which the last line says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.cli.abilities import Use, ability
from gft_edge.errors import GFTEdgeError, exit_code
from gft_edge.hardware.environment import board, has_nvidia_driver, versions
from gft_edge.hardware.tensorrt_versions import rtx_refusal
from gft_edge.hardware.this_device import device_here
from gft_edge.runtime.backends.table import BACKENDS, Backend


@dataclass(frozen=True)
class Check:
    """A check of a backend.

    Attributes:
        name: of the backend.
        skipped: why it cannot run here, empty if it can.
    """

    name: str
    skipped: str = ""


def plan(found: dict[str, str | None], driver: bool, capability: str | None) -> list[Check]:
    """Returns a check for every backend that computes on a GPU.

    Args:
        found: version of each distribution, None where it is not installed.
        driver: an NVIDIA driver is loaded.
        capability: compute capability of the GPU, None where it is unknown.
    """
    return [Check(b.name, _reason(b, found, driver, capability)) for b in BACKENDS if b.on_gpu]


def _reason(backend: Backend, found: dict[str, str | None], driver: bool, capability: str | None) -> str:
    if not driver:
        return "no NVIDIA driver is loaded"
    able = ability(Use(backend.name, backend.packages, driver=True), found, driver)
    if not able.works:
        return able.reason
    if backend.name in ("tensorrt_rtx", "onnxruntime-rtx") and capability is not None:
        return rtx_refusal(capability) or ""
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the plan, runs it, and prints what ran."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(
        arguments
    )
    driver, capability, where = has_nvidia_driver(), None, board() or "no NVIDIA GPU"
    if driver:
        try:
            profile = device_here().profile
            capability = profile.compute_capability
            where = f"{profile.title}, compute capability {capability}"
        except GFTEdgeError as error:
            where = str(error)
    print(f"machine: {where}")
    checks = plan(versions(), driver, capability)
    for check in checks:
        print(f"{'skipped' if check.skipped else 'runs':8} {check.name}{': ' + check.skipped if check.skipped else ''}")
    if not driver:
        print("nothing ran: every check needs an NVIDIA GPU or a Jetson board")
        return 0
    failed = [check.name for check in checks if not check.skipped and not _run(check)]
    failed += [] if _tests() else ["tests marked gpu or jetson"]
    ran = sum(not check.skipped for check in checks)
    print(f"{ran} of {len(checks)} backends ran; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _run(check: Check) -> bool:
    """Compares the built-in model on a backend with its golden outputs; engines are covered by the tests."""
    backend = next(b for b in BACKENDS if b.name == check.name)
    if backend.runs_engines:
        print(f"{check.name}: by the tests")
        return True
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        key = ":builtin" if backend.takes == "checkpoint" else ""
        commands = (
            ["export", "builtin", "--out", str(artifact), "--batch", "1:4:8"],
            ["verify", str(artifact), "--backend", f"{check.name}{key}"],
        )
        return all(not subprocess.run([sys.executable, "-m", "gft_edge.cli.main", *c]).returncode for c in commands)


def _tests() -> bool:
    return not subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu or jetson"]).returncode


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
