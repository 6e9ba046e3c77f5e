"""Train a model by a TOML or JSON recipe; writes a checkpoint folder, a log, and the state for resuming."""

from __future__ import annotations

import argparse
from pathlib import Path

from gft_edge.cli.common import add_checkpoint_output

EXAMPLE = "gft-edge train --config recipes/scenes.toml --out runs/scenes --set train.steps=200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    add_training_arguments(parser)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config``, ``--out``, ``--resume`` and ``--set``."""
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="RECIPE",
        help="TOML or JSON recipe, or the name of a recipe in the package, such as image-folder",
    )
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
    return run_training(args)


def run_training(args: argparse.Namespace, *changes: str) -> int:
    """Trains by the arguments of :func:`add_training_arguments` and further changes to the recipe; prints the accuracy."""
    from gft_edge.cli.console import result, say, track
    from gft_edge.config.recipe import load_recipe, shipped_recipe
    from gft_edge.files import require_writable_folder
    from gft_edge.train.loop import train
    from gft_edge.train.state import require_new, resume_hint

    shipped = shipped_recipe(args.config)
    if shipped is not None:
        say(f"recipe {args.config}: no such file here; using the recipe of that name in the package")
    recipe = load_recipe(shipped or args.config, [*args.set, *changes])
    require_writable_folder(args.out)
    if not args.resume:
        require_new(args.out)
    try:
        info = train(recipe, args.out, resume=args.resume, track=track, report=say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(resume_hint(args.out)) from None
    figures = info.metrics
    text = (
        f"{args.out}: top-1 on {figures['val_images']} validation images: {figures['val_top1_full']:.1%} at full budget, "
        f"{figures['val_top1_budget']:.1%} at {figures['budget']}"
    )
    result(args, {"out": str(args.out), **figures}, text)
    return 0
