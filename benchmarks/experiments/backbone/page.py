"""The findings of :mod:`~gft_edge.benchmarks.experiments.backbone.study` as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gft_edge.benchmarks.experiments.backbone.power import ALLOWED_LOSS
from gft_edge.benchmarks.experiments.backbone.schemes import DEFAULT_KEY
from gft_edge.benchmarks.experiments.markdown import render, table
from gft_edge.calibration.repair import LEAST_JACCARD, LEAST_SQNR_DB

TEMPLATE = Path(__file__).with_suffix(".md.j2")
SHOWN_LAYERS = 12

Row = Mapping[str, Any]


def markdown(data: Mapping[str, Any]) -> str:
    """Returns the page: verdict, table of schemes, outliers, kinds of layers.

    Args:
        data: of :func:`gft_edge.benchmarks.experiments.backbone.study.collected`.
    """
    pilot = data["pilot"]
    return render(
        TEMPLATE,
        **{name: data[name] for name in ("machine", "model", "pilot", "sizes", "classes", "images", "not_measured")},
        recipe=data["training"]["recipe"],
        discordant=pilot["only_reference"] + pilot["only_candidate"],
        default=_default(next(row for row in data["rows"] if row["key"] == DEFAULT_KEY)),
        raised=_raised(data["repair"]),
        allowed_loss=f"{ALLOWED_LOSS:.1%}",
        least_sqnr_db=f"{LEAST_SQNR_DB:.0f}",
        least_jaccard=f"{LEAST_JACCARD:.2f}",
        schemes=_schemes(data["rows"]),
        costs=_costs(data["rows"]),
        builtin=_schemes(data["builtin"]) if data["builtin"] else None,
        builtin_costs=_costs(data["builtin"]),
        selection=_selection(data["selection"], data["titles"]) if data["selection"] else None,
        outliers=_outliers(data["outliers"]) if data["outliers"] else None,
        num_layers=SHOWN_LAYERS,
        layers=_layers(data["outliers"]["fine-tuned"]) if data["outliers"] else None,
        kinds=_kinds(data["kinds"]) if data["kinds"] else None,
    )


def _default(row: Row) -> dict[str, str]:
    """Returns the texts about the default scheme."""
    comparison, top1 = row["comparison"], row["comparison"]["top1"]
    return {
        "verdict": _verdict(row),
        "change": f"{100 * top1['difference']:+.2f} points ({_points(top1['interval'])})",
        "sqnr_db": _db(comparison["logit_sqnr_db"]),
        "jaccard": f"{comparison['stages'][-1]['jaccard']:.3f}",
        "power": f"{row['power']:.0%}",
        "reference": f"{comparison['top1_reference']:.2%}",
    }


def _schemes(rows: Iterable[Row]) -> str:
    header = ("way", "images", "top-1", "change", "interval", "only FP32 / only it", "p", "power", "SQNR dB")
    return table((*header, "kept sets", "target"), map(_scheme, rows))


def _scheme(row: Row) -> tuple[Any, ...]:
    comparison, top1 = row["comparison"], row["comparison"]["top1"]
    return (
        row["title"],
        comparison["images"],
        f"{comparison['top1_candidate']:.2%}",
        f"{100 * top1['difference']:+.2f}",
        _points(top1["interval"]),
        f"{top1['only_reference']} / {top1['only_candidate']}",
        f"{top1['mcnemar_p']:.2g}",
        f"{row['power']:.0%}",
        _db(comparison["logit_sqnr_db"]),
        ", ".join(f"{stage['jaccard']:.3f}" for stage in comparison["stages"]),
        _verdict(row),
    )


def _costs(rows: Iterable[Row]) -> str:
    """Returns what each way costs: time on ONNX Runtime, bytes, operators."""
    header = ("way", "layers", "work in 8 bits", "time / FP32", "interval", "graph MB", "8-bit products", "Q", "DQ")

    def cells(row: Row) -> tuple[Any, ...]:
        costs = row["costs"]
        ratio, low, high = costs["latency"]
        return (
            row["title"],
            row["layers"],
            f"{costs['quantized_macs']:.1%}",
            f"{ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{costs['bytes'] / 1e6:.1f}",
            f"{costs['products']} of {costs['all_products']}",
            costs["quantize"],
            costs["dequantize"],
        )

    return table(header, map(cells, rows))


def _raised(repair: Row | None) -> str | None:
    """Returns the layers that the default raised; None where it raised none."""
    if repair is None:
        return None
    header = ("layer", "noise of the scores", "noise of the logits", "work")
    cells = (
        (r["name"], *(f"{r[key]:.1%}" for key in ("score_noise", "logit_noise", "macs"))) for r in repair["raised"]
    )
    return table(header, cells)


def _selection(rows: Iterable[Row], titles: Mapping[str, str]) -> str:
    cells = ((titles[r["key"]], _db(r["sqnr_db"]), _db(r["all_patches_sqnr_db"])) for r in rows)
    return table(("way", "SQNR dB", "with all patches"), cells)


def _outliers(models: Mapping[str, Sequence[Row]]) -> str:
    header = ("model", "max / p99.9, median", "worst", "layer", "max / median channel, median", "worst", "layer")
    return table(header, ((name, *_spread(r, "ratio"), *_spread(r, "channel_ratio")) for name, r in models.items()))


def _spread(rows: Sequence[Row], key: str) -> tuple[str, str, str]:
    worst = max(rows, key=lambda row: row[key])
    return f"{median(row[key] for row in rows):.1f}", f"{worst[key]:.1f}", worst["layer"]


def _layers(rows: Iterable[Row]) -> str:
    def cells(row: Row) -> tuple[str, ...]:
        ratios = (f"{row['ratio']:.1f}", f"{row['channel_ratio']:.1f}")
        return (row["layer"], f"{row['largest']:.2f}", f"{row['p99.9']:.3f}", *ratios)

    worst = sorted(rows, key=lambda row: -row["ratio"])[:SHOWN_LAYERS]
    return table(("layer", "largest", "p99.9", "max / p99.9", "max / median channel"), map(cells, worst))


def _kinds(rows: Iterable[Row]) -> str:
    return table(("layers", "number", "logit SQNR dB"), ((r["kind"], r["layers"], _db(r["sqnr_db"])) for r in rows))


def _verdict(row: Row) -> str:
    return "**missed**" if row["target"] == "missed" else str(row["target"])


def _points(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"
