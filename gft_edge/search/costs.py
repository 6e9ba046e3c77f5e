"""Cost models of operating points: measured here, measured elsewhere by ``gft-edge bench``, or bounded by a roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gft_edge.benchmarks.measuring.artifact_facts import architecture
from gft_edge.benchmarks.measuring.bench_files import machine_label, read_bench
from gft_edge.benchmarks.measuring.protocol import BenchProtocol
from gft_edge.benchmarks.roofline import model_roofline
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import Checkpoint, load_checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.hardware.devices import PeakPrecision, device
from gft_edge.hardware.environment import board, cpu, versions
from gft_edge.model.macs import count_macs
from gft_edge.progress import Track, silent
from gft_edge.quant.policy import QuantPolicy
from gft_edge.search.latency import require_stages
from gft_edge.search.measuring import (
    PROTOCOL,
    BudgetGraphs,
    design,
    measure_budgets,
    precision_model,
    require_measurable,
)
from gft_edge.search.point import Cost, CostModel, OperatingPoint
from gft_edge.search.table import LatencyTable, TableCosts, require_architecture
from gft_edge.storage.seals import read_sealed, write_sealed

SCHEMA = 1
"""Schema of the file of :func:`measured_costs`."""
AGAIN = "measure again into another file"


def measured_costs(
    checkpoint: Checkpoint | Path | str,
    precisions: Sequence[str] = ("fp32",),
    backend: str = "onnxruntime",
    threads: int = 1,
    cache: Path | None = None,
    track: Track = silent,
    policies: Mapping[str, QuantPolicy] | None = None,
    protocol: BenchProtocol = PROTOCOL,
) -> TableCosts:
    """Measures about 22 budgets at each precision on this machine and returns the cost model fitted to them.

    Args:
        checkpoint: focal, in full precision; or quantized, with that precision alone.
        precisions: of the points to be priced.
        backend: ``"onnxruntime"``.
        threads: intra-op; 0 takes one per core.
        cache: file of measured tables; precisions that it lacks are measured and added.
        track: progress callback.
        policies: of precisions ``"int8:NAME"``, by the whole name.
        protocol: how to measure.

    Raises:
        ConfigError: the file is of another machine, model, backend or number of threads; an unknown precision or backend.
        ArtifactError: the file or the checkpoint is damaged.
    """
    require_measurable(backend)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    config = checkpoint.info.model
    require_stages(config)
    policies = policies or {}
    head = _head(config, backend, threads)
    data = _read_cache(cache, head, config) if cache is not None and cache.exists() else {**head, "tables": {}}
    measured = False
    for precision in dict.fromkeys(precisions):
        policy = policies[precision].to_json() if precision in policies else None
        known = data["tables"].get(precision)
        if known is not None and known.get("policy") == policy:
            continue
        graphs = BudgetGraphs(checkpoint, precision_model(checkpoint, precision, policies), precision)
        found = measure_budgets(graphs, design(config), threads, protocol, track)
        budgets = {budget.id: {"ms": one.ms, "variation": one.variation} for budget, one in found.items()}
        data["tables"][precision] = {"policy": policy, "budgets": budgets}
        measured = True
    if cache is not None and measured:
        write_sealed(cache, data)
    where = f"costs measured on {backend}" if cache is None else f"costs {cache}"
    return TableCosts(config, {precision: _table(data, precision, config, where) for precision in precisions})


def _head(config: GFTConfig, backend: str, threads: int) -> dict[str, Any]:
    """Returns what must be equal for measured figures to hold."""
    return {
        "schema": SCHEMA,
        "source": "latency tables",
        "machine": {"cpu": cpu(), "board": board()},
        "backend": backend,
        "backend_version": versions()[backend],
        "threads": threads,
        "model": architecture(config),
    }


def _read_cache(file: Path, head: Mapping[str, Any], config: GFTConfig) -> dict[str, Any]:
    data = read_sealed(file, "costs", AGAIN)
    if data.get("schema") != SCHEMA or data.get("source") != head["source"] or not isinstance(data.get("tables"), dict):
        raise ArtifactError(
            f"costs {file}: is no file of latency tables; give a bench file as --costs, or another name here"
        )
    if data.get("machine") != head["machine"]:
        raise ConfigError(
            f"costs {file} is of another machine: {_machine(data.get('machine'))}, this is {_machine(head['machine'])}; {AGAIN}"
        )
    require_architecture(data.get("model"), config, f"costs {file}", AGAIN)
    for key in ("backend", "backend_version", "threads"):
        if data.get(key) != head[key]:
            raise ConfigError(
                f"costs {file} is of {key.replace('_', ' ')} {data.get(key)!r}, now {head[key]!r}; {AGAIN}"
            )
    return data


def _machine(machine: object) -> str:
    found: dict[str, Any] = machine if isinstance(machine, dict) else {}
    processor: dict[str, Any] = found["cpu"] if isinstance(found.get("cpu"), dict) else {}
    return f"{found.get('board') or processor.get('model') or 'unknown'}, {processor.get('cores', '?')} core(s)"


def _table(data: Mapping[str, Any], precision: str, config: GFTConfig, where: str) -> LatencyTable:
    try:
        rows = data["tables"][precision]["budgets"]
        ms = {TokenBudget.parse(name, config.num_patches): float(row["ms"]) for name, row in rows.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{where}: malformed ({error!r}); {AGAIN}") from None
    return LatencyTable(where, precision, ms)


def bench_costs(file: Path, config: GFTConfig, batch: int = 1) -> TableCosts:
    """Returns the costs of a bench file: of its budgets exactly as measured, of those between them interpolated.

    Args:
        file: of ``gft-edge bench --out``, on any machine.
        config: of the model to be priced; the file must be of the same.
        batch: of the requests; the costs are of one image.

    Raises:
        ConfigError: another model, nothing measured at this batch, or figures of several backends or numbers of threads.
        ArtifactError: no bench file, or one of an earlier version.
    """
    require_stages(config)
    data = read_bench(file)
    where = f"bench file {file}"
    for row in data["results"]:
        if row.get("model") is None:
            raise ArtifactError(
                f"{where}: {row['name']} does not say what model it is; measure again with gft-edge bench"
            )
        require_architecture(row["model"], config, f"{where}: {row['name']}", "give the file of this model's artefacts")
    rows = [row for row in data["results"] if (row.get("batch") or 1) == batch]
    for key in ("backend", "threads"):
        several = list(dict.fromkeys(str(row.get(key)) for row in rows))
        if len(several) > 1:
            raise ConfigError(f"{where}: has figures of several {key}: {', '.join(several)}; bench one alone")
    if not rows:
        raise ConfigError(f"{where}: nothing is measured at batch {batch}")
    found: dict[str, tuple[dict[TokenBudget, float], dict[TokenBudget, float]]] = {}
    for row in rows:
        ms, mj = found.setdefault(str(row.get("precision")), ({}, {}))
        budget = TokenBudget.parse(str(row.get("budget")), config.num_patches)
        ms[budget] = row["p50_ms"] / batch
        energy = (row.get("energy") or {}).get("mj_per_image")
        if energy is not None:
            mj[budget] = float(energy)
    label = f"{where} ({machine_label(data)})"
    return TableCosts(config, {p: LatencyTable(label, p, ms, mj, is_exact=True) for p, (ms, mj) in found.items()})


def bound_costs(device_name: str) -> CostModel:
    """Returns the roofline of a device for one image per request as costs: always of kind ``"bound"``, below any latency.

    Args:
        device_name: name or short name of a device profile.

    Raises:
        ConfigError: no such device, with the nearest name; or, of a point, a precision that the device lacks.
    """
    profile = device(device_name)

    def bound(point: OperatingPoint) -> Cost:
        # A mixed policy has layers in high precision, which only take longer: INT8 throughout is a bound of it.
        precision = cast(PeakPrecision, point.precision.partition(":")[0])
        found = model_roofline(point.config, point.budget, precision, profile)
        return Cost(found.bound_ms, count_macs(point.config, point.budget) / 1e9, "bound")

    return bound
