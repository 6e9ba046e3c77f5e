"""The findings on resolution as a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.experiments.markdown import render, table
from gft_edge.benchmarks.experiments.resolution.accuracy import PLAIN, PRUNED
from gft_edge.benchmarks.experiments.resolution.plain_training import every_patch
from gft_edge.benchmarks.experiments.resolution.speed import SMALL
from gft_edge.config.model import preset
from gft_edge.model.macs import count_macs

TEMPLATE = Path(__file__).with_suffix(".md.j2")
NAMES = ("gft_base_448", "gft_small_448", "gft_tiny_448")

Data = Mapping[str, Any]


def markdown(accuracy: Data | None, speed: Data | None) -> str:
    """Returns the page: cost, accuracy at equal cost and speed; what was not measured is said.

    Args:
        accuracy: of :func:`gft_edge.benchmarks.experiments.resolution.accuracy.compare`.
        speed: of :func:`gft_edge.benchmarks.experiments.resolution.speed.compare`.
    """
    return render(TEMPLATE, costs=_costs(), accuracy=accuracy, speed=speed, **_of(accuracy), **_timed(speed))


def _costs() -> str:
    rows = []
    for name in NAMES:
        config = preset(name)
        own, half, full = (
            count_macs(one) / 1e9 for one in (config, every_patch(config, 224), every_patch(config, 448))
        )
        tokens = ", ".join(str(keep + config.num_prefix_tokens) for keep in config.budget.keep)
        cells = (f"`{name}`", ", ".join(map(str, config.stages)), tokens, f"{own:.2f} G", f"{half:.2f} G")
        rows.append((*cells, f"{own / half:.2f}", f"{full:.2f} G", f"{full / own:.2f}"))
    header = ("preset", "blocks that cut", "tokens", "cost", "plain ViT, 224 px", "ratio", "plain ViT, 448 px", "saves")
    return table(header, rows)


def _of(data: Data | None) -> dict[str, Any]:
    if data is None:
        return {}
    rows = {row["name"]: row for row in data["rows"]}
    cost = rows[PRUNED]["macs"]
    cells = (
        (
            row["name"],
            f"{row['image_size']} px",
            f"{row['macs'] / 1e6:.0f} M ({row['macs'] / cost:.2f})",
            f"{row['right']} of {data['images']}",
            f"{row['top1']:.2%}",
            f"{row['interval'][0]:.1%} to {row['interval'][1]:.1%}",
        )
        for row in data["rows"]
    )
    start = "the same checkpoint" if data["start"]["is_checkpoint"] else f"`{data['start']['path']}`"
    return {
        "plain": rows[PLAIN],
        "start": start,
        "accuracy_rows": table(("network", "image", "cost", "right", "top-1", "95 % interval"), cells),
        "paired": table(
            ("against", "difference", "interval", "only pruned / only the other", "p"),
            (_paired(name, found) for name, found in data["paired"].items()),
        ),
        "seen": table(("network", "windows", "whole images"), _seen(data)),
        "level": level(data["validation"]),
        "validation": table(
            ("step", "loss", "top-1"),
            ((r["step"], f"{r['loss']:.3f}", f"{r['val_top1']:.1%}") for r in data["validation"]),
        ),
    }


def _paired(name: str, found: Data) -> tuple[str, ...]:
    low, high = (f"{100 * end:+.1f}" for end in found["interval"])
    discordant = f"{found['only_candidate']} / {found['only_reference']}"
    return name, f"{100 * found['difference']:+.2f}", f"{low} to {high}", discordant, f"{found['mcnemar_p']:.2g}"


def _seen(data: Data) -> list[tuple[str, object, object]]:
    titles = {PRUNED: PRUNED, "start": "start of the plain one", PLAIN: f"{PLAIN}, from there on"}
    unknown = {"windows": "not recorded", "whole": "not recorded"}
    found = ((title, data["images_seen"][name] or unknown) for name, title in titles.items())
    return [(title, seen["windows"], seen["whole"]) for title, seen in found]


def level(rows: Sequence[Data]) -> str:
    """Returns a sentence on how much the validation accuracy still rose over the last quarter of the training."""
    last = rows[-1]
    earlier = [row for row in rows[:-1] if row["step"] <= 0.75 * last["step"]]
    if not earlier:
        return "Too few evaluations to tell whether it has levelled off."
    gain = 100 * (last["val_top1"] - earlier[-1]["val_top1"])
    return f"Over the steps after {earlier[-1]['step']} it changed by {gain:+.1f} points."


def _timed(data: Data | None) -> dict[str, Any]:
    if data is None:
        return {}
    small = {row["batch"]: row["p50_ms"] for row in data["rows"] if row["name"] == SMALL}
    cells = (
        (
            row["batch"],
            row["name"],
            f"{row['image_size']} px",
            f"{row['macs'] / 1e9:.2f} G",
            f"{row['p50_ms']:.1f}",
            f"{row['faster'][0]:.2f}x ({row['faster'][1]:.2f} to {row['faster'][2]:.2f})",
            f"{row['p50_ms'] / small[row['batch']]:.2f}",
            row["verdict"],
        )
        for row in data["rows"]
    )
    header = (
        "batch",
        "network",
        "image",
        "cost",
        "ms, median",
        "faster than plain",
        "time over plain at half the side",
        "",
    )
    load = [data["machine"][name][0] for name in ("load_average", "load_average_after")]
    return {"speed_rows": table(header, cells), "load": [f"{value:.1f}" for value in load]}
