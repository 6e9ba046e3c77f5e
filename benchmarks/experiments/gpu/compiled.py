"""Latency of compiled models, captured in CUDA graphs: a process per batch size; they compile together and are timed in turn."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from gft_edge.benchmarks.experiments.gpu.candidates import GFT, VIT, Candidate, Family
from gft_edge.benchmarks.experiments.gpu.inference import against, checked, figures
from gft_edge.benchmarks.experiments.gpu.scale import Place, Scale, named_scale, reason
from gft_edge.benchmarks.experiments.gpu.timing import Replay, interleaved

READY = "compiled"
_CODE = "import sys; from gft_edge.benchmarks.experiments.gpu.compiled import answer; answer(*sys.argv[1:])"


def run(scale: Scale, place: Place, until: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures the compiled plain ViT and the compiled focal model at several batch sizes.

    Returns:
        ``rows`` as of the part ``inference``; ``errors``.
    """
    backend = "inductor" if place.is_gpu else "aot_eager"  # on a CPU the part only shows that it runs
    command = [sys.executable, "-W", "ignore", "-c", _CODE, scale.name, backend]
    processes = {
        batch: subprocess.Popen(
            [*command, str(batch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for batch in scale.compiled_batches
    }
    rows: list[dict[str, Any]] = []
    errors = []
    timers = [threading.Timer(max(until - time.monotonic(), 0), process.kill) for process in processes.values()]
    for timer in timers:
        timer.start()
    try:
        ready = {batch: _reads_ready(process) for batch, process in processes.items()}  # nobody compiles after this
        say(f"compiled: {sum(ready.values())} of {len(ready)} batch sizes are compiled")
        for batch, process in processes.items():
            output = process.communicate("go\n" if ready[batch] else None)[0].splitlines()
            if process.returncode:
                why = "no time left" if process.returncode < 0 else (output or ["it ended while it compiled"])[-1]
                errors.append({"batch": batch, "error": why[-300:]})
                continue
            found = json.loads(output[-1])
            rows += found["rows"]
            errors += found["errors"]
    finally:
        for timer in timers:
            timer.cancel()
        for process in processes.values():
            process.kill()
            process.wait()
    return {"backend": backend, "rows": rows, "errors": errors}


def _reads_ready(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return any(line.strip() == READY for line in iter(process.stdout.readline, ""))


@torch.no_grad()
def answer(scale_name: str, backend: str, batch_text: str) -> None:
    """Compiles both models in this process, prints ``compiled``, waits for a line, times them and prints JSON."""
    scale, place, batch = named_scale(scale_name), Place.here(), int(batch_text)
    family = Family(scale.config, place)
    images = family.images(batch)
    replays: dict[str, Replay] = {}
    rows: dict[str, dict[str, Any]] = {}
    errors = []
    for name in (VIT, GFT):
        try:
            eager = family.main()[name]()
            compiled: Any = torch.compile(eager.model, backend=backend)
            candidate = Candidate(compiled, eager.macs, eager.options)
            replay = Replay(functools.partial(candidate, images), place)
            rows[name] = {"name": name, "batch": batch, "macs": eager.macs, **checked(replay, eager, images)}
            replays[name] = replay
        except Exception as error:
            errors.append({"name": name, "batch": batch, "error": reason(error)})
    print(READY, flush=True)
    sys.stdin.readline()
    latencies = interleaved(replays, scale.rounds, scale.least_ms, place) if replays else {}
    for name, latency in latencies.items():
        rows[name].update(figures(latency, batch), **against(latencies.get(VIT), latency))
    print(json.dumps({"rows": list(rows.values()), "errors": errors}), flush=True)
