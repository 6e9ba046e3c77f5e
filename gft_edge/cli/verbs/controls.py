"""Does the selection matter on these images: accuracy with the patches that the model keeps, and with those of other rules.

Measured with every patch, and at each budget: the most important patches (the model's own score), random ones (three draws), the
least important, static ones (the same places in every image, by their mean score on other images), those nearest to the centre,
and the same weights on smaller images at about the same cost. Where the data knows its marks, also an oracle and the normalised
gain G. Paired tests and a sentence for each budget. Of an artefact the exported graph itself runs, in ONNX Runtime on the CPU, at
the budgets it has, without the smaller images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import add_budget_argument, add_data_arguments, add_threads_argument, is_artifact

if TYPE_CHECKING:
    from gft_edge.checkpoint import Checkpoint

EXAMPLE = "gft-edge controls builtin --budget 72,72,72 --out runs/controls"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "model",
        metavar="CKPT|ARTIFACT",
        help="folder of a focal checkpoint, or 'builtin'; or an artefact or bundle of one, ARTIFACT@K-K-K for one of its budgets",
    )
    add_data_arguments(parser, images=400)
    add_budget_argument(parser, "repeatable, of an artefact one it has: ", " (the model's own)")
    add_threads_argument(parser, default=0)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="also write controls.json, controls.svg and controls.html into a folder, in place of earlier ones",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.bundle import open_artifact
    from gft_edge.cli.console import result, say, say_left_out, track
    from gft_edge.cli.early import checkpoint_info, require_data
    from gft_edge.errors import OutputError
    from gft_edge.files import require_writable_folder

    require_data(args.data)
    artifact = open_artifact(args.model) if is_artifact(args.model) else None
    if artifact is None:
        checkpoint_info(args.model)
    from gft_edge.controls import ControlOptions, controls

    if args.out:
        from gft_edge.report.pages.controls import write_controls  # without matplotlib it fails before the work

        require_writable_folder(args.out)
    options = ControlOptions(args.data, args.split, args.images, tuple(args.budget or ()), args.threads)
    found = controls(artifact or _checkpoint(args.model), options, say, track)
    say_left_out(found.unreadable)
    data = {"model": str(args.model), **found.to_json()}
    if args.out:
        try:
            write_controls(args.out, data)
        except OutputError:  # the result took long to measure: show it although the files cannot be written
            result(args, data, _text(data))
            raise
    result(args, data, _text(data))
    return 0


def _checkpoint(name: str) -> Checkpoint:
    from gft_edge.checkpoint import load_checkpoint

    return load_checkpoint(name)


def _text(data: dict[str, Any]) -> str:
    from gft_edge.cli.console import table
    from gft_edge.control_results import full_text, gain_text, rule_table, static_text

    lines = [
        f"{data['model']}, {data['precision']} in {data['backend']}, on {data['images']} {data['split']} images of "
        f"{data['data']}; {full_text(data)}",
        f"static: {static_text(data)}",
    ]
    if any(at["lower_resolution"] for at in data["budgets"]):
        lines.append(
            "all, S pixels: the same weights on smaller images, not trained at that size: a lower bound of a network that is"
        )
    for at in data["budgets"]:
        lines += ["", f"{at['budget']} patches kept, {at['macs'] / 1e6:.0f} million MACs", table(*rule_table(at))]
        lines += [gain_text(at, data["has_marks"]), at["verdict"]]
    return "\n".join(lines)
