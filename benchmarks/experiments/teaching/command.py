"""The command line of the studies: options of the plan, which arms, how many seeds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.experiments.teaching.figures import figures
from gft_edge.benchmarks.experiments.teaching.page import page, section
from gft_edge.benchmarks.experiments.teaching.plan import ARMS, Plan, arms_named
from gft_edge.benchmarks.experiments.teaching.study import open_study, results, run
from gft_edge.cli.console import print_out, say, track
from gft_edge.errors import ConfigError
from gft_edge.files import read_json, replacing, write_json

RESULTS, SECTION = "results.json", "results.md"


def main(about: str, arguments: Sequence[str] | None = None, plan: Plan | None = None, arms: str = "") -> int:
    """Runs a study, or goes on with one; writes results.json and results.md after every run and prints the tables.

    Args:
        about: first text of the help.
        arguments: of the command line.
        plan: default sizes.
        arms: names of the default arms; all of them if empty.
    """
    plan = plan or Plan()
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CKPT", help="trained on scenes, with every patch")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the study; resumes what is there"
    )
    parser.add_argument("--arms", default=arms or ",".join(ARMS), metavar="A,B", help="default: %(default)s")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="trainings of each arm (default: %(default)s)"
    )
    parser.add_argument("--data", default=plan.data, help="default: %(default)s")
    parser.add_argument(
        "--size", type=int, default=plan.size, metavar="PX", help="side of the images (default: %(default)s)"
    )
    parser.add_argument("--stages", default=",".join(map(str, plan.stages)), metavar="1,2", help="default: %(default)s")
    parser.add_argument("--budgets", nargs="+", default=plan.budgets, metavar="B", help="default: %(default)s")
    parser.add_argument(
        "--steps", type=int, default=plan.steps, metavar="N", help="of each training (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=plan.batch_size, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--taught", type=int, default=plan.taught, metavar="N", help="of a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=int, default=plan.images, metavar="N", help="of the test (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="0: one per core (default: %(default)s)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write a page with this study")
    parser.add_argument(
        "--with", type=Path, action="append", default=[], metavar="DIR", dest="others", help="finished study"
    )
    args = parser.parse_args(arguments)
    chosen = arms_named(args.arms)
    if args.seeds < 1 or args.threads < 0:
        raise ConfigError(f"--seeds must be 1 or more and --threads 0 or more, found {args.seeds} and {args.threads}")
    given = Plan(
        data=args.data,
        size=args.size,
        stages=_numbers(args.stages),
        budgets=tuple(args.budgets),
        steps=args.steps,
        batch_size=args.batch,
        warmup_steps=max(1, args.steps // 10),
        taught=min(args.taught, args.batch),
        images=args.images,
    )
    study = open_study(args.checkpoint, args.out, given)
    for seed in range(args.seeds):
        for arm in chosen:
            run(study, [arm], [seed], args.threads, track, say)
            found = write(study.out, results(study))
    print_out(section(_title(found), found))
    if args.page is not None:
        studies = [found, *(read_json(folder / RESULTS, "study") for folder in args.others)]
        with replacing(args.page) as temporary:
            temporary.write_text(page({_title(one): one for one in studies}), encoding="utf-8")
    return 0


def write(out: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Writes what was measured with its figures as results.json and results.md; returns it."""
    found = {**found, "figures": figures(found)}
    write_json(out / RESULTS, found)
    with replacing(out / SECTION) as temporary:
        temporary.write_text(section(_title(found), found), encoding="utf-8")
    return found


def _title(found: dict[str, Any]) -> str:
    stages = found["plan"]["stages"]
    return f"{found['plan']['size']} px, selection in block{'s' * (len(stages) > 1)} {', '.join(map(str, stages))}"


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--stages {text}: expected numbers of blocks such as 1,2,3") from None
