"""Find the smallest model that is still right: token budgets and precisions of trained checkpoints, by accuracy and cost.

One checkpoint serves every budget, so nothing is trained. The budgets are tile-aligned; their costs are multiply-accumulates, or
latencies: measured here (--backend), on a board (--costs), or bounded by a roofline (--target). Over a hundred points are
measured on some images, the best of them on all. Writes front.json, a plot (.svg) and a page (.html) beside it, and prints the
recommended point with the commands that make it. Exit code 1 if no point is within the limits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import (
    REPLACED,
    add_align_argument,
    add_data_argument,
    add_seed_argument,
    add_split_argument,
    add_threads_argument,
    comma_separated,
    measured_text,
    positive,
)

if TYPE_CHECKING:
    from gft_edge.search.options import SearchOptions

EXAMPLE = "gft-edge search builtin --data scenes --precision fp32,int8 --out runs/search/front.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "checkpoint",
        nargs="+",
        metavar="CKPT",
        help="focal checkpoints of the same labels, for example one for each resolution; 'builtin' is the shipped one",
    )
    add_data_argument(parser)
    add_split_argument(parser, None, "val, or test where there are no val images")
    parser.add_argument("--target", metavar="DEVICE", help="latency: a bound by this device's roofline")
    parser.add_argument("--backend", metavar="B", help=f"latency: measured here, on {measured_text()}")
    parser.add_argument(
        "--costs", type=Path, metavar="BENCH.json", help="latency: a file of gft-edge bench, of a board"
    )
    parser.add_argument("--max-ms", type=float, metavar="X", help="most milliseconds of one image")
    parser.add_argument("--max-mj", type=float, metavar="X", help="most millijoules of one image")
    parser.add_argument(
        "--max-gmac", type=float, metavar="X", help="most billions of multiply-accumulates of one image"
    )
    parser.add_argument(
        "--min-accuracy",
        type=_share,
        metavar="Y",
        help="required top-1, 0.94 or 94%% (less than 1 point below that of every patch, paired)",
    )
    parser.add_argument("--precision", default="fp32", metavar="P,P", help="fp32, fp16, int8, with commas (fp32)")
    parser.add_argument(
        "--policy",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="mixed precision of sensitivity; repeatable",
    )
    parser.add_argument(
        "--points", type=positive, default=120, metavar="N", help="points to measure per checkpoint (120)"
    )
    parser.add_argument("--subset", type=positive, default=320, metavar="N", help="images for these points (320)")
    parser.add_argument("--images", type=positive, default=1600, metavar="N", help="images for the front (1600)")
    parser.add_argument(
        "--calibration-images", type=positive, default=256, metavar="N", help="training images for INT8 ranges (256)"
    )
    add_align_argument(parser, 8)
    add_seed_argument(parser, 0, "the draws")
    add_threads_argument(parser, default=0)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"front.json to write, {REPLACED}, with its plot and page",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.common import calibration_callbacks
    from gft_edge.cli.console import result, say_left_out
    from gft_edge.cli.early import checkpoint_info, require_data, require_result_file
    from gft_edge.errors import CheckFailed, OutputError

    options = _options(args)
    require_result_file(args.out, "points")
    require_data(args.data)
    for name in args.checkpoint:
        checkpoint_info(name, full_precision=True)
    from gft_edge.report.pages.front import require_front_writable, write_front
    from gft_edge.search.search import search

    require_front_writable(args.out)
    checkpoints = [load_checkpoint(name) for name in args.checkpoint]
    callbacks = calibration_callbacks()
    found = search(args.checkpoint, checkpoints, options, args.out.parent, callbacks)
    say_left_out(found.unreadable)
    try:
        write_front(args.out, found.data)
    except OutputError:  # the result took long to measure: show it although the files cannot be written
        result(args, found.data, _text(args, found.data))
        raise
    result(args, {"out": str(args.out), **found.data}, _text(args, found.data))
    if found.unmet is not None:
        raise CheckFailed(found.unmet)
    return 0


def _share(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a share such as 0.94 or 94%, found {text!r}") from None


def _options(args: argparse.Namespace) -> SearchOptions:
    from gft_edge.search.options import Limits, SearchOptions

    return SearchOptions(
        data=args.data,
        split=args.split,
        images=args.images,
        subset=args.subset,
        points=args.points,
        precisions=comma_separated(args.precision),
        policies=tuple(args.policy),
        limits=Limits(args.max_ms, args.max_mj, args.max_gmac),
        min_accuracy=args.min_accuracy,
        align=args.align,
        target=args.target,
        backend=args.backend,
        costs=args.costs,
        calibration_images=args.calibration_images,
        seed=args.seed,
        threads=args.threads,
    )


def _text(args: argparse.Namespace, data: dict[str, Any]) -> str:
    """Returns the front and the recommended point for people."""
    from gft_edge.cli.console import table
    from gft_edge.report.pages.front import front_table

    candidates = data["candidates"]
    total, within = (sum(row[key] for row in candidates) for key in ("budgets", "within"))
    complete = "" if all(row["is_complete"] for row in candidates) else ", drawn from more"
    lines = [
        f"{args.out}: {len(data['points'])} points measured, {within} of {total} candidates{complete} are within the limits; "
        f"{data['split']} images of {data['data']}, cost: {data['cost']['source']}",
        table(*front_table(data)),
    ]
    if data["recommended"] is not None:
        chosen = data["recommended"]
        lines += [chosen["why"], *([chosen["free_tokens"]] if chosen["free_tokens"] else []), *chosen["commands"]]
    return "\n".join(lines)
