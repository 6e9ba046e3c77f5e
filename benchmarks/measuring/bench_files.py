"""Bench files: reading, checking, and merging those of several machines."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gft_edge.benchmarks.measuring.protocol import BOOTSTRAP
from gft_edge.errors import ArtifactError
from gft_edge.runtime.backends.table import BACKENDS
from gft_edge.storage.seals import read_sealed

SCHEMA = 2
"""Schema of bench files. 1 had one batch and number of threads for the whole file, and no schema number."""
ENGINE_BACKENDS = ("trtexec", *(backend.name for backend in BACKENDS if backend.runs_engines))


def read_bench(path: Path) -> dict[str, Any]:
    """Reads a bench file.

    Raises:
        ArtifactError: missing, damaged, of another schema, or a merged file.
    """
    data = read_sealed(path, "bench file", "measure again with gft-edge bench")
    if "results" not in data:
        raise ArtifactError(
            f"bench file {path}: holds no results of gft-edge bench; give what its --out wrote, or a run's folder"
        )
    if data.get("schema") != SCHEMA:
        raise ArtifactError(
            f"bench file {path}: schema {data.get('schema')!r}, this version reads {SCHEMA}; measure again with gft-edge bench"
        )
    if data.get("source") == "merge":
        raise ArtifactError(f"bench file {path}: holds merged figures; give the files that were merged")
    results = data.get("results")
    if not isinstance(data.get("machine"), dict) or not isinstance(results, list) or not results:
        raise ArtifactError(f"bench file {path}: incomplete or malformed: it has no machine or no results")
    for number, row in enumerate(results, start=1):
        problem = _problem(row)
        if problem:
            raise ArtifactError(f"bench file {path}: result {number} is incomplete or malformed: {problem}")
    return data


def _problem(row: object) -> str | None:
    """Returns what is wrong with a result, in the parts that all readers rely on."""
    if not isinstance(row, dict):
        return f"expected an object, found {type(row).__name__}"
    for key in ("name", "backend"):
        if not isinstance(row.get(key), str):
            return f"{key} {row.get(key)!r} is not a text"
    for key, kind in (("batch", int), ("threads", int), ("model_sha256", str), ("precision", str), ("baseline", str)):
        if row.get(key) is not None and not isinstance(row[key], kind):
            return f"{key} {row[key]!r} has the wrong type"
    for key in ("stages", "throughput", "process", "energy", "layers", "options", "protocol"):
        if row.get(key) is not None and not isinstance(row[key], dict):
            return f"{key} {row[key]!r} is not an object"
    for key in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "variation", "speedup"):
        value = row.get(key)
        wanted = key == "p50_ms"
        if value is None and not wanted:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{key} {value!r} is not a finite number"
        if value < 0 or (wanted and value == 0):
            return f"{key} {value!r} is not a time"
    rounds = row.get("rounds_ms")
    if not isinstance(rounds, list) or not all(isinstance(r, list) and r and all(map(_is_time, r)) for r in rounds):
        return "rounds_ms are not lists of times"
    interval = row.get("speedup_interval")
    if interval is not None and not (
        isinstance(interval, list) and len(interval) == 2 and all(map(_is_time, interval))
    ):
        return f"speedup_interval {interval!r} is not two numbers"
    return None


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def machine_label(data: Mapping[str, Any]) -> str:
    """Returns the name of the machine of a bench file: board, GPU or processor."""
    machine = data["machine"]
    cpu = machine.get("cpu")
    model = cpu.get("model") if isinstance(cpu, dict) else None
    return str(machine.get("board") or machine.get("device") or model or "unknown machine")


def merge(paths: Sequence[Path]) -> dict[str, Any]:
    """Merges bench files.

    Returns:
        plain JSON values: ``machines`` by file, ``results`` (every row with its ``file`` and ``machine``),
        ``comparisons`` (the same graph at the same batch in several files: speed-up over the first one), ``int8`` (INT8
        engines against their twins in higher precision, with the reason from their layers) and ``warnings`` (reasons why
        figures may not be comparable).

    Raises:
        ArtifactError: a file cannot be read, or is given twice.
    """
    if len({path.resolve() for path in paths}) != len(paths):
        raise ArtifactError("bench files: the same file is given twice")
    files = {str(path): read_bench(path) for path in paths}
    labels = {name: machine_label(data) for name, data in files.items()}
    results = [
        {**row, "file": name, "machine": labels[name]} for name, data in files.items() for row in data["results"]
    ]
    return {
        "schema": SCHEMA,
        "source": "merge",
        "machines": {name: {"label": labels[name], **data["machine"]} for name, data in files.items()},
        "results": results,
        "comparisons": _comparisons(results),
        "int8": _int8_twins(results),
        "warnings": [*_differences(results), *(str(w) for data in files.values() for w in data.get("warnings", []))],
    }


def _comparisons(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compares results of the same graph at the same batch with the first of them."""
    groups: dict[tuple[object, ...], list[Mapping[str, Any]]] = {}
    for row in results:
        groups.setdefault((row.get("model_sha256") or row["name"], row.get("batch")), []).append(row)
    found = []
    for rows in groups.values():
        first = rows[0]
        for row in rows[1:]:
            if row["file"] == first["file"]:
                continue
            interval = unpaired_interval(first["rounds_ms"], row["rounds_ms"])
            found.append(
                {
                    "name": row["name"],
                    "batch": row.get("batch"),
                    "of": _place(first),
                    "against": _place(row),
                    "speedup": first["p50_ms"] / row["p50_ms"],
                    "speedup_interval": interval,
                }
            )
    return found


