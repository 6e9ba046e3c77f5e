"""Error of predicted latencies: budgets that the cost model was not fitted to, predicted and then measured on this machine.

python -m gft_edge.benchmarks.experiments.cost_model --out runs/costs

Held-out budgets are measured beside anchors, budgets of the fit. The machine may have become slower or faster in between; the
anchors' median ratio says by how much, and the predictions are scaled by it. The error without this correction is shown too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gft_edge.benchmarks.experiments.markdown import render, table, verdict
from gft_edge.benchmarks.measuring.bench_files import machine_label
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, conditions
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import BUILTIN, Checkpoint, load_checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.errors import exit_code
from gft_edge.files import new_folder, replacing, require_free, write_json
from gft_edge.search.latency import fit_latencies
from gft_edge.search.measuring import PROTOCOL, BudgetGraphs, design, measure_budgets, precision_model

HELD_OUT = 20
ANCHORS = 4
MEDIAN_LIMIT, WORST_LIMIT = 0.05, 0.10
TEMPLATE = Path(__file__).with_name("cost_model.md.j2")


def held_out_budgets(config: GFTConfig, count: int, seed: int) -> tuple[TokenBudget, ...]:
    """Returns random budgets within the range of :func:`gft_edge.search.measuring.design`, none of them in it.

    Counts are uniform, so that most are large; every second budget is uniform in the logarithm.
    """
    known = design(config)
    low = min(budget.keep[-1] for budget in known)
    rng = np.random.default_rng(seed)
    found: dict[TokenBudget, None] = {}
    tries = 0
    while len(found) < count and tries < 100 * count:
        tries += 1
        shares = rng.random(len(config.stages))
        span = config.num_patches / low
        counts = low * span**shares if tries % 2 else low + (config.num_patches - low) * shares
        keep = tuple(sorted((int(value) for value in counts), reverse=True))
        budget = TokenBudget(keep, config.num_patches)
        if budget not in known:
            found[budget] = None
    return tuple(found)


def prediction_error(
    checkpoint: Checkpoint, precision: str, threads: int, seed: int, held_out: int, protocol: BenchProtocol = PROTOCOL
) -> dict[str, Any]:
    """Measures, fits, predicts and measures again at one precision.

    Returns:
        plain JSON values: ``rows`` (budget, predicted and measured milliseconds, relative ``error`` with the drift removed and
        ``raw_error``), ``median``, ``worst``, ``raw_median``, ``raw_worst``, ``drift``, ``fit_seconds``, ``fit_median`` (residual).
    """
    config = checkpoint.info.model
    graphs = BudgetGraphs(checkpoint, precision_model(checkpoint, precision, {}), precision)
    began = time.perf_counter()
    known = {budget: one.ms for budget, one in measure_budgets(graphs, design(config), threads, protocol).items()}
    seconds = time.perf_counter() - began
    fit = fit_latencies(config, known)
    anchors = sorted(known, key=lambda budget: known[budget])[:: max(1, len(known) // ANCHORS)]
    wanted = held_out_budgets(config, held_out, seed)
    found = measure_budgets(graphs, [*anchors, *wanted], threads, protocol)
    drift = float(np.median([found[budget].ms / known[budget] for budget in anchors]))
    rows: list[dict[str, Any]] = []
    for budget in wanted:
        predicted, measured = fit.predict(config, budget), found[budget].ms
        error, raw = predicted * drift / measured - 1, predicted / measured - 1
        rows.append(
            {"budget": budget.id, "predicted": predicted, "measured": measured, "error": error, "raw_error": raw}
        )
    errors, raws = (np.abs([row[key] for row in rows]) for key in ("error", "raw_error"))
    residuals = [abs(fit.predict(config, budget) / ms - 1) for budget, ms in known.items()]
    return {
        "precision": precision,
        "threads": threads,
        "fitted_budgets": {budget.id: ms for budget, ms in known.items()},
        "coefficients": list(fit.coefficients),
        "rows": rows,
        "median": float(np.median(errors)),
        "worst": float(errors.max()),
        "raw_median": float(np.median(raws)),
        "raw_worst": float(raws.max()),
        "fit_median": float(np.median(residuals)),
        "drift": drift,
        "fit_seconds": seconds,
    }


def page(data: dict[str, Any]) -> str:
    """Returns the Markdown page of the results."""
    summary = [
        (
            one["precision"],
            len(one["fitted_budgets"]),
            f"{one['fit_seconds']:.0f}",
            len(one["rows"]),
            f"{one['median']:.1%}",
            f"{one['worst']:.1%}",
            f"{one['raw_median']:.1%} / {one['raw_worst']:.1%}",
            f"{one['drift']:.3f}",
            verdict(one["median"] <= MEDIAN_LIMIT and one["worst"] <= WORST_LIMIT),
        )
        for one in data["results"]
    ]
    header = (
        "precision",
        "fitted",
        "seconds",
        "held out",
        "median",
        "worst",
        "without correction",
        "drift",
        "5 % / 10 %",
    )
    budgets = [
        (
            one["precision"],
            row["budget"],
            f"{row['predicted'] * one['drift']:.3f}",
            f"{row['measured']:.3f}",
            f"{row['error']:+.1%}",
        )
        for one in data["results"]
        for row in one["rows"]
    ]
    return render(
        TEMPLATE,
        machine=machine_label(data),
        cores=data["machine"]["cpu"]["cores"],
        checkpoint=data["checkpoint"],
        threads=data["threads"],
        version=data["machine"]["versions"]["onnxruntime"],
        summary=table(header, summary),
        budgets=table(("precision", "budget", "predicted ms", "measured ms", "error"), budgets),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures each precision, writes cost_model.json and COSTS.md, and prints the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="new folder for cost_model.json and COSTS.md"
    )
    parser.add_argument("--checkpoint", default=BUILTIN, metavar="CKPT", help="focal (builtin)")
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"], metavar="P", help="(fp32 int8)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of ONNX Runtime (1)")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, metavar="N", help=f"budgets ({HELD_OUT})")
    parser.add_argument("--rounds", type=int, default=PROTOCOL.rounds, metavar="N", help=f"({PROTOCOL.rounds})")
    parser.add_argument("--seed", type=int, default=1, help="of the held-out budgets (1)")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the page there too, such as benchmarks/COSTS.md"
    )
    args = parser.parse_args(arguments)
    require_free(args.out)
    checkpoint = load_checkpoint(args.checkpoint)
    protocol = BenchProtocol(
        warmup_seconds=PROTOCOL.warmup_seconds,
        warmup_cap_seconds=PROTOCOL.warmup_cap_seconds,
        rounds=args.rounds,
        runs_per_round=PROTOCOL.runs_per_round,
    )
    results = []
    for precision in args.precision:
        results.append(prediction_error(checkpoint, precision, args.threads, args.seed, args.held_out, protocol))
        one = results[-1]
        print(
            f"{precision}: median {one['median']:.1%}, worst {one['worst']:.1%} on {len(one['rows'])} held-out budgets; "
            f"drift {one['drift']:.3f}, fitted in {one['fit_seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    data = {
        "checkpoint": args.checkpoint,
        "threads": args.threads,
        "machine": conditions(),
        "results": results,
    }
    text = page(data)
    with new_folder(args.out) as folder:
        write_json(folder / "cost_model.json", data)
        (folder / "COSTS.md").write_text(text, encoding="utf-8")
    if args.page:
        with replacing(args.page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(one["median"] <= MEDIAN_LIMIT and one["worst"] <= WORST_LIMIT for one in results) else 1


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
