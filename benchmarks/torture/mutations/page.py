"""Renders the page on mutations from the figures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gft_edge.benchmarks.torture.mutations.catalogue import Numbered
from gft_edge.benchmarks.torture.mutations.running import Verdict

HEAD = """# Do the tests find faults?

`python -m gft_edge.benchmarks.torture.mutations OUT.json docs/mutations.md` writes this page: edit
`benchmarks/torture/mutations/`, not the page.

Each mutation is one small fault that a programmer could make, put by hand into the core: a wrong sign, a comparison that is off
by one, a check that is skipped. It is applied to a copy of the tree. The tests of the file run first; only where they all pass,
the tests of the whole area run too. A mutation that passes both is a survivor. The named tests pass without a mutation, and so
does every test of an area that failed with one. A run over its time limit counts as caught; the tables say so where it happened.

The mutations were chosen by hand before any was run, so the share that is caught says how the tests fare with faults of this
kind; it is no estimate for all faults. The whole suite was not run on any mutation.
"""


def markdown(data: Mapping[str, Any], judged: Sequence[tuple[Numbered, Verdict | None]]) -> str:
    """Returns the page.

    Args:
        data: figures of a run: machine, versions, commit, limits.
        judged: every mutation with its verdict, None for one that was not run.
    """
    run = [(one, verdict) for one, verdict in judged if verdict is not None]
    survivors = [one for one, verdict in run if not verdict.caught]
    gaps = [one.number for one, _ in judged if one.mutation.gap]
    by_stage = {stage: sum(verdict.stage == stage for _, verdict in run) for stage in ("named", "wider")}
    hung = sum(verdict.caught and verdict.reason.startswith("time limit") for _, verdict in run)
    minutes, limits = sum(verdict.seconds for _, verdict in run) / 60, data["limits"]
    lines = [
        HEAD,
        "## Result\n",
        f"{len(run)} of {len(judged)} mutations were run, **{sum(by_stage.values())} were caught**: {by_stage['named']} by the "
        f"named tests, {by_stage['wider']} by others of the area; {hung} of these by the time limit. {len(survivors)} survived.",
        f"{len(gaps)} of these passed the tests named for them when they were first run, and a test was written for each: "
        f"{', '.join(map(str, gaps)) or 'none'}.",
        f"The test runs took {minutes:.0f} minutes on {data['machine']}, one thread, other work beside them; limits "
        f"{limits['named']:.0f} s and {limits['wider']:.0f} s; commit {data['commit'] or 'unknown'}.\n",
        "| area | mutations | caught |\n|---|---|---|",
    ]
    areas = list(dict.fromkeys(one.area for one, _ in judged))
    for area in areas:
        own = [(one, verdict) for one, verdict in judged if one.area is area]
        caught = sum(verdict is not None and verdict.caught for _, verdict in own)
        lines.append(f"| {area.title} | {len(own)} | {caught} |")
    lines += ["\n## Survivors\n"]
    for one in survivors:
        reason = one.mutation.survives or "Not explained: a test is missing."
        lines.append(f"- {one.number}, `{one.mutation.file}`: {one.mutation.breaks} {reason}")
    lines += ["None.\n" if not survivors else ""]
    for area in areas:
        lines += [f"## {area.title}\n", "| no. | file | fault | caught by |\n|---|---|---|---|"]
        lines += [_row(one, verdict) for one, verdict in judged if one.area is area]
        lines.append("")
    return "\n".join(lines)


def _row(one: Numbered, verdict: Verdict | None) -> str:
    if verdict is None:
        found = "not run"
    elif not verdict.caught:
        found = "**survived**"
    else:
        found = verdict.reason if verdict.reason.startswith("time limit") else f"`{_short(verdict.reason)}`"
    cells = (str(one.number), f"`{one.mutation.file}`", one.mutation.breaks, found)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _short(test: str) -> str:
    """Returns the id of a test without its parameters, which may be long."""
    return test.partition("[")[0].removeprefix("tests/")
