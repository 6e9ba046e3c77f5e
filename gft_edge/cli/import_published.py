"""Turn a .pth file of the published GFT code into a checkpoint. Its logits do not depend on the token budget."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "gft-edge import-published gft_aircraft.pth --labels classes.txt --out runs/published"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("file", type=Path, metavar="FILE.pth", help="state dict; read as data, never as code")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="one class name per line; default: class_0, class_1 ..."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="CKPT", help="checkpoint folder to write")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    import torch

    from gft_edge.checkpoint import CheckpointInfo, load_weights, num_parameters, save_checkpoint
    from gft_edge.cli.console import result
    from gft_edge.errors import ArtifactError, ConfigError
    from gft_edge.files import new_folder, sha256
    from gft_edge.model.build import build_model
    from gft_edge.model.published import published_config, published_state
    from gft_edge.preprocess import PreprocessSpec

    try:
        state = torch.load(args.file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ArtifactError(f"{args.file}: no such file") from None
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{args.file}: cannot be read as a file of tensors ({first})") from None
    if not isinstance(state, dict):
        raise ArtifactError(f"{args.file}: holds a {type(state).__name__}, not a state dict")
    weights = published_state(state)
    config = published_config(weights)
    labels = tuple(f"class_{number}" for number in range(config.num_classes))
    if args.labels:
        try:
            labels = tuple(args.labels.read_text(encoding="utf-8").split("\n")[: config.num_classes])
        except (OSError, ValueError) as error:
            raise ConfigError(f"labels {args.labels}: cannot be read ({error})") from None
        if len(labels) != config.num_classes or not all(labels):
            raise ConfigError(f"labels {args.labels}: expected {config.num_classes} lines, one class name each")
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
