"""Export a checkpoint to an artefact: ONNX graph with a static token budget, manifest, golden inputs and outputs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gft_edge.cli.common import add_align_argument, add_budget_argument, add_new_folder

if TYPE_CHECKING:
    from gft_edge.manifest import DeploymentManifest

EXAMPLE = "gft-edge export builtin --budget 144,72,36 --maps compact --out runs/artifact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint folder (quantized or not), or 'builtin'")
    add_new_folder(parser, "the artefact", metavar="ARTIFACT")
    add_budget_argument(
        parser,
        "repeatable: ",
        " (the checkpoint's own); further budgets share the weights, and ARTIFACT@K-K-K names them",
    )
    add_align_argument(parser)
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
        help="of everything that is not quantized, except the importance path, which is always float32 (fp32)",
    )
    parser.add_argument(
        "--input",
        choices=("float", "uint8", "float255"),
        default="float",
        help="normalised (batch, 3, H, W) float32; or RGB pixels with normalisation inside: uint8 (batch, H, W, 3), or float255 "
        "(batch, 3, H, W) float32 of 0 to 255, as DeepStream gives (float)",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="softmax inside: the output 'probabilities' replaces 'logits', as DeepStream's thresholds need",
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
    parser.add_argument(
        "--data",
        metavar="D",
        help="data set or folder of image files for golden.npz (test images of the data the model was trained on if it is "
        "here, else images made from a seed)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.common import parse_batch_range
    from gft_edge.cli.console import command, following, result, say
    from gft_edge.cli.early import checkpoint_info, require_data
    from gft_edge.export.onnx.options import GraphOptions
    from gft_edge.files import require_free

    require_free(args.out)
    batch = parse_batch_range(args.batch)
    config = checkpoint_info(args.checkpoint).model
    budgets = [config.parse_budget(text) for text in args.budget or [config.budget.id]]
    if args.align is not None:
        budgets = [budget.align(args.align, config.num_prefix_tokens) for budget in budgets]
    require_data(args.data)
    options = GraphOptions(args.maps, args.precision, args.input, batch, args.dialect, args.probabilities)
    from gft_edge.export.onnx.artifact import export_with_data

    checkpoint = load_checkpoint(args.checkpoint)
    manifest = export_with_data(checkpoint, args.out, args.data, budgets, options, say).manifest
    data = {
        "out": str(args.out),
        "budget": manifest.budget.id,
        "family": list(manifest.family),
        "precision": manifest.precision,
        "rest": manifest.rest,
        "batch": list(manifest.batch),
        "maps": manifest.maps,
        "input": manifest.input_kind,
        "output": manifest.outputs[0].name,
        "opset": manifest.opset,
        "dialect": manifest.dialect,
        "golden_images": manifest.golden_images,
        "files": {name: {"size": f.size, "sha256": f.sha256} for name, f in manifest.files.items()},
    }
    rest = "" if manifest.precision == manifest.rest else f" with {manifest.rest} rest"
    more = f" and {', '.join(manifest.family)}" if manifest.family else ""
    text = (
        f"{args.out}: {manifest.precision}{rest}, budget {manifest.budget.id}{more}, maps {manifest.maps}, opset {manifest.opset}, "
        f"{_size(manifest)}, golden.npz of {manifest.golden_images}\n"
    )
    text += following(
        command("verify", args.out, "--checkpoint", args.checkpoint),
        command("build", args.out, "--target", "DEVICE", "--plan"),
    )
    result(args, data, text)
    return 0


def _size(manifest: DeploymentManifest) -> str:
    """Returns the size of the graphs in words, with the file of weights that several of them share."""
    from gft_edge.manifest import MODEL, WEIGHTS

    models = [MODEL, *(member.model for member in manifest.family.values())]
    graphs = sum(manifest.files[name].size for name in models)
    if WEIGHTS not in manifest.files:
        return f"model.onnx {graphs / 1e6:.2f} MB"
    shared = manifest.files[WEIGHTS].size
    together = f"{(graphs + shared) / 1e6:.2f} MB"
    return f"{len(models)} graphs with {shared / 1e6:.2f} MB of shared weights, together {together}"
