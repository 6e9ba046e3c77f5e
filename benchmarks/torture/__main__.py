"""Measures how the toolkit bears damage, kills, hostile input and long use; writes figures and a page.

Example: python -m gft_edge.benchmarks.torture runs/torture/torture.json docs/promises.md --seconds 3600
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gft_edge.benchmarks.measuring.protocol import commit
from gft_edge.benchmarks.torture import flips, forks, kills, mutants, repeat, soak
from gft_edge.benchmarks.torture.materials import Materials, make_apart
from gft_edge.benchmarks.torture.page import markdown
from gft_edge.benchmarks.torture.readers import readers
from gft_edge.files import replacing, write_json
from gft_edge.hardware.environment import machine, versions

PARTS = {"flips": 0.12, "kills": 0.3, "signals": 0.13, "mutants": 0.25, "soak": 0.1, "repeat": 0.1}
"""Parts and their share of the time."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures; 1 when something failed that must not."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(1)  # threads do not survive a fork
    began = time.monotonic()
    folder = args.materials or Path(tempfile.mkdtemp(prefix="gft-torture-"))
    data: dict[str, Any] = {"seed": args.seed, "machine": _machine(), "versions": versions(), "commit": commit()}
    try:
        made = Materials(folder / "made")
        if not made.root.exists():
            say("making the files to attack")
            make_apart(made.root, args.seed)
        forks.warm_up()
        shares = {name: PARTS[name] for name in PARTS if name in args.part}
        end = time.monotonic() + args.seconds  # making the files does not count
        for name, share in shares.items():
            left = sum(shares[later] for later in list(shares)[list(shares).index(name) :])
            seconds = (end - time.monotonic()) * share / left
            say(f"{name}, at most {seconds:.0f} s")
            found = _measure(name, made, folder, args, max(seconds, 1.0))
            data[name] = [{**asdict(one), "failed": one.failed} for one in found]
            say(f"{name}: {sum(one.failed for one in found)} failed")
            data["seconds"] = time.monotonic() - began
            write_json(args.out, data)
    finally:
        if args.materials is None:
            shutil.rmtree(folder, ignore_errors=True)
    with replacing(args.page) as temporary:
        temporary.write_text(markdown(data), encoding="utf-8")
    return 1 if any(one["failed"] for name in PARTS for one in data.get(name, ())) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.json", help="figures")
    parser.add_argument("page", type=Path, metavar="PAGE.md", help="the page for people")
    parser.add_argument("--seconds", type=float, default=7200.0, help="end after about so long (7200)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    parser.add_argument("--part", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="what to measure (all)")
    parser.add_argument("--flips", type=int, default=1000, metavar="N", help="changes of each kind of file (1000)")
    parser.add_argument("--mutants", type=int, default=50_000, metavar="N", help="inputs over all readers (50000)")
    parser.add_argument(
        "--events", type=int, default=60, metavar="N", help="at most so many file events of each verb (60)"
    )
    parser.add_argument(
        "--moments", type=int, default=12, metavar="N", help="kills and interrupts of each verb at moments (12)"
    )
    parser.add_argument(
        "--finds", type=Path, default=Path("runs/torture/finds"), metavar="DIR", help="where finds are written"
    )
    parser.add_argument(
        "--materials", type=Path, metavar="DIR", help="keep the files to attack here, and use them again"
    )
    return parser


def _measure(name: str, made: Materials, folder: Path, args: argparse.Namespace, seconds: float) -> list[Any]:
    scratch = folder / "scratch"
    parts: dict[str, Callable[[], list[Any]]] = {
        "flips": lambda: flips.measure(made, args.flips, args.seed, seconds),
        "kills": lambda: kills.measure(made, scratch, args.seed, args.events, args.moments, seconds),
        "signals": lambda: kills.interrupt(made, scratch, args.seed, args.moments, seconds),
        "mutants": lambda: mutants.measure(
            readers(made, scratch), args.mutants, args.seed, scratch, args.finds, seconds
        ),
        "soak": lambda: soak.measure(made.artifact, 8, 10_000, 100_000, 500),
        "repeat": lambda: repeat.measure(made, scratch, seconds=seconds),
    }
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        return parts[name]()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _machine() -> str:
    found = machine()
    cpu = found.get("cpu")
    model = cpu.get("model") if isinstance(cpu, dict) else None
    return f"{model or 'an unknown processor'}, {os.cpu_count()} cores"


def say(text: str) -> None:
    """A line of progress."""
    print(f"torture: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