def _int8_twins(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compares INT8 engines with those of the same model and budget in higher precision, on one machine and at one batch."""
    found = []
    engines = [row for row in results if re.split("[:,]", row["backend"])[0] in ENGINE_BACKENDS]
    for row in engines:
        if row.get("precision") != "int8":
            continue
        alike = ("machine", "backend", "batch", "budget", "model")
        for twin in engines:
            if twin.get("precision") in (None, "int8") or any(row.get(key) != twin.get(key) for key in alike):
                continue
            speedup = twin["p50_ms"] / row["p50_ms"]
            interval = unpaired_interval(twin["rounds_ms"], row["rounds_ms"])
            pays = "yes" if (interval or [speedup])[0] > 1 else "no" if (interval or [speedup])[-1] <= 1 else "unclear"
            found.append(
                {
                    "name": row["name"],
                    "twin": twin["name"],
                    "machine": row["machine"],
                    "batch": row.get("batch"),
                    "speedup": speedup,
                    "speedup_interval": interval,
                    "pays": pays,
                    "why": (row.get("layers") or {}).get("int8"),
                }
            )
    return found


def _place(row: Mapping[str, Any]) -> str:
    threads = f", {row['threads'] or 'all'} thread(s)" if row.get("threads") is not None else ""
    return f"{row['machine']}, {row['backend']}{threads}"


def unpaired_interval(first: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[float] | None:
    """Returns the 95 % bootstrap interval of the ratio of medians of two separate runs; None without raw samples.

    It contains the spread within each run but not changes between them, so it is too narrow.
    """
    if not first or not other:
        return None
    rng = np.random.default_rng(0)
    medians = [np.array([np.median(r) for r in rounds]) for rounds in (first, other)]
    drawn = [np.median(rng.choice(m, (BOOTSTRAP, len(m))), axis=1) for m in medians]
    if not drawn[1].min() > 0:
        return None
    low, high = np.percentile(drawn[0] / drawn[1], (2.5, 97.5))
    return [float(low), float(high)]


def _differences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns reasons why rows may not be comparable."""
    found = []
    for name in dict.fromkeys(row["name"] for row in results):
        rows = [row for row in results if row["name"] == name]
        if len({row["model_sha256"] for row in rows if row.get("model_sha256")}) > 1:
            found.append(f"{name}: different graphs have this name; they are not compared")
    settings = [
        row["options"]["timing"]
        for row in results
        if isinstance(row.get("options"), dict) and row["options"].get("timing")
    ]
    if any(other != settings[0] for other in settings[1:]):
        found.append(
            "trtexec was run with different timing settings (CUDA graph, spin wait, transfers): see the options of each"
        )
    if 0 < sum(row["backend"] == "trtexec" for row in results) < len(results):
        found.append(
            "trtexec enqueues queries ahead of time, so its figures hide host work; the others are whole requests"
        )
    for row in results:
        if row.get("verdict") == "unstable":
            spread = 100 * (row.get("variation") or 0)
            found.append(
                f"{row['name']}, batch {row.get('batch')} on {_place(row)}: unstable, rounds vary by {spread:.1f} %"
            )
    return found
