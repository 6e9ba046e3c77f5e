"""Time of the first call of ``torch.compile``: the focal model beside timm's ViT, each in fresh processes with empty caches.

python -m gft_edge.benchmarks.experiments.compile_speed runs/bench/compile.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from gft_edge.benchmarks.experiments.gpu.candidates import GFT, VIT, Family
from gft_edge.benchmarks.experiments.gpu.scale import Place
from gft_edge.benchmarks.experiments.gpu.timing import relative_difference
from gft_edge.benchmarks.measuring.protocol import conditions
from gft_edge.config.model import GFTConfig, preset
from gft_edge.errors import exit_code
from gft_edge.files import require_writable, write_json

ORDER = (VIT, GFT, GFT, VIT)
"""Of the processes: each model once first and once last, so that a drift of the machine favours neither."""
MOST_SECONDS = 900.0
_CODE = "import sys; from gft_edge.benchmarks.experiments.compile_speed import answer; print(answer(*sys.argv[1:]), flush=True)"


@dataclass(frozen=True)
class FirstCall:
    """One compilation.

    Attributes:
        name: of the model.
        seconds: of the first call, in which everything is compiled.
        graphs: number of graphs.
        breaks: graph breaks.
        difference: of the logits to those of the eager model, relative.
    """

    name: str
    seconds: float
    graphs: int
    breaks: int
    difference: float


def answer(name: str, config: str, device: str, backend: str, batch: str) -> str:
    """Compiles one model in this process and returns its :class:`FirstCall` as JSON; the arguments are texts.

    Args:
        name: ``ViT`` or ``GFT``.
        config: of the focal model, as JSON.
        device: that computes, in float32.
        backend: of ``torch.compile``.
        batch: images.
    """
    family = Family(GFTConfig.from_json(json.loads(config)), Place(torch.device(device), torch.float32))
    return json.dumps(asdict(first_call(name, family, backend, int(batch))))


@torch.no_grad()
def first_call(name: str, family: Family, backend: str, batch: int) -> FirstCall:
    """Compiles one model of a family in this process; a trivial one before it loads the compiler itself."""
    torch.compile(torch.nn.ReLU(), backend=backend)(torch.zeros(2, device=family.place.device))
    candidate = family.main()[name]()
    images = family.images(batch)
    expected = candidate(images)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(candidate.model, backend=backend)
    began = time.perf_counter()
    found = compiled(images)
    if family.place.is_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    breaks = sum(counters["graph_break"].values())
    graphs = counters["stats"]["unique_graphs"]
    return FirstCall(name, seconds, int(graphs), int(breaks), relative_difference(found, expected))


def in_fresh_processes(
    config: GFTConfig,
    device: str,
    backend: str = "inductor",
    batch: int = 8,
    until: float = math.inf,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compiles both models, each twice, each time in a process of its own with empty caches.

    Args:
        config: of the focal model.
        device: that computes.
        backend: of ``torch.compile``.
        batch: images.
        until: value of ``time.monotonic`` at which a process is stopped; none is started after it.
        say: receives a line per process.

    Returns:
        ``calls``, one :class:`FirstCall` each; ``ratio``, the least time of the focal model over that of the ViT, None if
        one is missing; ``errors``.
    """
    calls: list[dict[str, Any]] = []
    errors = []
    for name in ORDER:
        left = min(until - time.monotonic(), MOST_SECONDS)
        if left <= 0:
            errors.append({"name": name, "error": "no time left"})
            continue
        try:
            calls.append(_fresh(name, config, device, backend, batch, left))
            say(f"compile: {name} {calls[-1]['seconds']:.1f} s, {calls[-1]['graphs']} graphs")
        except subprocess.TimeoutExpired:
            errors.append({"name": name, "error": f"did not end in {left:.0f} s"})
        except subprocess.CalledProcessError as error:
            errors.append({"name": name, "error": error.stderr.strip()[-300:]})
    least = {name: min((c["seconds"] for c in calls if c["name"] == name), default=None) for name in (VIT, GFT)}
    vit, gft = least[VIT], least[GFT]
    ratio = None if vit is None or gft is None else gft / vit
    return {"device": device, "batch": batch, "backend": backend, "calls": calls, "ratio": ratio, "errors": errors}


def _fresh(name: str, config: GFTConfig, device: str, backend: str, batch: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as caches:
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                _CODE,
                name,
                json.dumps(config.to_json()),
                device,
                backend,
                str(batch),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": caches, "TRITON_CACHE_DIR": str(Path(caches, "triton"))},
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures ``gft_tiny`` on the CPU, writes the JSON file and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE", help="figures as JSON")
    out = parser.parse_args(arguments).out
    require_writable(out)
    data = in_fresh_processes(preset("gft_tiny"), "cpu", say=lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(data, indent=2))
    write_json(out, {"machine": conditions(), **data})
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
