r"""Converts a trained checkpoint to the one that the package ships: float16 weights, test accuracy, a card.

python -m gft_edge.benchmarks.experiments.publish runs/scenes-finish runs/builtin recipes/scenes.toml \
  recipes/scenes-selection.toml recipes/scenes-finish.toml
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from gft_edge.checkpoint import load_checkpoint, num_parameters, save_checkpoint
from gft_edge.config.recipe import load_recipe
from gft_edge.data.datasets import open_images
from gft_edge.errors import exit_code
from gft_edge.files import new_folder
from gft_edge.model.build import logits_function
from gft_edge.runtime.accuracy import measure_accuracy

TEST_IMAGES = 3200


def publish(source: Path, out: Path, recipes: list[Path]) -> None:
    """Writes the shipped checkpoint.

    Args:
        source: folder of a checkpoint trained on scenes.
        out: new or empty folder.
        recipes: of its trainings, in order; copied to ``out/recipes``.

    Raises:
        ConfigError: ``out`` is not empty.
        ArtifactError: ``source`` is not a checkpoint.
    """
    checkpoint = load_checkpoint(source)
    config = checkpoint.info.model
    with new_folder(out) as folder:
        save_checkpoint(folder, checkpoint.info, checkpoint.model, half=True)
        stored = load_checkpoint(folder)
        images = open_images("scenes", "test", TEST_IMAGES, config.image_size)
        budgets = (config.full_budget, config.budget)
        models = [(budget.id, logits_function(stored.model, budget)) for budget in budgets]
        full, pruned = measure_accuracy(models, images, stored.info.labels, checkpoint.info.preprocess)
        metrics = {
            "test_images": TEST_IMAGES,
            "test_top1_full": full.top1,
            "test_top1_budget": pruned.top1,
            "budget": config.budget.id,
        }
        info = dataclasses.replace(checkpoint.info, metrics=metrics)
        if recipes:  # as it stands in the project: a training may have started from another folder of one machine
            provenance = {**info.provenance, "recipe": load_recipe(recipes[-1]).to_json()}
            info = dataclasses.replace(info, provenance=provenance)
        save_checkpoint(folder, info, checkpoint.model, half=True)
        size = (folder / "model.safetensors").stat().st_size
        rows, cols = config.grid
        (folder / "card.md").write_text(
            CARD.format(
                classes=config.num_classes,
                labels=", ".join(checkpoint.info.labels),
                side=config.image_size,
                rows=rows,
                cols=cols,
                depth=config.depth,
                width=config.embed_dim,
                stages=", ".join(str(s) for s in config.stages),
                parameters=num_parameters(checkpoint.model),
                megabytes=size / 1e6,
                test_images=TEST_IMAGES,
                full=metrics["test_top1_full"],
                pruned=metrics["test_top1_budget"],
                budget=config.budget.id,
                recipes=", then ".join(f"`recipes/{recipe.name}`" for recipe in recipes),
            ),
            encoding="utf-8",
        )
        (folder / "recipes").mkdir()
        for recipe in recipes:
            shutil.copyfile(recipe, folder / "recipes" / recipe.name)


CARD = """# gft_scenes

A focal Gradient Focal Transformer that names the one letter in a {side} x {side} scene of other signs, shapes and strokes.

| | |
|---|---|
| classes | {labels} |
| patches | {rows} x {cols} of a {side} px image |
| blocks, width | {depth}, {width}; patches selected in blocks {stages} |
| parameters | {parameters:,}; stored as float16, {megabytes:.2f} MB |
| training data | rendered scenes with a letter of the free fonts that matplotlib ships, which covers 1.5 % of the image |
| training | `gft-edge train` with {recipes} |
| top-1 on {test_images} test images, all patches | {full:.1%} |
| top-1 on {test_images} test images, {budget} patches kept | {pruned:.1%} |

One set of weights serves every token budget: it was trained with budgets drawn at random for each step.

Meant for trying and testing selection, export, quantization, compilation and benchmarks. It knows rendered letters only;
photographs of print are outside its training data.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the arguments and publishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="CKPT", help="folder of a checkpoint trained on scenes")
    parser.add_argument("out", type=Path, metavar="DIR", help="new folder")
    parser.add_argument("recipes", type=Path, nargs="*", metavar="RECIPE", help="recipes of its trainings, in order")
    args = parser.parse_args(arguments)
    publish(args.source, args.out, args.recipes)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
