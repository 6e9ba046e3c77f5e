"""Train a model by a recipe that also learns from a teacher: any checkpoint of the same classes. Writes what train writes."""

from __future__ import annotations

import argparse
import json

from gft_edge.cli.verbs.train import add_recipe_arguments, run_recipe

EXAMPLE = "gft-edge distill --teacher runs/teacher --config recipes/scenes-distill.toml --out runs/student"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "--teacher",
        required=True,
        metavar="CKPT",
        help="checkpoint folder of the teacher, or 'builtin'; takes the place of distill.teacher of the recipe",
    )
    add_recipe_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.early import checkpoint_info

    checkpoint_info(args.teacher)
    return run_recipe(args, f"distill.teacher={json.dumps(args.teacher)}")
