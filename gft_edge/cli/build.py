"""Compile an artefact's graph into a TensorRT engine and enter it in the artefact's manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "gft-edge build runs/artifact --target rtx --compute-capability 8.6,8.9 --batch 1:1:8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="artefact folder")
    parser.add_argument("--target", required=True, help="rtx: TensorRT-RTX, ahead of time, needs no GPU")
    parser.add_argument("--compute-capability", metavar="X.Y[,X.Y...]", help="GPUs to compile for (8.0,8.6,8.9,12.0)")
    parser.add_argument("--batch", default="1:1:8", metavar="N|MIN:OPT:MAX", help="batch sizes (1:1:8)")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.common import parse_batch_range, parse_compute_capabilities
    from gft_edge.cli.console import result, say
    from gft_edge.export.builders import COMPUTE_CAPABILITIES, EngineSpec, build_engine
    from gft_edge.manifest import load_artifact

    text = args.compute_capability
    capabilities = COMPUTE_CAPABILITIES if text is None else parse_compute_capabilities(text)
    spec = EngineSpec(args.target, capabilities, parse_batch_range(args.batch))
    record = build_engine(load_artifact(args.artifact), spec, lambda line: say(f"build: {line}"))
    text = (
        f"{args.artifact}/engines/{record['key']}.engine: {record['engine_bytes'] / 1e6:.2f} MB for compute capability "
        f"{', '.join(record['compute_capabilities'])} ({record['evidence']})"
    )
    result(args, record, text)
    return 0
