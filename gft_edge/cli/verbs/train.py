"""Train a model by a TOML or JSON recipe, or on a folder of images by a recipe chosen for it.

Writes a checkpoint folder, a log, and the state for resuming. Before it starts it says about how long it will take.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gft_edge.cli.common import add_checkpoint_output

if TYPE_CHECKING:
    from gft_edge.config.recipe import Recipe

EXAMPLE = "gft-edge train --data images --out runs/trained"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data", metavar="DIR", help="folder of images, one sub-folder per class: the recipe is chosen, for CPU or GPU"
    )
    _add_config(what)
    add_training_arguments(parser)


def _add_config(parser: argparse._ActionsContainer, required: bool = False) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        required=required,
        metavar="RECIPE",
        help="TOML or JSON recipe, or the name of a recipe in the package, such as image-folder",
    )


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config`` and what :func:`add_training_arguments` does."""
    _add_config(parser, required=True)
    add_training_arguments(parser)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--out``, ``--resume`` and ``--set``."""
    add_checkpoint_output(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue exactly from DIR/state.pt, or start again if no state was saved",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", help="change a value of the recipe"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    if args.data is None:
        return run_recipe(args)
    from gft_edge.cli.console import say
    from gft_edge.cli.early import require_data
    from gft_edge.files import require_writable_folder

    require_data(args.data)
    require_writable_folder(args.out)
    from gft_edge.train.own_data import choose_recipe

    chosen = choose_recipe(args.data, args.set)
    say(chosen.why)
    return run_training(args, chosen.recipe)


def run_recipe(args: argparse.Namespace, *changes: str) -> int:
    """Trains by ``--config`` and further changes to the recipe."""
    from gft_edge.cli.console import say
    from gft_edge.config.recipe import load_recipe, shipped_recipe

    shipped = shipped_recipe(args.config)
    if shipped is not None:
        say(f"recipe {args.config}: no such file here; using the recipe of that name in the package")
    return run_training(args, load_recipe(shipped or args.config, [*args.set, *changes]))


def run_training(args: argparse.Namespace, recipe: Recipe) -> int:
    """Trains by a recipe and the arguments of :func:`add_training_arguments`; prints the accuracy."""
    from gft_edge.cli.console import command, following, result, say, track
    from gft_edge.cli.early import require_data
    from gft_edge.files import require_writable_folder

    require_writable_folder(args.out)
    require_data(recipe.data.name)
    from gft_edge.train.loop import train
    from gft_edge.train.state import require_new, resume_hint

    if not args.resume:
        require_new(args.out)
    try:
        info = train(recipe, args.out, resume=args.resume, track=track, report=say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(resume_hint(args.out)) from None
    figures = info.metrics
    text = (
        f"{args.out}: top-1 on {figures['val_images']} validation images: {figures['val_top1_full']:.1%} at full budget, "
        f"{figures['val_top1_budget']:.1%} at {figures['budget']}\n"
    )
    text += following(command("quantize", args.out, "--out", f"{args.out}-int8"))
    result(args, {"out": str(args.out), **figures}, text)
    return 0
