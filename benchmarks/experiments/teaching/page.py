"""The Markdown sections of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gft_edge.benchmarks.experiments.markdown import render, table
from gft_edge.benchmarks.experiments.teaching.measuring import from_texts
from gft_edge.benchmarks.experiments.teaching.plan import ARMS, PRODUCT
from gft_edge.benchmarks.experiments.teaching.targets import TARGETS
from gft_edge.benchmarks.experiments.teaching.training import CURVE
from gft_edge.control_results import ORACLE, OWN, RANDOM

TEMPLATE = Path(__file__).with_name("page.md.j2")


def page(studies: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the page of several studies.

    Args:
        studies: by title, each what :func:`gft_edge.benchmarks.experiments.teaching.study.results` returned with its ``figures``.
    """
    return render(TEMPLATE, sections="\n".join(section(title, found) for title, found in studies.items()))


def section(title: str, found: Mapping[str, Any]) -> str:
    """Returns the section of one study: how it was made, the start, the arms at each budget, the leads over the twin."""
    plan, figures = found["plan"], found["figures"]
    full = _share(found["start"]["full"])
    lines = [
        f"## {title}",
        "",
        f"`{plan['data']}` at {plan['size']} px, {found['patches']} patches; blocks {_list(plan['stages'])} select; "
        f"{plan['steps']} steps of {plan['batch_size']} images, at each step one of the budgets; {plan['images']} test images. The "
        f"checkpoint, `{found['checkpoint'][:12]}`, {'was' if found['is_taught'] else 'was not'} taught a ranking before; it has "
        f"{full:.1%} of the images right with every patch.",
        "",
    ]
    for budget in found["budgets"]:
        lines += [f"### {budget} patches kept", "", _arms(found, budget), ""]
    if figures["leads"]:
        lines += ["### Chosen patches against the twin on random patches", "", _leads(figures, found["budgets"]), ""]
    if figures["targets"]:
        title = f"### Other targets against {PRODUCT}"
        lines += [title, "", _against_product(figures, found["budgets"]), ""]
    lines += [f"### Training accuracy, mean over the seeds, of each {CURVE} steps", "", _curves(found), ""]
    lines += ["### Targets as rules on the start", "", _targets(found), ""]
    return "\n".join(lines)


def _arms(found: Mapping[str, Any], budget: str) -> str:
    start = found["start"]["budgets"][budget]
    rows: list[list[str]] = [
        [
            "start, not trained further",
            "",
            *(f"{np.mean([_share(text) for text in start['right'][rule]]):.1%}" for rule in (OWN, RANDOM, ORACLE)),
            f"{start['recall'][OWN]:.0%}",
            "",
            "",
            "",
            "",
        ]
    ]
    for arm in (arm for arm in ARMS if arm in found["figures"]["arms"]):
        one = found["figures"]["arms"][arm][budget]
        over = one["over_plain"]
        rows.append(
            [
                ARMS[arm].title,
                str(one["seeds"]),
                *(f"{one[key]:.1%}" for key in ("own", "random", "oracle")),
                f"{one['recall']:.0%}",
                "" if one["gain"] is None else f"{one['gain']['value']:.2f} ({_range(one['gain'], 1, '.2f')})",
                "" if over is None else points(over),
                "" if over is None else by_seed(over),
                "yes" if over is not None and min(over["interval"][0], *over["by_seed"]) > 0 else "",
            ]
        )
    header = (
        "training",
        "seeds",
        "most important",
        "random",
        "oracle",
        "recall of the mark",
        "G",
        "over not taught, points",
        "each seed",
        "better",
    )
    return table(header, rows)


def _leads(figures: Mapping[str, Any], budgets: Sequence[str]) -> str:
    rows = [
        (
            ARMS[arm].title,
            budget,
            points(one),
            by_seed(one),
            f"{one['p']:.1g}",
            "yes" if one["value"] >= figures["target"] else "",
        )
        for arm, leads in figures["leads"].items()
        for budget in budgets
        if (one := leads.get(budget)) is not None
    ]
    header = (
        "chosen by",
        "budget",
        "lead, points",
        "each seed",
        "largest p",
        f"{figures['target'] * 100:.0f} points or more",
    )
    return table(header, rows)


def _against_product(figures: Mapping[str, Any], budgets: Sequence[str]) -> str:
    """Returns the accuracy with each target less that with the target of the product, as a table."""
    rows = [
        (ARMS[arm].title, budget, points(one), by_seed(one), f"{one['p']:.1g}")
        for arm, differences in figures["targets"].items()
        for budget in budgets
        if (one := differences.get(budget)) is not None
    ]
    return table(("training", "budget", "difference, points", "each seed", "largest p"), rows)


def _curves(found: Mapping[str, Any]) -> str:
    """Returns the training accuracy as a table: an arm that still rises at its end would gain from more steps."""
    curves = {arm: np.mean([one["curve"] for one in found["runs"][arm].values()], axis=0) for arm in found["runs"]}
    rows = [[ARMS[arm].title, *(f"{value:.1%}" for value in curves[arm])] for arm in ARMS if arm in curves]
    steps = found["plan"]["steps"]
    header = ["training", *(f"to {min(end + CURVE, steps)}" for end in range(0, steps, CURVE))]
    return table(header, rows)


def _targets(found: Mapping[str, Any]) -> str:
    rows = [
        (name, budget, f"{_share(at['right'][name][0]):.1%}", f"{at['recall'][name]:.0%}")
        for budget in found["budgets"]
        for at in (found["start"]["targets"][budget],)
        for name in TARGETS
    ]
    return table(("target", "budget", "right with its highest patches", "recall of the mark"), rows)


def points(one: Mapping[str, Any]) -> str:
    """Returns a difference in points with its interval."""
    return f"{one['value'] * 100:+.1f} ({_range(one, 100, '+.1f')})"


def by_seed(one: Mapping[str, Any]) -> str:
    """Returns the differences of the seeds in points."""
    return ", ".join(f"{value * 100:+.1f}" for value in one["by_seed"])


def _range(one: Mapping[str, Any], factor: float, form: str) -> str:
    return " to ".join(format(value * factor, form) for value in one["interval"])


def _share(text: str) -> float:
    return float(from_texts([text]).mean())


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
