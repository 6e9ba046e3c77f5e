"""Costs of a process: start-up, export with verification, importance; each but the last in fresh processes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, Latency, ratio_interval

POOL_BYTES = 96 << 20

_IMPORT = """
import time; start = time.perf_counter(); import gft_edge; print(1e3 * (time.perf_counter() - start))
"""
_HELP = """
import subprocess, sys, time
start = time.perf_counter()
subprocess.run([sys.executable, "-m", "gft_edge.cli.main", "--help"], stdout=subprocess.DEVNULL, check=True)
print(1e3 * (time.perf_counter() - start))
"""
_FIRST_PREDICTION = """
import sys, time
start = time.perf_counter()
import numpy as np
from gft_edge.runtime.classifier import Classifier
Classifier.open(sys.argv[1], "onnxruntime", threads=1).predict([np.zeros((64, 64, 3), np.uint8)])
print(1e3 * (time.perf_counter() - start))
"""
_REQUESTS = """
import sys, time
from pathlib import Path
import numpy as np
from gft_edge.runtime.backends.sessions import onnxruntime_session
session, side = onnxruntime_session(Path(sys.argv[1]), True, 1, sys.argv[3] == "huge"), int(sys.argv[2])
image, samples = np.zeros((1, 3, side, side), np.float32), []
for _ in range(30):
    start = time.perf_counter(); session(image); samples.append(1e3 * (time.perf_counter() - start))
print(samples[10:])
"""
_EXPORT_AND_VERIFY = """
import json, sys, time
from pathlib import Path
import numpy as np, torch
from gft_edge.benchmarks.measuring.fresh_process import peak_rss
from gft_edge.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from gft_edge.config.model import preset
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.verify.artifact_alone import verify_golden
from gft_edge.model.build import build_model
from gft_edge.preprocess import PreprocessSpec
torch.set_num_threads(2)
torch.manual_seed(0)
folder, config = Path(sys.argv[2]), preset(sys.argv[1])
labels = tuple(str(i) for i in range(config.num_classes))
info = CheckpointInfo(config, labels, PreprocessSpec(config.image_size, config.image_size), {})
save_checkpoint(folder / "checkpoint", info, build_model(config).eval())
images = np.random.default_rng(0).standard_normal((2, 3, config.image_size, config.image_size), dtype=np.float32)
start = time.perf_counter()
report = verify_golden(export_artifact(load_checkpoint(folder / "checkpoint"), folder / "artifact", images))
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak_bytes": peak_rss(), "passed": report.passed}))
"""


def fresh(code: str, *arguments: str) -> Any:
    """Runs code in a new process; returns its output as a JSON value."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)


def page_sizes(model: bytes, side: int, repeats: int) -> dict[str, Latency]:
    """Measures an INT8 model in fresh processes, with small pages and, its products adding their bias, huge ones, in turn."""
    ways = ("small", "huge")
    samples: dict[str, list[list[float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        file.write_bytes(model)
        for _ in range(repeats):
            for name in ways:
                samples[name].append(fresh(_REQUESTS, str(file), str(side), name))
    return {name: Latency.of(rounds) for name, rounds in samples.items()}


def start_up(artifact: Path, repeats: int) -> dict[str, list[float]]:
    """Measures milliseconds of ``import gft_edge``, of ``gft-edge --help``, and up to the first prediction of an artefact.

    The first run of each fills the file cache and is left out.
    """
    codes = {
        "import gft_edge": (_IMPORT,),
        "gft-edge --help": (_HELP,),
        "load and first prediction": (_FIRST_PREDICTION, str(artifact)),
    }
    return {name: [fresh(*code) for _ in range(repeats + 1)][1:] for name, code in codes.items()}


def export_and_verify(preset: str) -> dict[str, Any]:
    """Measures seconds and peak memory of a process that exports a model of random weights and verifies the artefact."""
    with tempfile.TemporaryDirectory() as folder:
        data: dict[str, Any] = fresh(_EXPORT_AND_VERIFY, preset, folder)
    return data


class _Allocated(TorchDispatchMode):
    """Sums the bytes of every new tensor; views count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in known:
            self.bytes += out.untyped_storage().nbytes()
        return out


def by_mean_key(q: Tensor, k: Tensor) -> Tensor:
    """Returns mean scores (B, H, N) of queries and keys (B, H, N, d) through the mean key."""
    return (q @ k.mean(dim=2, keepdim=True).transpose(2, 3) * q.shape[-1] ** -0.5).squeeze(3)


def by_matrix(q: Tensor, k: Tensor) -> Tensor:
    """Returns the same through the attention matrix."""
    return (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).mean(dim=3)


def _cycling(way: Callable[[Tensor, Tensor], Tensor], pool: Tensor) -> Callable[[], object]:
    pairs = itertools.cycle(pool)
    return lambda: way(*next(pairs))


@torch.no_grad()
def importance(patches: tuple[int, ...], width: int, heads: int, rounds: int) -> dict[str, Any]:
    """Measures time and memory of the mean scores both ways, queries and keys given, and the exponent of time in patches.

    Every call takes other queries and keys out of ``POOL_BYTES`` of them: with one pair, small sizes would be read from the
    cache and large ones from memory, and the exponent would show that.
    """
    torch.manual_seed(0)
    before, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    protocol = BenchProtocol(rounds=rounds, runs_per_round=3, warmup_seconds=0.1)
    try:
        for n in patches:
            pairs = max(POOL_BYTES // (2 * 4 * n * width), 1)
            pool = torch.randn(pairs, 2, 1, heads, n, width // heads)
            q, k = pool[0]
            ways = {"mean key": by_mean_key, "matrix": by_matrix}
            found = measure({name: _cycling(way, pool) for name, way in ways.items()}, protocol)
            memory = {}
            for name, way in ways.items():
                with _Allocated() as allocated:
                    way(q, k)
                memory[name] = allocated.bytes
            rows.append(
                {
                    "patches": n,
                    "ms": {name: latency.p50_ms for name, latency in found.items()},
                    "bytes": memory,
                    "time_ratio": ratio_interval(found["matrix"], found["mean key"]),
                    "memory_ratio": memory["matrix"] / memory["mean key"],
                }
            )
    finally:
        torch.set_num_threads(before)
    times = [row["ms"]["mean key"] for row in rows]
    return {"rows": rows, "exponent": float(np.polyfit(np.log(patches), np.log(times), 1)[0])}
