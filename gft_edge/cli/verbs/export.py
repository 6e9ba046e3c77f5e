"""Export a checkpoint to an artefact: ONNX graph with a static token budget, manifest, golden inputs and outputs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gft_edge.checkpoint import CheckpointInfo
    from gft_edge.manifest import DeploymentManifest

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
    parser.add_argument(
        "--data",
        metavar="D",
        help="where the images of golden.npz come from, or a folder of image files (test images of the data the model was "
        "trained on where that is here, else images made from a seed)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.common import parse_batch_range
    from gft_edge.cli.console import result, say
    from gft_edge.export.onnx.artifact import export_artifact
    from gft_edge.export.onnx.dialects import require_trt8
    from gft_edge.files import require_free
    from gft_edge.model.gft import check_budget

    require_free(args.out)
    batch = parse_batch_range(args.batch)
    if args.dialect == "trt8":
        require_trt8(args.precision)
    checkpoint = load_checkpoint(args.checkpoint)
    info = checkpoint.info
    config = info.model
    if args.dialect == "trt8" and info.quantization is not None:
        require_trt8(args.precision, info.quantization["precision"])
    budgets = [config.parse_budget(text) for text in args.budget or [config.budget.id]]
    for budget in budgets:
        check_budget(budget, config)
    if args.align is not None:
        budgets = [budget.align(args.align) for budget in budgets]
    source, golden = _golden_images(args.data, info, checkpoint.path)
    say(f"export: tracing at budget {', '.join(budget.id for budget in budgets)}")
    artifact = export_artifact(
        checkpoint,
        args.out,
        golden,
        budgets[0],
        args.maps,
        budgets[1:],
        golden_source=source,
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
        "golden_images": manifest.golden_images,
        "files": {name: {"size": f.size, "sha256": f.sha256} for name, f in manifest.files.items()},
    }
    rest = "" if manifest.precision == manifest.rest else f" with {manifest.rest} rest"
    more = f" and {', '.join(manifest.family)}" if manifest.family else ""
    text = (
        f"{args.out}: {manifest.precision}{rest}, budget {manifest.budget.id}{more}, maps {manifest.maps}, opset {manifest.opset}, "
        f"{_size(manifest)}, golden.npz of {source}"
    )
    result(args, data, text)
    return 0


def _golden_images(
    data: str | None, info: CheckpointInfo, model: Path | None = None
) -> tuple[str, npt.NDArray[np.float32]]:
    """What the golden images are, and the images, preprocessed: (B, 3, H, W) float32.

    They need no labels, so data of any classes will do. Images of the data that the model was trained on say most about
    it; where that is not at hand, images from a seed serve. Images that the checkpoint in the folder ``model`` was trained
    on are called train images.

    Raises:
        DataError: ``data`` is given and cannot be used.
    """
    from gft_edge.cli.console import say
    from gft_edge.data.seeded import seeded_images
    from gft_edge.errors import GFTEdgeError

    if data is not None:
        return _data_images(data, info, model)
    problem = "the checkpoint does not say which data it was trained on"
    if info.data:
        try:
            return _data_images(info.data, info, model)
        except GFTEdgeError as error:
            problem = str(error)
    say(f"export: images made from a seed stand in for data ({problem})")
    spec = info.preprocess
    pixels = seeded_images(GOLDEN_IMAGES, spec.height, spec.width)
    return f"{GOLDEN_IMAGES} images made from seed 0", spec.normalize(pixels)


def _data_images(data: str, info: CheckpointInfo, model: Path | None) -> tuple[str, npt.NDArray[np.float32]]:
    from gft_edge.cli.console import say
    from gft_edge.data.batches import evaluation_batches
    from gft_edge.data.datasets import held_out_split, is_folder, open_images, readable, split_names, unlabelled_folder
    from gft_edge.data.sets import ImageSet, Subset, spread
    from gft_edge.data.trained import not_trained_on
    from gft_edge.errors import DataError

    loose = unlabelled_folder(Path(data)) if is_folder(data) else None
    if loose is not None:
        images: ImageSet = readable(loose)
        kind = "images"
    else:
        names = split_names(data)
        split = held_out_split(data) if {"test", "val"}.intersection(names) else names[0]
        images = readable(open_images(data, split, GOLDEN_IMAGES, info.preprocess.height))
        if model is not None:
            try:
                images = not_trained_on(images, model, split, data)
            except DataError:  # of every image: good enough to compare outputs on, but to be called what they are
                split = "train"
        kind = f"{split} images"
    if len(images) > GOLDEN_IMAGES:
        images = Subset(images, spread(len(images), GOLDEN_IMAGES))
    batches = evaluation_batches(images, info.preprocess, problem=lambda text: say(f"left out: {text}"))
    golden = next((batch for batch, _ in batches), None)
    if golden is None:
        raise DataError(f"data {data}: none of its images can be read")
    return f"{len(golden)} {kind} of {data}", golden


def _size(manifest: DeploymentManifest) -> str:
    """Size of the graphs, with the file of weights that several of them share."""
    sizes = {name: info.size for name, info in manifest.files.items() if not name.endswith(".npz")}
    graphs = [size for name, size in sizes.items() if name.endswith(".onnx")]
    shared = sum(sizes.values()) - sum(graphs)
    total = f"{sum(sizes.values()) / 1e6:.2f} MB"
    if len(graphs) == 1 and not shared:
        return f"model.onnx {total}"
    return f"{len(graphs)} graphs with {shared / 1e6:.2f} MB of shared weights, together {total}"
