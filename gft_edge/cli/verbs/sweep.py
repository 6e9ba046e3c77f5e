"""Measure milliseconds against tokens on one backend, and list the tokens that cost nothing more.

One traced graph gives every budget, so a sweep takes about a minute for a small model.
"""

from __future__ import annotations

import argparse
from typing import Any

from gft_edge.cli.common import add_new_folder, add_threads_argument, measured_text, positive
from gft_edge.runtime.backends.table import DEFAULT

EXAMPLE = "gft-edge sweep builtin --stage 1 --out runs/sweep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint folder of a focal model, or 'builtin'")
    parser.add_argument(
        "--backend", default=DEFAULT, metavar="B", help=f"what runs the graphs: {measured_text()} ({DEFAULT})"
    )
    parser.add_argument("--precision", default="fp32", metavar="P", help="fp32, fp16 or int8 (fp32)")
    parser.add_argument(
        "--stage",
        default="uniform",
        metavar="N|uniform",
        help="stage whose tokens are swept, counted from 1, or 'uniform' for the same count in each (uniform)",
    )
    parser.add_argument("--budget", metavar="K,K,K", help="counts of the other stages (the checkpoint's own)")
    parser.add_argument("--points", type=positive, default=40, metavar="N", help="most counts to measure (40)")
    add_threads_argument(parser, 1)
    add_new_folder(parser, "sweep.json and sweep.svg", required=False)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.console import result, track
    from gft_edge.cli.early import checkpoint_info
    from gft_edge.errors import ConfigError
    from gft_edge.files import new_folder, require_free, write_json

    if args.out:
        require_free(args.out)
    if args.stage != "uniform" and not args.stage.isdigit():
        raise ConfigError(f"--stage {args.stage!r}: expected the number of a stage, or uniform")
    config = checkpoint_info(args.checkpoint).model
    budget = config.parse_budget(args.budget) if args.budget else None
    from gft_edge.search.staircase import UNIFORM, SweepOptions, sweep

    checkpoint = load_checkpoint(args.checkpoint)
    options = SweepOptions(
        stage=UNIFORM if args.stage == UNIFORM else int(args.stage),
        backend=args.backend,
        precision=args.precision,
        threads=args.threads,
        points=args.points,
        budget=budget,
    )
    data = sweep(checkpoint, options, track)
    if args.out:
        with new_folder(args.out) as folder:
            write_json(folder / "sweep.json", data)
            (folder / "sweep.svg").write_text(_figure(data), encoding="utf-8")
    result(args, data, _text(data))
    return 0


def _figure(data: dict[str, Any]) -> str:
    from gft_edge.report.figures.staircase import staircase
    from gft_edge.search.staircase import points_of

    tokens, ms = points_of(data)
    return staircase(tokens, ms, {row["tokens"] for row in data["free"]}, _axis(data))


def _axis(data: dict[str, Any]) -> str:
    where = "every stage" if data["stage"] == "uniform" else f"stage {data['stage']}"
    return f"tokens after {where}; {data['backend']}, {data['precision']}, {data['threads'] or 'all'} thread(s)"


def _text(data: dict[str, Any]) -> str:
    from gft_edge.cli.console import table

    free = {row["tokens"]: row["than"] for row in data["free"]}
    rows = [
        (
            point["tokens"],
            point["budget"],
            f"{point['ms']:.3f}",
            f"{point['gmac']:.3f}",
            f"no more than {free[point['tokens']]}" if point["tokens"] in free else "",
        )
        for point in data["points"]
    ]
    listed = ", ".join(map(str, free)) or "none"
    return f"{_axis(data)}\n{table(('tokens', 'budget', 'ms', 'GMAC', 'costs'), rows)}\nfree tokens: {listed}"
