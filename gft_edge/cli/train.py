"""Train a model by a TOML or JSON recipe; writes a checkpoint folder, a log, and what resuming needs."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "gft-edge train --config recipes/typeface.toml --out runs/typeface --set train.steps=200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("--config", type=Path, required=True, metavar="RECIPE", help="TOML or JSON recipe")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint folder to write")
    parser.add_argument("--resume", action="store_true", help="go on from DIR/state.pt, exactly")
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", help="change a value of the recipe"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, say, track
    from gft_edge.config import load_recipe
    from gft_edge.files import require_free
    from gft_edge.train.loop import train

    recipe = load_recipe(args.config, args.set)
    if not args.resume:
        require_free(args.out)
    info = train(recipe, args.out, resume=args.resume, track=track, report=say)
    figures = info.metrics
    text = (
        f"{args.out}: top-1 on {figures['val_images']} validation images: {figures['val_top1_full']:.1%} at full budget, "
        f"{figures['val_top1_budget']:.1%} at {figures['budget']}"
    )
    result(args, {"out": str(args.out), **figures}, text)
    return 0
