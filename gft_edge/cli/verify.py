"""Compare an artefact with PyTorch on the same images: logits, classes, kept patches. Exit code 1 when it fails."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gft_edge.cli.common import add_data_arguments

EXAMPLE = "gft-edge verify runs/artifact --checkpoint builtin --images 512"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="artefact folder")
    parser.add_argument(
        "--checkpoint",
        metavar="CKPT",
        help="what the artefact was made from: compares on images of --data; without it, on the golden images",
    )
    add_data_arguments(parser, images=512)
    parser.add_argument("--backend", default="onnxruntime", help="what runs the artefact (onnxruntime)")


def run(args: argparse.Namespace) -> int:
    """Runs the verb; 1 when something is out of limits."""
    from gft_edge.cli.console import result
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK
    from gft_edge.export.verify import verify_golden
    from gft_edge.files import write_json
    from gft_edge.manifest import load_artifact, register_files

    artifact = load_artifact(args.artifact)
    report = _with_checkpoint(args, artifact) if args.checkpoint else verify_golden(artifact, args.backend)
    data = report.to_json()
    write_json(artifact.path / "reports/verify.json", data)
    register_files(artifact, ["reports/verify.json"], {"verify": {"passed": report.passed, "source": report.source}})
    result(args, data, _text(data))
    return EXIT_OK if report.passed else EXIT_CHECK_FAILED


def _with_checkpoint(args: argparse.Namespace, artifact: Any) -> Any:
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.common import labelled_batches
    from gft_edge.cli.console import track
    from gft_edge.export.verify import verify_checkpoint

    checkpoint = load_checkpoint(args.checkpoint)
    info = checkpoint.info
    count, batches = labelled_batches(args.data, args.split, args.images, info.model, info.labels, info.preprocess)
    source = f"{count} {args.split} images of {args.data}"
    return verify_checkpoint(artifact, checkpoint, track(batches, "verify", -(-count // 64)), source, args.backend)


def _text(data: dict[str, Any]) -> str:
    from gft_edge.cli.console import table

    rows = []
    for c in data["comparisons"]:
        sqnr = "exact" if c["logit_sqnr_db"] is None else f"{c['logit_sqnr_db']:.1f} dB"
        kept = " ".join(f"{s['jaccard']:.4f}" for s in c["stages"]) or "-"
        rows.append(
            (c["candidate"], c["reference"], sqnr, f"{c['max_relative_error']:.1e}", f"{c['top1_agreement']:.2%}", kept)
        )
    header = ("what", "against", "logit SQNR", "largest error", "same class", "kept-set Jaccard by stage")
    verdict = "passed" if data["passed"] else "FAILED: " + "; ".join(data["failures"])
    return f"{data['artifact']} on {data['source']}\n{table(header, rows)}\n{verdict}"
