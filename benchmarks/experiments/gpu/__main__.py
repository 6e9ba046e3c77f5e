"""Speed and numerics on one NVIDIA GPU, in PyTorch: inference as CUDA graphs, training step, compilation. Needs no data.

python -m gft_edge.benchmarks.experiments.gpu --out runs/bench/gpu.json [--quick] [--only inference,training]

From a plain checkout, without installing anything:

    mkdir -p /tmp/gft/gft_edge && ln -sfn $PWD/gft_edge/* $PWD/export $PWD/calibration $PWD/benchmarks /tmp/gft/gft_edge
    PYTHONPATH=/tmp/gft python3 -m gft_edge.benchmarks.experiments.gpu --out gpu.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from gft_edge.benchmarks.experiments import compile_speed
from gft_edge.benchmarks.experiments.gpu import compiled, inference, kernels, numerics, pieces, resolution, training
from gft_edge.benchmarks.experiments.gpu.results import plain, targets, text
from gft_edge.benchmarks.experiments.gpu.scale import (
    MOST_SECONDS,
    SECONDS,
    Place,
    Scale,
    full_scale,
    quick_scale,
    reason,
)
from gft_edge.benchmarks.measuring.protocol import commit, conditions
from gft_edge.errors import ConfigError, did_you_mean, exit_code
from gft_edge.files import require_writable, write_json

Say = Callable[[str], None]
Part = Callable[[Scale, Place, float, Say], dict[str, Any]]

GPU_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "temperature.gpu")


def gpu_state() -> dict[str, str] | None:
    """Returns name, driver, clocks, power and temperature of the first GPU; None if nvidia-smi does not say."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(GPU_FIELDS, (value.strip() for value in done.stdout.split(","))))


def _compile(scale: Scale, place: Place, until: float, say: Say) -> dict[str, Any]:
    backend = "inductor" if place.is_gpu else "aot_eager"  # on a CPU the part only shows that it runs
    return compile_speed.in_fresh_processes(scale.config, str(place.device), backend, until=until, say=say)


PARTS: dict[str, Part] = {
    "inference": inference.run,
    "resolution": resolution.run,
    "training": training.run,
    "kernels": kernels.run,
    "numerics": numerics.run,
    "pieces": pieces.run,
    "compiled": compiled.run,
    "compile": _compile,
}


def run(scale: Scale, names: Sequence[str], say: Say) -> dict[str, Any]:
    """Runs parts one after the other; a part that fails leaves its error and does not stop the others.

    Args:
        scale: sizes.
        names: of :data:`PARTS`.
        say: receives lines of progress.

    Returns:
        all measurements as plain JSON values.
    """
    place = Place.here()
    started = time.monotonic()
    parts: dict[str, Any] = {}
    before = gpu_state()
    for name in names:
        began = time.monotonic()
        until = min(began + SECONDS[name], started + MOST_SECONDS)
        say(f"{name}, at most {max(until - began, 0):.0f} s")
        try:
            parts[name] = PARTS[name](scale, place, until, say)
        except Exception as error:
            traceback.print_exc()
            parts[name] = {"error": reason(error)}
        parts[name] |= {"seconds": time.monotonic() - began, "gpu_after": gpu_state()}
        if place.is_gpu:
            torch.cuda.empty_cache()
    return plain(
        {
            "scale": scale.name,
            "device": str(place.device),
            "dtype": str(place.dtype),
            "gpu": before,
            "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "timm": timm.__version__},
            "machine": {**conditions(), "commit": commit(Path(__file__).resolve().parent)},  # links may lead here
            "model": scale.config.to_json(),
            "seconds": time.monotonic() - started,
            "targets": targets(parts, scale.name == "full"),
            "parts": parts,
        }
    )


def _names(chosen: str) -> list[str]:
    names = [name.strip() for name in chosen.split(",")]
    for name in names:
        if name not in SECONDS:
            raise ConfigError(f"--only: no part {name!r}{did_you_mean(name, SECONDS)}; there are: {', '.join(SECONDS)}")
    return [name for name in SECONDS if name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes the JSON file and prints the tables; returns 0 even if targets are missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="figures as JSON")
    parser.add_argument("--only", default=",".join(SECONDS), metavar="PARTS", help="of: %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, also on a CPU, only to show that it runs")
    args = parser.parse_args(arguments)
    names = _names(args.only)
    require_writable(args.out)
    if not args.quick and not torch.cuda.is_available():
        raise ConfigError("no CUDA GPU that PyTorch can use; --quick shows on a CPU that the command runs")
    data = run(quick_scale() if args.quick else full_scale(), names, _say)
    write_json(args.out, data)
    print(text(data))
    return 0


def _say(line: str) -> None:
    print(f"gpu: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
