"""Applies hand-made faults to the core, one at a time, and measures which of them the tests find; writes figures and a page.

Example: python -m gft_edge.benchmarks.torture.mutations runs/torture/mutations.json docs/mutations.md --only 3 17
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.measuring.protocol import commit
from gft_edge.benchmarks.torture.mutations.catalogue import chosen, mutated, read_catalogue
from gft_edge.benchmarks.torture.mutations.page import markdown
from gft_edge.benchmarks.torture.mutations.running import Limits, key_of, known_verdicts, require_green, verdicts
from gft_edge.benchmarks.torture.mutations.trees import copied_tree
from gft_edge.cli.console import say, track
from gft_edge.errors import exit_code
from gft_edge.files import read_json, replacing, write_json
from gft_edge.hardware.environment import machine

ROOT = Path(__file__).resolve().parents[3]
"""The working tree that this file is in."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the mutations whose verdict is not known yet; returns 1 if one survived without a reason, else 0.

    Raises:
        ConfigError: a mutation does not fit the tree, or there is none of a number.
        CheckFailed: tests fail without a mutation.
    """
    args = _parser().parse_args(argv)
    catalogue = read_catalogue(args.areas)
    for one in catalogue:
        mutated(args.root, one.mutation)
    limits = Limits(args.limit, args.wider_limit)
    data: dict[str, Any] = read_json(args.out, "figures of mutations") if args.out.is_file() else {}
    known = known_verdicts(data)
    keys = {one.number: key_of(args.root, one.mutation) for one in catalogue}
    pending = [one for one in chosen(catalogue, args.only) if keys[one.number] not in known]
    about = {"machine": _machine(), "commit": commit(), "limits": asdict(limits)}
    if pending:
        with (
            tempfile.TemporaryDirectory(prefix="gft-mutations-") as scratch,
            copied_tree(args.root, Path(scratch) / "copy") as tree,
        ):
            say(f"named tests of {len(pending)} mutations, without a mutation")
            say(f"they pass, in {require_green(tree, pending, limits):.0f} s")
            for verdict in verdicts(tree, pending, limits, track, say):
                known[verdict.key] = verdict
                write_json(args.out, {**about, "verdicts": [asdict(known[key]) for key in sorted(known)]})
    judged = [(one, known.get(keys[one.number])) for one in catalogue]
    with replacing(args.page) as temporary:
        temporary.write_text(markdown(about, judged), encoding="utf-8")
    survivors = [one for one, verdict in judged if verdict is not None and not verdict.caught]
    say(f"{sum(verdict is not None for _, verdict in judged)} run, {len(survivors)} survived")
    return 1 if any(not one.mutation.survives for one in survivors) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.json", help="file for the verdicts; those that it has are kept")
    parser.add_argument("page", type=Path, metavar="PAGE.md", help="file for the page")
    parser.add_argument("--only", type=int, nargs="+", default=(), metavar="N", help="numbers of mutations (all)")
    parser.add_argument("--limit", type=float, default=600.0, metavar="S", help="seconds for the named tests (600)")
    parser.add_argument("--wider-limit", type=float, default=3600.0, metavar="S", help="seconds for an area (3600)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="working tree (the one of this file)")
    parser.add_argument(
        "--areas", type=Path, default=ROOT / "benchmarks/torture/mutations/areas", help=argparse.SUPPRESS
    )
    return parser


def _machine() -> str:
    cpu = machine().get("cpu")
    model = cpu.get("model") if isinstance(cpu, dict) else None
    return f"{model or 'an unknown processor'}, {os.cpu_count()} cores"


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
