"""Turn a .pth file of the published GFT code into a checkpoint. Its logits do not depend on the token budget."""

from __future__ import annotations

import argparse
from pathlib import Path

from gft_edge.cli.common import add_checkpoint_output, add_labels_argument

EXAMPLE = "gft-edge import-published gft_aircraft.pth --labels classes.txt --out runs/published"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "file", type=Path, metavar="FILE.pth", help="state dict of PyTorch or safetensors; read as data, never as code"
    )
    add_labels_argument(parser, "class_0, class_1 ...")
    add_checkpoint_output(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, say
    from gft_edge.cli.early import require_file
    from gft_edge.files import require_free
    from gft_edge.labels import read_labels

    require_file(args.file, "weights")
    if args.labels is not None:
        read_labels(args.labels)
    require_free(args.out)
    from gft_edge.train.import_published import import_published

    found = import_published(args.file, args.out, args.labels, lambda line: say(f"import-published: {line}"))
    classes = found.config.num_classes
    text = (
        f"{args.out}: published variant, {classes} classes, {found.parameters:,} parameters; "
        "its logits do not depend on the token budget"
    )
    result(args, {"out": str(args.out), "classes": classes, "parameters": found.parameters}, text)
    return 0
