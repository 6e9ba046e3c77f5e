"""Export a checkpoint to an artefact: ONNX graph with a static token budget, manifest, golden inputs and outputs."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "gft-edge export builtin --budget 108,72,36 --maps compact --out runs/artifact"
GOLDEN_IMAGES = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint folder (quantized or not), or 'builtin'")
    parser.add_argument("--out", type=Path, required=True, metavar="ARTIFACT", help="folder to write")
    parser.add_argument(
        "--budget",
        action="append",
        metavar="K,K,K",
        help="patches kept after each stage, shares such as 75%%,50%%,25%%, or 'full'; default: the checkpoint's own; "
        "repeatable: further budgets share the weights, and ARTIFACT@K-K-K names them",
    )
    parser.add_argument(
        "--align", type=int, metavar="N", help="make patches + class token a multiple of N where pruned"
    )
    parser.add_argument(
        "--maps",
        choices=("none", "compact", "dense"),
        default="none",
        help="importance outputs: none, per stage with the kept positions, or on the patch grid (none)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="of everything that is not quantized, but for the importance path, which is float32 always (fp32)",
    )
    parser.add_argument(
        "--input",
        choices=("float", "uint8"),
        default="float",
        help="normalised (batch, 3, H, W) float32, or RGB pixels (batch, H, W, 3) with normalisation inside (float)",
    )
    parser.add_argument(
        "--dialect",
        choices=("trt10", "trt8"),
        default="trt10",
        help="trt10: TensorRT 10, 11 and RTX; trt8: opset 17 and FP32 types for TensorRT 8.6; ONNX Runtime runs both (trt10)",
    )
    parser.add_argument(
        "--batch", default="1:1:8", metavar="N|MIN:OPT:MAX", help="images per request; one number: static (1:1:8)"
    )
    parser.add_argument("--data", default="typefaces", metavar="D", help="where the golden images come from")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.common import labelled_batches, parse_batch_range
    from gft_edge.cli.console import result, say
    from gft_edge.export.onnx import export_artifact
    from gft_edge.files import require_free

    require_free(args.out)
    batch = parse_batch_range(args.batch)
    checkpoint = load_checkpoint(args.checkpoint)
    info = checkpoint.info
    config = info.model
    budgets = [config.parse_budget(text) for text in args.budget or [config.budget.id]]
    if args.align is not None:
        budgets = [budget.align(args.align) for budget in budgets]
    _, batches = labelled_batches(args.data, "test", GOLDEN_IMAGES, config, info.labels, info.preprocess)
    golden, _ = next(batches)
    say(f"export: tracing at budget {', '.join(budget.id for budget in budgets)}")
    artifact = export_artifact(
        checkpoint,
        args.out,
        golden,
        budgets[0],
        args.maps,
        budgets[1:],
        rest=args.precision,
        input=args.input,
        batch=batch,
        dialect=args.dialect,
    )
    manifest = artifact.manifest
    data = {
        "out": str(args.out),
        "budget": manifest.budget.id,
        "family": list(manifest.family),
        "precision": manifest.precision,
        "rest": manifest.rest,
        "batch": list(manifest.batch),
        "maps": manifest.maps,
        "opset": manifest.opset,
        "dialect": manifest.dialect,
        "files": {name: {"size": f.size, "sha256": f.sha256} for name, f in manifest.files.items()},
    }
    rest = "" if manifest.precision == manifest.rest else f" with {manifest.rest} rest"
    more = f" and {', '.join(manifest.family)}" if manifest.family else ""
    text = (
        f"{args.out}: {manifest.precision}{rest}, budget {manifest.budget.id}{more}, maps {manifest.maps}, opset {manifest.opset}, "
        f"model.onnx {manifest.files['model.onnx'].size / 1e6:.2f} MB"
    )
    result(args, data, text)
    return 0
