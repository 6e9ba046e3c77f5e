"""Measure the latency of artefacts, interleaved in one process; the first one is what the others are compared with."""

from __future__ import annotations

import argparse
from pathlib import Path

from gft_edge.cli.common import positive

EXAMPLE = "gft-edge bench runs/fp32 runs/int8 --threads 1 --out runs/bench.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="artefact folders")
    parser.add_argument("--backend", default="onnxruntime", help="what runs them (onnxruntime)")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images per request (1)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads; 0: one per core (1)")
    parser.add_argument("--rounds", type=positive, default=40, metavar="N", help="rounds of the interleaving (40)")
    parser.add_argument(
        "--runs", type=positive, default=5, metavar="N", help="requests of each artefact in a round (5)"
    )
    parser.add_argument("--warmup", type=float, default=0.5, metavar="S", help="seconds of warm-up for each (0.5)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write figures and raw samples as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.benchmarks.latency import bench_artifacts
    from gft_edge.benchmarks.protocol import BenchProtocol
    from gft_edge.cli.console import result, table, track
    from gft_edge.files import require_writable, write_json
    from gft_edge.manifest import load_artifact

    if args.out:
        require_writable(args.out)
    protocol = BenchProtocol(args.batch, args.threads, args.warmup, args.rounds, args.runs)
    artifacts = [load_artifact(path) for path in args.artifacts]
    data = bench_artifacts(artifacts, protocol, args.backend, track)
    if args.out:
        write_json(args.out, data)
    rows = [
        (
            r["name"],
            r["precision"],
            r["budget"],
            *(f"{r[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
            f"{r['variation']:.1%}",
            f"{r['speedup']:.2f}x [{r['speedup_interval'][0]:.2f}, {r['speedup_interval'][1]:.2f}]",
        )
        for r in data["results"]
    ]
    header = (
        "artefact",
        "precision",
        "budget",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "variation",
        f"against {data['baseline']}",
    )
    threads = args.threads or "all"
    head = f"{data['backend']}, batch {args.batch}, {threads} thread(s), {data['machine']['cpu']['model']}"
    result(args, data, head + "\n" + table(header, rows))
    return 0
