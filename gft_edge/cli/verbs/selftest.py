"""Test a bundle, its zip or an artefact where it is used: every file, the signature, the device, and what the golden images give.

Needs numpy and one runtime. Exit code 1 when a figure is out of its limit; the line names budget, image, stage, figure and limit.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gft_edge.runtime.backends.table import NAMES

if TYPE_CHECKING:
    from gft_edge.runtime.selftest import BudgetResult, SelfTest

EXAMPLE = "gft-edge selftest bundle.zip --key public.pem --unpack bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE|BUNDLE.zip|ARTIFACT", help="folder, or zip of a bundle")
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="B",
        help=f"auto, {', '.join(NAMES)} (auto: an engine where the bundle has one and there is a GPU, else ONNX Runtime)",
    )
    parser.add_argument("--key", type=Path, metavar="PUB.pem", help="public Ed25519 key that the signature must fit")
    parser.add_argument(
        "--unpack", type=Path, metavar="DIR", help="new folder for the content of the zip, if it is right"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns 1 when a figure is out of its limit."""
    from gft_edge.cli.console import result
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK
    from gft_edge.runtime.selftest import SelfTestOptions, selftest

    done = selftest(args.bundle, SelfTestOptions(args.backend, args.key, args.unpack))
    result(args, done.to_json(), _text(done))
    return EXIT_CHECK_FAILED if done.verdict == "fail" else EXIT_OK


def _text(done: SelfTest) -> str:
    from gft_edge.cli.console import table

    kind = f"bundle for {done.target}" + (f" on {done.device}" if done.device else "") if done.target else "artefact"
    head = f"{done.path}: {kind}, {done.artifact_id}, {done.precision}; {done.files} files as recorded, signature {done.signature}"
    names = ("budget", "against", "images", "same class", "logit SQNR", "kept-set Jaccard by stage")
    lines = [head, table(names, [row for budget in done.budgets for row in _rows(budget)])]
    lines += [f"note: {note}" for note in done.notes]
    end = f"{done.backend}, {done.seconds:.1f} s"
    verdict = {
        "pass": f"passed ({end})",
        "fail": "\n".join(f"FAILED ({end}): {text}" for text in done.failures),
        "inconclusive": f"passed ({end}), but not decided: {'; '.join(done.undecided)}",
    }
    return "\n".join([*lines, verdict[done.verdict]])


def _rows(budget: BudgetResult) -> list[tuple[object, ...]]:
    return [
        (
            budget.budget,
            c.reference,
            c.images,
            f"{c.top1_agreement:.0%}",
            "exact" if c.logit_sqnr_db is None else f"{c.logit_sqnr_db:.1f} dB",
            " ".join(f"{stage.jaccard:.4f}" for stage in c.stages) or "-",
        )
        for c in budget.comparisons
    ]
