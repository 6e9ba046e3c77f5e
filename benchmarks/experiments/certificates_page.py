"""The findings of :mod:`~gft_edge.benchmarks.experiments.certificates` as a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.experiments.markdown import render, table
from gft_edge.stats import certificates


def page(data: Mapping[str, Any], batch: int) -> str:
    """Returns the figures as Markdown.

    Args:
        data: of :func:`gft_edge.benchmarks.experiments.certificates.run`.
        batch: images of a timed request, besides single ones.
    """
    results, stages, costs = [], [], []
    for row in data["rows"]:
        n = row["images"]
        label = [row["budget"], row["variant"]]
        certain = " ".join(f"{share:.1%}" for share in row["certain"])
        results.append(
            [
                *label,
                n,
                f"{1 - row['flipped'] / n:.1%}",
                f"**{row['certified'] / n:.1%}**",
                len(row["broken"]),
                f"{row['coverage']:.2%}",
                certain,
                row["lost"],
            ]
        )
        for s in row["stages"]:
            stages.append(
                [
                    *label,
                    f"{s['stage']}: {s['patches']} to {s['kept']}",
                    " / ".join(f"{value:.2g}" for value in s["margin"]),
                    " / ".join(f"{value:.2g}" for value in s["noise"]),
                    " / ".join(f"{value:.2g}" for value in s["reach"]),
                    f"{s['bound']:.2g}, {s['reach_bound']:.2g}",
                    s["bound_images"],
                    f"{s['above_bound']} of {s['images']}",
                    f"{s['flipped'] / s['images']:.1%}",
                ]
            )
        errors = ["-" if value is None else f"{value:.2g}" for value in row["logit_error"]]
        costs.append(
            [
                *label,
                f"{row['int8_share']:.0%}",
                *(f"{row[key][n]:.2f}x" for n in (1, batch) for key in ("speedup", "against_plain")),
                f"{row['logit_sqnr_db']:.1f} dB",
                f"{row['top1']:.2%} ({row['top1_reference']:.2%})",
                *errors,
                *row["other_class"],
            ]
        )
    head = ["budget", "policy"]
    return render(
        Path(__file__).with_name("certificates.md.j2"),
        results=table(
            [
                *head,
                "test images",
                "not flipped (ceiling)",
                "certified",
                "of these flipped",
                "coverage",
                "kept patches certain",
                "of these lost",
            ],
            results,
        ),
        stages=table(
            [
                *head,
                "stage",
                "margin 5 % / median",
                "noise median / 95 % / largest",
                "reach 95 % / largest",
                "their bounds",
                "from images",
                "noise above",
                "flips",
            ],
            stages,
        ),
        costs=table(
            [
                *head,
                "MACs of blocks in INT8",
                "batch 1: faster than FP32",
                "time over int8-max",
                f"batch {batch}: faster than FP32",
                "time over int8-max",
                "logit SQNR",
                "top-1 (FP32)",
                "logit error, not flipped",
                "flipped",
                "other class, not flipped",
                "flipped",
            ],
            costs,
        ),
        confidence=f"{certificates.CONFIDENCE:.0%}",
        batch=batch,
        least=f"{certificates.FLOAT_NOISE:g}",
        cpu=data["machine"]["cpu"]["model"],
    )
