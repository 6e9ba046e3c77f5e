"""Cold start and peak memory of an artefact, each time in a fresh process, so that measurements do not affect each other.

python -m gft_edge.benchmarks.measuring.fresh_process ARTIFACT BACKEND BATCH THREADS ROWS COLUMNS [FORM]

FORM is of an ONNX file of another program.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.errors import ArtifactError, exit_code

if TYPE_CHECKING:  # it imports numpy, whose import is measured here
    from gft_edge.benchmarks.measuring.protocol import BenchProtocol
    from gft_edge.runtime.backends.sessions import Session

TIMEOUT_SECONDS = 300
STEPS = ("start_ms", "import_ms", "load_ms", "first_ms", "cold_start_ms")


def fresh_processes(artifact: str, backend: str, protocol: BenchProtocol, form: str | None = None) -> dict[str, Any]:
    """Returns medians over ``protocol.processes`` fresh processes, and the figures of each.

    Args:
        artifact: its address.
        backend: that opens it.
        protocol: of the measurement.
        form: precision and input shape of an ONNX file of another program, as ``"int8,0x3x224x224"`` with 0 for a batch of any
            size; None for an artefact. Such a file has no preprocessing: it gets its input.

    Returns:
        ``start_ms`` (interpreter), ``import_ms`` (numpy, backend), ``load_ms`` (artefact and session), ``first_ms`` (first
        request of one picture, preprocessing included), ``cold_start_ms`` (their sum, from the call of the process to
        the first answer), ``peak_rss_bytes`` (largest, after requests of the whole batch), or None where Linux's
        /proc/self/status is missing; ``runs`` holds the figures of each process.

    Raises:
        ArtifactError: the process failed.
    """
    runs = [_fresh_process(artifact, backend, protocol, form) for _ in range(protocol.processes)]
    peaks = [run["peak_rss_bytes"] for run in runs if run["peak_rss_bytes"] is not None]
    medians = {step: sorted(run[step] for run in runs)[(len(runs) - 1) // 2] for step in STEPS}
    return {**medians, "peak_rss_bytes": max(peaks, default=None), "runs": runs}


def _fresh_process(artifact: str, backend: str, protocol: BenchProtocol, form: str | None) -> dict[str, Any]:
    sizes = (protocol.batch, protocol.threads, *protocol.source_size)
    command = [sys.executable, "-m", "gft_edge.benchmarks.measuring.fresh_process", artifact, backend, *map(str, sizes)]
    command += [] if form is None else [form]
    started = time.monotonic()  # all processes share this clock on Linux
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise ArtifactError(f"artefact {artifact}: a fresh process did not finish within {TIMEOUT_SECONDS} s") from None
    try:
        run: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ArtifactError(f"artefact {artifact}: a fresh process that loads it failed ({reason})") from None
    run["start_ms"] = max((run.pop("entered") - started) * 1e3, 0.0)
    run["cold_start_ms"] = sum(run[step] for step in STEPS[:-1])
    return run


def first_prediction(
    artifact: str, backend: str, batch: int, threads: int, rows: int, columns: int, form: str | None = None
) -> dict[str, Any]:
    """Imports, loads and predicts, in the fresh process."""
    entered, marks = time.monotonic(), [time.perf_counter()]
    import numpy as np

    from gft_edge.runtime.backends.table import find_backend
    from gft_edge.runtime.classifier import Classifier

    with contextlib.suppress(ImportError):  # loading names the extra that is missing
        find_backend(backend)[0].import_module()
    marks.append(time.perf_counter())
    if form is None:
        classifier = Classifier.open(artifact, backend, threads)
        picture = np.zeros((rows, columns, 3), dtype=np.uint8)

        def predict(images: int) -> object:
            return classifier.predict([picture] * images)
    else:
        session, shape = _onnx_file(artifact, threads, form)

        def predict(images: int) -> object:
            return session.compute(np.zeros((images, *shape), np.float32))

    marks.append(time.perf_counter())
    predict(1)
    marks.append(time.perf_counter())
    for _ in range(3):
        predict(batch)
    steps = {name: (b - a) * 1e3 for name, a, b in zip(("import_ms", "load_ms", "first_ms"), marks, marks[1:])}
    return {"entered": entered, **steps, "peak_rss_bytes": peak_rss()}


def _onnx_file(file: str, threads: int, form: str) -> tuple[Session, tuple[int, ...]]:
    """Opens an ONNX file as a program without the onnx package would; returns the session and the shape of an image."""
    from gft_edge.manifest import QUANTIZED
    from gft_edge.runtime.backends.sessions import onnxruntime_session

    precision, _, sizes = form.partition(",")
    batch, *shape = map(int, sizes.split("x"))
    session = onnxruntime_session(Path(file), precision in QUANTIZED, threads)
    return replace(session, batch=batch or None), tuple(shape)


def peak_rss(status: Path = Path("/proc/self/status")) -> int | None:
    """Returns the largest resident memory of this process so far, in bytes.

    Reads VmHWM and not getrusage: ru_maxrss survives fork and exec on Linux, so a small child of a large parent would
    report the parent.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the times of this process as JSON; without six or seven arguments, the usage."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) not in (6, 7):
        import argparse  # not at the top, where its import would be measured

        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        for name in ("artifact", "backend", "batch", "threads", "rows", "columns"):
            parser.add_argument(name, metavar=name.upper())
        parser.parse_args(given)
    path, name = given[:2]
    batch, threads, rows, columns = map(int, given[2:6])
    form = given[6] if len(given) == 7 else None
    print(json.dumps(first_prediction(path, name, batch, threads, rows, columns, form)))
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
