"""Accuracy of a checkpoint (at one or more token budgets, in PyTorch), or of an artefact or ONNX file (in a backend).

Lists the classes with most errors and the most frequent confusions; --out writes the whole confusion matrix, and pictures of the
wrong predictions with the highest probability.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import (
    add_backend_argument,
    add_budget_argument,
    add_data_arguments,
    add_result_argument,
    add_threads_argument,
    is_artifact,
)

if TYPE_CHECKING:
    from gft_edge.runtime.accuracy import Accuracy

EXAMPLE = "gft-edge evaluate builtin --budget full --budget 72,72,72"

CLASSES_SHOWN = 20
MISTAKES_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "model",
        metavar="CKPT|ARTIFACT|MODEL.onnx",
        help="folder, or 'builtin' for the shipped checkpoint; or what quantize wrote for an ONNX file of another program",
    )
    add_data_arguments(parser, images=1600)
    add_budget_argument(parser, "checkpoint only, repeatable: ", " (full and the checkpoint's own)")
    add_backend_argument(parser, "artefact")
    add_threads_argument(parser, default=0)
    add_result_argument(parser, "the result as JSON, with pictures of wrong predictions beside it")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.bundle import open_artifact
    from gft_edge.cli.console import result, say, say_left_out, track
    from gft_edge.cli.early import require_data, require_result_file
    from gft_edge.errors import OutputError
    from gft_edge.evaluation import EvaluationOptions, evaluate
    from gft_edge.export.foreign.model import is_foreign, load_foreign
    from gft_edge.report.mistakes import require_evaluation_writable, write_evaluation

    if args.out:
        require_result_file(args.out, "results")
        require_evaluation_writable(args.out)
    require_data(args.data)
    options = EvaluationOptions(
        args.data, args.split, args.images, tuple(args.budget or ()), args.backend, args.threads
    )
    if is_foreign(args.model):
        from gft_edge.export.foreign.evaluation import evaluate_foreign

        evaluation = evaluate_foreign(load_foreign(args.model), options, say, track)
    elif is_artifact(args.model):
        evaluation = evaluate(open_artifact(args.model), options, say, track)
    else:
        from gft_edge.checkpoint import load_checkpoint

        evaluation = evaluate(load_checkpoint(args.model), options, say, track)
    say_left_out(evaluation.unreadable)
    data = {"model": str(args.model), **evaluation.to_json()}
    found = [each.accuracy for each in evaluation.results]
    text = _text(data, found)
    if args.out:
        try:
            data = write_evaluation(args.out, data, found, evaluation.images, evaluation.preprocess)
        except OutputError:  # the result took long to measure: show it although the file cannot be written
            result(args, data, text)
            raise
    result(args, data, text)
    return 0


def _text(data: dict[str, Any], found: Sequence[Accuracy]) -> str:
    from gft_edge.cli.console import table

    titles = ["budget", "precision", "top-1", "95 % interval"]
    top5 = found[0].top5 is not None
    rows = []
    for row in data["results"]:
        low, high = row["interval"]
        cells = [row["budget"], row["precision"], f"{row['top1']:.2%}", f"{low:.2%} to {high:.2%}"]
        rows.append([*cells, f"{row['top5']:.2%}"] if top5 else cells)
    head = f"{data['model']} on {data['images']} {data['split']} images of {data['data']}, {data['backend']}"
    parts = [head, table([*titles, "top-5"] if top5 else titles, rows)]
    names = [row["budget"] for row in data["results"]] if len(found) > 1 else ["right"]
    return "\n".join([*parts, *_classes(found, names), *_mistakes(found[-1], data["results"][-1]["budget"])])


def _classes(found: Sequence[Accuracy], names: Sequence[str]) -> list[str]:
    """Returns the share of right answers by class, the worst of the last result first, if several classes have wrong ones."""
    from gft_edge.cli.console import table

    classes = [accuracy.per_class() for accuracy in found]
    last = classes[-1]
    wrong = [number for number, (_, right, count) in enumerate(last) if right < count]
    missing = sum(count == 0 for _, _, count in last)
    parts = []
    if len(wrong) > 1:
        worst = sorted(wrong, key=lambda number: (last[number][1] / last[number][2], -last[number][2]))
        rows = [
            (last[number][0], last[number][2], *(f"{each[number][1] / each[number][2]:.1%}" for each in classes))
            for number in worst[:CLASSES_SHOWN]
        ]
        parts += ["", "classes with wrong answers, the worst first", table(("class", "images", *names), rows)]
        if len(worst) > CLASSES_SHOWN:
            parts.append(f"and {len(worst) - CLASSES_SHOWN} more classes; --out FILE has all")
    if missing:
        parts.append(f"{missing} of {len(last)} classes have no images here")
    return parts


def _mistakes(accuracy: Accuracy, budget: str) -> list[str]:
    """Returns the most frequent mistakes, if one occurred more than once."""
    from gft_edge.cli.console import table

    mistakes = accuracy.confused(MISTAKES_SHOWN)
    if not mistakes or mistakes[0][2] < 2:
        return []
    return ["", f"most frequent mistakes at {budget}", table(("class", "taken for", "images"), mistakes)]
