"""Turn a .pth file of the published GFT code into a checkpoint. Its logits do not depend on the token budget."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "gft-edge import-published gft_aircraft.pth --labels classes.txt --out runs/published"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "file", type=Path, metavar="FILE.pth", help="state dict of PyTorch or safetensors; read as data, never as code"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="class names in the order of the outputs: one per line, or .csv or .json; default: class_0, class_1 ...",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="CKPT", help="checkpoint folder to write")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.checkpoint import CheckpointInfo, load_weights, num_parameters, save_checkpoint
    from gft_edge.cli.console import result, say
    from gft_edge.errors import ArtifactError
    from gft_edge.files import new_folder, require_free, sha256
    from gft_edge.labels import read_labels
    from gft_edge.model.build import build_model
    from gft_edge.model.published import ANCHOR, published_config, published_state
    from gft_edge.model.weights_file import read_weights_file
    from gft_edge.preprocess import PreprocessSpec

    require_free(args.out)
    found = read_weights_file(args.file, (ANCHOR,))
    try:
        weights = published_state(found.weights)
        config = published_config(weights)
    except ArtifactError as error:
        raise ArtifactError(f"{args.file}: {error}") from None
    for note in found.notes:
        say(f"import-published: {note}")
    labels = tuple(f"class_{number}" for number in range(config.num_classes))
    if args.labels:
        labels = read_labels(args.labels, config.num_classes)
    model = build_model(config)
    load_weights(model, {name: tensor.float() for name, tensor in weights.items()}, str(args.file))
    spec = PreprocessSpec(config.image_size, config.image_size)
    provenance = {"imported_from": args.file.name, "sha256": sha256(args.file)}
    with new_folder(args.out) as folder:
        save_checkpoint(folder, CheckpointInfo(config, labels, spec, provenance=provenance), model)
        (folder / "card.md").write_text(_CARD.format(name=args.file.name), encoding="utf-8")
    data = {"out": str(args.out), "classes": config.num_classes, "parameters": num_parameters(model)}
    text = (
        f"{args.out}: published variant, {config.num_classes} classes, {data['parameters']:,} parameters; "
        "its logits do not depend on the token budget"
    )
    result(args, data, text)
    return 0


_CARD = """# Imported from {name}

Variant `published`: the outputs of the published GFT code. **The logits do not depend on the token budget:** they come from the
class token after the last block before the stages, and the stages see patch tokens only. The stages give importance maps
and kept patches; exported without maps they are not in the graph.
"""
