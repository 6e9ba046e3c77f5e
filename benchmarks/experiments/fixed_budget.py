"""The cost of serving every budget: a checkpoint trained further at all budgets, and at one fixed budget.

python -m gft_edge.benchmarks.experiments.fixed_budget builtin runs/fixed

Both trainings start from the same weights and take the same images in the same order; both are then evaluated on the same
test images at ten budgets.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gft_edge.benchmarks.experiments.elastic import budgets
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint, read_info, resolve_checkpoint
from gft_edge.cli.console import say, table, track
from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import open_images
from gft_edge.errors import exit_code
from gft_edge.files import require_writable_folder, write_json
from gft_edge.runtime.finite import require_finite
from gft_edge.stats.metrics import mcnemar
from gft_edge.train.loop import train

SHARE = 0.125
EVAL_IMAGES = 160
"""Images of the evaluation during training."""
ARMS = {"elastic": True, "fixed": False}


def recipe(start: str, config: GFTConfig, budget: TokenBudget, elastic: bool, steps: int) -> Recipe:
    """Returns a short training of scenes from a checkpoint of that configuration."""
    settings = TrainSection(
        init=start, steps=steps, batch_size=16, lr=5e-5, warmup_steps=steps // 10, elastic=elastic, seed=5, threads=1
    )
    model = ModelSection("gft_scenes", image_size=config.image_size, stages=config.stages, budget=budget.id)
    return Recipe(model, DataSection("scenes", eval_images=EVAL_IMAGES), settings)


@torch.no_grad()
def right_answers(folder: Path, evaluated: list[TokenBudget], num_images: int) -> npt.NDArray[np.bool_]:
    """Returns the test images that are right at each budget, (budgets, images)."""
    checkpoint = load_checkpoint(folder)
    info = checkpoint.info
    images = open_images("scenes", "test", num_images, info.model.image_size)

    def classes(batch: npt.NDArray[np.float32], budget: TokenBudget) -> npt.NDArray[np.int64]:
        logits = checkpoint.model(torch.from_numpy(batch), budget).numpy()
        require_finite(logits, f"checkpoint {folder} at {budget.id}")
        return logits.argmax(axis=1)

    columns = [
        [classes(batch, budget) == labels for budget in evaluated]
        for batch, labels in evaluation_batches(images, info.preprocess)
    ]
    return np.concatenate([np.stack(column) for column in columns], axis=1)


def run(start: str, out: Path, steps: int = 200, num_images: int = 1600) -> dict[str, Any]:
    """Trains and evaluates both; returns plain JSON values with the exact McNemar test at the fixed budget."""
    config = read_info(resolve_checkpoint(start)).model
    evaluated = budgets(len(config.stages), config.num_patches)
    fixed = TokenBudget.from_ratios((SHARE,) * len(config.stages), config.num_patches)
    right = {}
    for name, elastic in ARMS.items():
        say(f"fixed: training {name}")
        train(recipe(start, config, fixed, elastic, steps), out / name, track=track)
        right[name] = right_answers(out / name, evaluated, num_images)
    place = evaluated.index(fixed)
    return {
        "start": start,
        "steps": steps,
        "images": num_images,
        "fixed_budget": fixed.id,
        "budgets": [budget.id for budget in evaluated],
        "right": {name: answers.sum(axis=1).tolist() for name, answers in right.items()},
        "mcnemar_p": mcnemar(right["elastic"][place], right["fixed"][place]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes fixed.json and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", metavar="CKPT", help="checkpoint folder, or 'builtin'")
    parser.add_argument("out", type=Path, metavar="DIR", help="output folder")
    args = parser.parse_args(arguments)
    start, out = args.start, args.out
    require_writable_folder(out)
    data = run(start, out)
    write_json(out / "fixed.json", data)
    rows = zip(data["budgets"], *data["right"].values())
    print(f"right of {data['images']} images after {data['steps']} further steps; fixed: {data['fixed_budget']} alone")
    print(table(("budget", *data["right"]), rows))
    print(f"at {data['fixed_budget']}: p = {data['mcnemar_p']:.3f} (exact McNemar test)")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
