"""Points of a front against twins, each trained for its budget alone from the same weights.

python -m gft_edge.benchmarks.experiments.front runs/search/front.json runs/front --steps 400 --page benchmarks/FRONT.md

Three FP32 points of the first checkpoint, from the cheap end of the front to the dear one. The twins have seen more images than
the weights they start from; hence these weights are also trained for as many further steps at all budgets, on the same images.
A shared point is non-inferior if the paired 95 % interval of its top-1 less its twin's lies above -0.5 points. Run again with
the same folder, it continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.experiments.fixed_budget import recipe, right_answers
from gft_edge.benchmarks.experiments.markdown import render, show, table
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import CONFIG, read_info, resolve_checkpoint
from gft_edge.cli.console import say, track
from gft_edge.config.recipe import Recipe
from gft_edge.data.sets import spread
from gft_edge.errors import ConfigError, exit_code
from gft_edge.files import require_writable_folder, write_json
from gft_edge.hardware.environment import machine
from gft_edge.report.results.checks import read_object
from gft_edge.report.results.records import FRONT
from gft_edge.stats.gain import mean_difference
from gft_edge.stats.metrics import mcnemar
from gft_edge.train.loop import train

POINTS = 3
TRAINED_AT_ALL = "all"
"""Folder of the shared weights after further training."""
MARGIN = 0.005
"""Top-1 by which a shared point may be below its twin."""


def chosen_budgets(file: Path) -> tuple[str, list[str]]:
    """Returns the first checkpoint of a search and up to three budgets of its front, evenly spaced by cost.

    Raises:
        ArtifactError: the file is no front.
        ConfigError: its front has no pruned FP32 point of that checkpoint.
    """
    record = FRONT.read(read_object(file))
    points = [
        point["budget"]
        for point in record["points"]
        if point["is_front"] and not point["is_reference"] and point["precision"] == "fp32" and point["checkpoint"] == 0
    ]
    if not points:
        raise ConfigError(f"front {file}: has no FP32 point that drops patches; search with --precision fp32")
    places = spread(len(points), min(POINTS, len(points)))
    return record["checkpoints"][0]["name"], [points[place] for place in places]


def run(file: Path, out: Path, steps: int = 400, num_images: int = 3200) -> dict[str, Any]:
    """Trains what is missing and compares each twin with the shared weights; returns plain JSON values."""
    start, names = chosen_budgets(file)
    config = read_info(resolve_checkpoint(start)).model
    budgets = [TokenBudget.parse(name, config.num_patches) for name in names]
    shared = right_answers(resolve_checkpoint(start), budgets, num_images)
    _train(recipe(start, config, budgets[0], True, steps), out / TRAINED_AT_ALL)
    further = right_answers(out / TRAINED_AT_ALL, budgets, num_images)
    rows = []
    for budget, as_found, trained in zip(budgets, shared, further):
        _train(recipe(start, config, budget, False, steps), out / budget.id)
        twin = right_answers(out / budget.id, [budget], num_images)[0]
        rows.append(
            {
                "budget": budget.id,
                "twin": int(twin.sum()),
                "as_found": _compared(as_found, twin),
                "trained": _compared(trained, twin),
            }
        )
    return {"start": start, "steps": steps, "images": num_images, "margin": MARGIN, "rows": rows, "machine": machine()}


def _train(recipe: Recipe, folder: Path) -> None:
    if not (folder / CONFIG).exists():
        say(f"front: training {folder.name}")
        train(recipe, folder, resume=folder.exists(), track=track)


def _compared(own: npt.NDArray[np.bool_], twin: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Returns the right answers of shared weights and their difference to a twin's."""
    difference = mean_difference(own, twin)
    return {
        "right": int(own.sum()),
        "difference": difference.to_json(),
        "mcnemar_p": mcnemar(own, twin),
        "is_non_inferior": difference.interval[0] >= -MARGIN,
    }


def page(data: dict[str, Any]) -> str:
    """Returns the Markdown page of :func:`run`'s result."""
    rows = []
    for row in data["rows"]:
        cells = [row["budget"], f"{row['twin'] / data['images']:.2%}"]
        for kind in ("as_found", "trained"):
            own = row[kind]
            low, high = (100 * value for value in own["difference"]["interval"])
            shown = f"{100 * own['difference']['value']:+.2f} ({low:+.2f} to {high:+.2f})"
            verdict = "non-inferior" if own["is_non_inferior"] else "not shown"
            cells += [f"{own['right'] / data['images']:.2%}", shown, f"{own['mcnemar_p']:.2g}", verdict]
        rows.append(cells)
    header = ["budget", "twin"]
    for kind in ("as found", "trained further"):
        header += [f"{kind}", "less the twin, points", "p", f"by {100 * data['margin']:g} point"]
    return render(
        Path(__file__).with_name("front.md.j2"),
        table=table(header, rows),
        cpu=data["machine"]["cpu"]["model"],
        **{k: data[k] for k in ("start", "steps", "images")},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes twins.json and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("front", type=Path, metavar="FRONT.json", help="of gft-edge search")
    parser.add_argument("out", type=Path, metavar="DIR", help="output folder")
    parser.add_argument("--steps", type=int, default=400, help="of each twin (400)")
    parser.add_argument("--images", type=int, default=3200, help="test images (3200)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown page")
    args = parser.parse_args(arguments)
    require_writable_folder(args.out)
    data = run(args.front, args.out, args.steps, args.images)
    write_json(args.out / "twins.json", data)
    show(page(data), args.page)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
