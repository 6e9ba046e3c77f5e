"""Points of a front against twins, each trained for its budget alone from the same weights.

python -m gft_edge.benchmarks.experiments.front runs/search/front.json runs/front --steps 400

Three FP32 points of the first checkpoint, from the cheap end of the front to the dear one. A shared point is non-inferior if the
paired 95 % interval of its top-1 less its twin's lies above -0.5 points. Run again with the same folder, it continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.experiments.fixed_budget import recipe, right_answers
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import CONFIG, read_info, resolve_checkpoint
from gft_edge.cli.console import say, table, track
from gft_edge.data.sets import spread
from gft_edge.errors import ConfigError, exit_code
from gft_edge.files import require_writable_folder, write_json
from gft_edge.report.results.checks import read_object
from gft_edge.report.results.records import FRONT
from gft_edge.stats.gain import mean_difference
from gft_edge.stats.metrics import mcnemar
from gft_edge.train.loop import train

POINTS = 3
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
    """Trains the twins that are missing and compares each with the shared weights; returns plain JSON values."""
    start, names = chosen_budgets(file)
    config = read_info(resolve_checkpoint(start)).model
    budgets = [TokenBudget.parse(name, config.num_patches) for name in names]
    shared = right_answers(resolve_checkpoint(start), budgets, num_images)
    rows = []
    for budget, own in zip(budgets, shared):
        folder = out / budget.id
        if not (folder / CONFIG).exists():
            say(f"front: training the twin of {budget.id}")
            train(recipe(start, config, budget, False, steps), folder, resume=folder.exists(), track=track)
        twin = right_answers(folder, [budget], num_images)[0]
        difference = mean_difference(own, twin)
        rows.append(
            {
                "budget": budget.id,
                "shared": int(own.sum()),
                "twin": int(twin.sum()),
                "difference": difference.to_json(),
                "mcnemar_p": mcnemar(own, twin),
                "is_non_inferior": difference.interval[0] >= -MARGIN,
            }
        )
    return {"start": start, "steps": steps, "images": num_images, "margin": MARGIN, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes twins.json and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("front", type=Path, metavar="FRONT.json", help="of gft-edge search")
    parser.add_argument("out", type=Path, metavar="DIR", help="output folder")
    parser.add_argument("--steps", type=int, default=400, help="of each twin (400)")
    parser.add_argument("--images", type=int, default=3200, help="test images (3200)")
    args = parser.parse_args(arguments)
    require_writable_folder(args.out)
    data = run(args.front, args.out, args.steps, args.images)
    write_json(args.out / "twins.json", data)
    rows = []
    for row in data["rows"]:
        low, high = (100 * value for value in row["difference"]["interval"])
        shown = f"{100 * row['difference']['value']:+.2f} ({low:+.2f} to {high:+.2f})"
        verdict = "non-inferior" if row["is_non_inferior"] else "not shown"
        rows.append((row["budget"], row["shared"], row["twin"], shown, f"{row['mcnemar_p']:.3f}", verdict))
    print(f"right of {data['images']} test images; twins: {data['steps']} steps at their budget alone")
    print(table(("budget", "shared", "twin", "points (95 %)", "p", f"by {100 * MARGIN:g} point"), rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
