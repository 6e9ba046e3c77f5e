"""Turn the weights of a trained Vision Transformer into a focal GFT checkpoint, without training.

Blocks of the ViT select patches by their own queries and keys; no layer is added, and with every patch kept the model is the
ViT as it was. Reads names of timm, DeiT, DINOv2, CLIP (OpenAI, OpenCLIP), Hugging Face transformers and torchvision.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gft_edge.cli.common import (
    add_align_argument,
    add_budget_argument,
    add_checkpoint_output,
    add_data_arguments,
    add_labels_argument,
    comma_separated,
    positive,
)
from gft_edge.config.model import ADOPTED_SCORE, SCORES
from gft_edge.errors import ConfigError

if TYPE_CHECKING:
    from gft_edge.train.adopt_weights import AdoptedModel

EXAMPLE = "gft-edge adopt deit_small.pth --backbone deit_small_patch16_224 --labels classes.txt --out runs/adopted"

NAMES_SHOWN = 8
IMAGES = 1600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "weights",
        type=Path,
        metavar="WEIGHTS",
        help="file of PyTorch or safetensors: a state dict, or a training checkpoint that holds one; read as data, never as code",
    )
    parser.add_argument(
        "--backbone",
        required=True,
        metavar="NAME",
        help="timm's name of the ViT; preprocessing (mean, std, crop) is that of timm's weights of this name, so add "
        "a tag where they differ: vit_base_patch16_224.dino",
    )
    add_labels_argument(
        parser, "the names of ImageNet-1k where timm's weights have its classes, else class_0, class_1 ..."
    )
    add_budget_argument(
        parser,
        "repeatable: ",
        "; the first one becomes the checkpoint's default (75%%,50%%,25%%), further ones are measured with --data",
    )
    add_align_argument(parser)
    parser.add_argument(
        "--stages",
        metavar="N,N,N",
        help="blocks that select patches, counted from 1 (at 1/4, 5/12 and 7/12 of the depth: 3,5,7 of 12)",
    )
    parser.add_argument(
        "--score",
        metavar="NAME",
        default=ADOPTED_SCORE,
        help=f"what ranks patches: {', '.join(SCORES)} ({ADOPTED_SCORE})",
    )
    parser.add_argument(
        "--image-size", type=positive, metavar="N", help="pixels of the square input (the backbone's own)"
    )
    add_data_arguments(parser, images=IMAGES, data="none: the accuracy is not measured")
    parser.set_defaults(images=None)
    add_checkpoint_output(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, say, say_left_out, track
    from gft_edge.cli.early import require_data, require_file
    from gft_edge.files import require_free
    from gft_edge.labels import read_labels

    stages = _stages(args.stages)
    require_file(args.weights, "weights")
    if args.labels is not None:
        read_labels(args.labels)
    for flag, given in (("--images", args.images), ("--split", args.split)):
        if args.data is None and given is not None:
            raise ConfigError(f"{flag} chooses images of --data; give --data D, or leave {flag} out")
    require_data(args.data)
    require_free(args.out)
    from gft_edge.train.adopt_weights import AdoptOptions, adopt_weights

    options = AdoptOptions(
        backbone=args.backbone,
        labels=args.labels,
        budgets=tuple(args.budget or ()),
        stages=stages,
        score=args.score,
        image_size=args.image_size,
        align=args.align,
        data=args.data,
        split=args.split,
        images=IMAGES if args.images is None else args.images,
    )
    found = adopt_weights(args.weights, args.out, options, say, track)
    if found.evaluation is not None:
        say_left_out(found.evaluation.unreadable)
    for text in found.notes:
        say(f"note: {text}")
    result(args, {"out": str(args.out), **found.to_json()}, _text(args, found))
    return 0


def _stages(text: str | None) -> tuple[int, ...]:
    from gft_edge.errors import ConfigError

    if text is None:
        return ()
    try:
        return tuple(int(part) for part in comma_separated(text)) or (0,)
    except ValueError:
        raise ConfigError(f"--stages {text!r}: expected block numbers such as 3,5,7") from None


def _text(args: argparse.Namespace, found: AdoptedModel) -> str:
    from gft_edge.cli.console import table

    config, spec = found.config, found.preprocess
    rows = [("matched", found.matched, f"under the names of {found.family}")]
    for title, names in (("resampled", found.resampled), ("left out", found.dropped), ("missing", found.missing)):
        rows.append((title, len(names), _names(names, args.verbose)))
    blocks = ", ".join(str(block) for block in config.stages)
    crop = "stretched" if spec.resize == "stretch" else f"centre {spec.crop_ratio:.3g}"
    facts = [
        ("model", f"focal GFT on {config.backbone}, {found.parameters:,} parameters"),
        (
            "selection",
            f"in blocks {blocks} of {config.depth} by {config.score}, budget {config.budget.id} of {config.num_patches}",
        ),
        ("cost", f"{found.macs / 1e9:.3g} of {found.macs_full / 1e9:.3g} GMAC, {found.macs / found.macs_full:.1%}"),
        ("classes", f"{config.num_classes}, names: {found.labels_from}" + ", classifier untrained" * found.untrained),
        (
            "pixels",
            f"{spec.width} x {spec.height}, {crop}, {spec.interpolation}, mean {_triple(spec.mean)}, std {_triple(spec.std)}, "
            f"as timm's {found.preprocess_from}",
        ),
    ]
    parts = [f"{args.out}: no weight was trained", table(("tensors", "count", "which"), rows), ""]
    parts += [f"{title:<10} {text}" for title, text in facts]
    if found.evaluation is not None:
        parts += ["", *_accuracy(found)]
    elif args.data is not None:
        parts += ["", f"accuracy on {args.data}: not measured, the classifier is untrained"]
    return "\n".join([*parts, "", *_next(args, found)])


def _names(names: Sequence[str], every: bool) -> str:
    """Returns the names, or the first few of many."""
    if every or len(names) <= NAMES_SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[:3])} ... (-v lists all)"


def _triple(values: Sequence[float]) -> str:
    return "/".join(f"{value:.3g}" for value in values)


def _accuracy(found: AdoptedModel) -> list[str]:
    """Returns the accuracy at each budget and what it costs."""
    from gft_edge.budget import TokenBudget
    from gft_edge.cli.console import table
    from gft_edge.model.macs import count_macs

    evaluation, config = found.evaluation, found.config
    assert evaluation is not None
    rows = []
    for each in evaluation.results:
        low, high = each.accuracy.interval
        share = count_macs(config, TokenBudget.parse(each.budget, config.num_patches)) / found.macs_full
        change = 100 * (each.accuracy.top1 - evaluation.results[0].accuracy.top1)
        rows.append(
            (each.budget, f"{share:.1%}", f"{each.accuracy.top1:.2%}", f"{low:.2%} to {high:.2%}", f"{change:+.2f}")
        )
    count = evaluation.results[0].accuracy.count
    return [
        f"accuracy on {count} {evaluation.split} images of {evaluation.data}, before any training",
        table(("budget", "MACs", "top-1", "95 % interval", "points to full"), rows),
    ]


def _next(args: argparse.Namespace, found: AdoptedModel) -> list[str]:
    """Returns the commands that usually follow."""
    from gft_edge.cli.console import command, following

    out, data = args.out, args.data or "DATA"
    if found.untrained:
        return [
            f"next: train the classifier, with train.init={out} and model.backbone={found.config.backbone} in a recipe"
        ]
    return [
        following(
            command("quantize", out, "--data", data, "--out", f"{out}-int8"),
            command("export", f"{out}-int8", "--data", data, "--precision", "fp16", "--out", f"{out}-artifact"),
            command("build", f"{out}-artifact", "--target", "DEVICE", "--plan"),
        )
    ]
