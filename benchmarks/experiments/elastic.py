"""One checkpoint at ten token budgets: accuracy against multiply-accumulates, as a table and a figure.

python -m gft_edge.benchmarks.experiments.elastic builtin runs/bench/elastic
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint
from gft_edge.cli.console import table
from gft_edge.control_results import Controls
from gft_edge.controls import ControlOptions, controls
from gft_edge.data.datasets import open_images
from gft_edge.errors import exit_code
from gft_edge.files import replacing, require_writable_folder, write_json
from gft_edge.model.build import logits_function
from gft_edge.model.macs import count_macs
from gft_edge.report.figures import plots
from gft_edge.report.pages.controls import write_controls
from gft_edge.runtime.accuracy import measure_accuracy

SHARES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.125, 0.08, 0.05)
"""Share of the patches that every stage keeps; patches that the first one drops are missing in all later blocks."""


def budgets(num_stages: int, num_patches: int) -> list[TokenBudget]:
    """Returns ten budgets from every patch to 5 per cent."""
    return [TokenBudget.from_ratios((share,) * num_stages, num_patches) for share in SHARES]


def run(name: str, data: str = "scenes", num_images: int = 1600) -> dict[str, Any]:
    """Returns top-1 with its interval and multiply-accumulates per budget, as plain JSON values."""
    checkpoint = load_checkpoint(name)
    info = checkpoint.info
    evaluated = budgets(len(info.model.stages), info.model.num_patches)
    images = open_images(data, "test", num_images, info.model.image_size)
    models = [(budget.id, logits_function(checkpoint.model, budget)) for budget in evaluated]
    found = measure_accuracy(models, images, info.labels, info.preprocess)
    rows = [
        {
            "budget": budget.id,
            "macs": count_macs(info.model, budget),
            "right": accuracy.right,
            "top1": accuracy.top1,
            "interval": list(accuracy.interval),
        }
        for budget, accuracy in zip(evaluated, found)
    ]
    return {"checkpoint": str(name), "sha256": checkpoint.sha256, "data": data, "images": found[0].count, "rows": rows}


def control(name: str, data: str = "scenes", num_images: int = 800) -> Controls:
    """Returns what the selection is worth at three budgets with the same share of patches in every stage."""
    checkpoint = load_checkpoint(name)
    config = checkpoint.info.model
    compared = [
        TokenBudget.from_ratios((share,) * len(config.stages), config.num_patches) for share in (0.25, 0.125, 0.06)
    ]
    return controls(checkpoint, ControlOptions(data, "test", num_images, tuple(budget.id for budget in compared)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes elastic.json, elastic.svg and the files of controls, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="CKPT", help="checkpoint folder, or 'builtin'")
    parser.add_argument("out", type=Path, metavar="DIR", help="output folder")
    args = parser.parse_args(arguments)
    name, out = args.name, args.out
    require_writable_folder(out)
    data = run(name)
    write_json(out / "elastic.json", data)
    with replacing(out / "elastic.svg") as temporary:
        temporary.write_text(plots.elastic(data["rows"]), encoding="utf-8")
    cells = [
        (r["budget"], f"{r['macs'] / 1e6:.0f}", f"{r['top1']:.2%}", f"{r['interval'][0]:.1%} to {r['interval'][1]:.1%}")
        for r in data["rows"]
    ]
    print(table(("budget", "million MACs", "top-1", "95 % interval"), cells))
    compared = control(name)
    write_controls(out, {"model": str(name), **compared.to_json()})
    print(f"right of {compared.images} images, by the patches that every stage keeps")
    columns = [[", ".join(map(str, rule.right)) for rule in found.rules] for found in compared.budgets]
    rows = zip((rule.rule for rule in compared.budgets[0].rules), *columns)
    print(table(("kept", *(found.budget for found in compared.budgets)), rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
