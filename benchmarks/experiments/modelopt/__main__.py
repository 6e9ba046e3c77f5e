"""This project's INT8 beside Model-Optimizer's and ONNX Runtime's, on the built-in model, with a CPU alone (extra ``quant``).

python -m gft_edge.benchmarks.experiments.modelopt runs/modelopt benchmarks/MODELOPT.md

One FP32 graph and one set of calibration images go to every tool; the table has accuracy, logits, kept patches, latency in ONNX
Runtime and findings of lint. The default policy is written as a recipe of Model-Optimizer, and the chosen layers as a graph for its
Autotune, which needs TensorRT and a GPU; ``--autotuned`` adds the file it returns to the table. Run again with the same folder, it
continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.experiments.markdown import render, show, table
from gft_edge.benchmarks.experiments.modelopt.candidates import (
    BASELINE,
    FULL,
    OURS,
    TITLES,
    autotune_import,
    candidates,
    prepare,
    recipe_agreement,
)
from gft_edge.benchmarks.experiments.modelopt.judging import judge, latencies
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, conditions
from gft_edge.checkpoint import BUILTIN
from gft_edge.errors import exit_code
from gft_edge.files import require_writable_folder, write_json
from gft_edge.hardware.environment import machine

IMAGES, CALIBRATION = 1600, 64
PACKAGES = ("nvidia-modelopt", "onnx", "onnxruntime", "onnx-graphsurgeon", "lief", "ml_dtypes", "onnxslim", "torch")


def run(out: Path, images: int, calibration: int, protocol: BenchProtocol, autotuned: Path | None) -> dict[str, Any]:
    """Makes what is missing and measures; returns plain JSON values."""
    prepared = prepare(BUILTIN, out, calibration)
    graphs = candidates(prepared, out, autotuned)
    rows = judge(graphs, prepared, out, images)
    found = latencies(graphs, prepared, protocol)
    return {
        "images": rows[FULL]["images"],
        "calibration_images": len(prepared.images),
        "rows": {name: {"title": TITLES[name], **rows[name], **found[name]} for name in graphs},
        "recipe": recipe_agreement(prepared, out),
        "autotune": autotune_import(prepared),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": machine(),
        "conditions": conditions(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def page(data: Mapping[str, Any]) -> str:
    """Returns the figures as Markdown."""
    rows = data["rows"]
    header = ["graph", "top-1", "against FP32 (95 %)", "logit SQNR", "kept sets by stage", "time", "size"]
    figures = [
        [
            row["title"],
            f"{row['top1']:.2%}" + (" (scales are placeholders)" if row["placeholder_scales"] else ""),
            "" if name == FULL else _points(row),
            "" if name == FULL or row["logit_sqnr_db"] is None else f"{row['logit_sqnr_db']:.1f} dB",
            " / ".join(f"{value:.3f}" for value in row["jaccard"]),
            f"{1 / row['speedup'][0]:.2f}x ({1 / row['speedup'][2]:.2f} to {1 / row['speedup'][1]:.2f})",
            f"{row['megabytes']:.1f} MB",
        ]
        for name, row in rows.items()
    ]
    findings = [
        [
            row["title"],
            row["lint_errors"],
            ", ".join(f"{rule} {count}" for rule, count in row["lint"].items()) or "none",
            *(_count(row["boundaries"], kind) for kind in ("same", "lost", "added", "changed")),
        ]
        for name, row in rows.items()
        if name != FULL
    ]
    return render(
        Path(__file__).with_name("page.md.j2"),
        figures=table(header, figures),
        findings=table(["graph", "lint errors", "findings by rule", "same", "lost", "added", "changed"], findings),
        recipe=data["recipe"],
        autotune=data["autotune"],
        plain=data["autotune"]["points"][OURS],
        taken=data["autotune"]["points"][BASELINE],
        packages=", ".join(f"{name} {found}" for name, found in data["packages"].items() if found),
        images=data["images"],
        calibration=data["calibration_images"],
        cpu=data["machine"]["cpu"]["model"],
        unstable=sum(row["verdict"] == "unstable" for row in rows.values()),
        graphs=len(rows),
    )


def _points(row: Mapping[str, Any]) -> str:
    low, high = (100 * value for value in row["top1_interval"])
    broken = f"; {row['not_finite']} not finite" if row["not_finite"] else ""
    return f"{100 * row['top1_difference']:+.2f} ({low:+.2f}..{high:+.2f}){broken}"


def _count(boundaries: Mapping[str, Any], kind: str) -> int:
    found = boundaries[kind]
    return found if isinstance(found, int) else len(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes modelopt.json and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder")
    parser.add_argument("page", type=Path, nargs="?", metavar="PAGE", help="Markdown page")
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help=f"test images ({IMAGES})")
    parser.add_argument(
        "--calibration", type=int, default=CALIBRATION, metavar="N", help=f"calibration images ({CALIBRATION})"
    )
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="rounds of the latency measurement (40)")
    parser.add_argument("--autotuned", type=Path, metavar="FILE", help="result of Autotune, optimized_final.onnx")
    args = parser.parse_args(arguments)
    require_writable_folder(args.run)
    protocol = BenchProtocol(rounds=args.rounds, runs_per_round=3)
    data = run(args.run, args.images, args.calibration, protocol, args.autotuned)
    write_json(args.run / "modelopt.json", data)
    show(page(data), args.page)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
