"""Train a model by a TOML or JSON recipe; writes a checkpoint folder, a log, and what resuming needs."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "gft-edge train --config recipes/typeface.toml --out runs/typeface --set train.steps=200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="RECIPE",
        help="TOML or JSON recipe, or the name of one of the package, such as image-folder",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint folder to write")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from DIR/state.pt, exactly, or begin again where none was saved",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", help="change a value of the recipe"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, say, track
    from gft_edge.config.recipe import load_recipe
    from gft_edge.files import require_writable_folder
    from gft_edge.train.loop import train

    config = _own_recipe(args.config)
    if config != args.config:
        say(f"recipe {args.config}: no such file here, so that of the package is taken")
    recipe = load_recipe(config, args.set)
    require_writable_folder(args.out)
    if not args.resume:
        _require_new(args.out)
    try:
        info = train(recipe, args.out, resume=args.resume, track=track, report=say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_go_on(args.out)) from None
    figures = info.metrics
    text = (
        f"{args.out}: top-1 on {figures['val_images']} validation images: {figures['val_top1_full']:.1%} at full budget, "
        f"{figures['val_top1_budget']:.1%} at {figures['budget']}"
    )
    result(args, {"out": str(args.out), **figures}, text)
    return 0


def _own_recipe(path: Path) -> Path:
    """The recipe that ships with the package where a path leads nowhere and names one: ``recipes/image-folder.toml``."""
    from gft_edge.checkpoint import builtin_path

    own = builtin_path() / "recipes" / f"{path.name.removesuffix('.toml')}.toml"
    return own if not path.exists() and path.parent.name in ("", "recipes") and own.is_file() else path


def _require_new(out: Path) -> None:
    """Refuses a folder that holds something; one that holds a training with the way to go on with it."""
    from gft_edge.errors import ConfigError
    from gft_edge.files import require_free
    from gft_edge.train.state import saved_step, started_without_state

    step = saved_step(out)
    if step is not None:
        raise ConfigError(
            f"output {out}: holds a training saved at step {step}; go on with --resume, or give another --out"
        )
    if started_without_state(out) and any(out.iterdir()):
        raise ConfigError(
            f"output {out}: holds a training that was stopped before it saved anything; --resume starts it again, or give "
            "another --out"
        )
    require_free(out)


def _how_to_go_on(out: Path) -> str:
    from gft_edge.train.state import saved_step

    step = saved_step(out)
    return (
        f"--resume goes on from step {step}"
        if step is not None
        else "nothing was saved yet; --resume starts again from the beginning (train.checkpoint_every says how often to save)"
        if out.is_dir()
        else "nothing was saved yet"
    )
