"""The part of ``quantize`` that takes ONNX files of other programs: arguments, one call, text."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import comma_separated, positive
from gft_edge.errors import ConfigError

if TYPE_CHECKING:
    from gft_edge.export.foreign.model import ForeignModel
    from gft_edge.export.foreign.quantize import ForeignQuantized
    from gft_edge.quant.policy import QuantPolicy

_FOREIGN = ("normalisation", "mean", "std", "resize", "interpolation", "bgr", "labels", "image_size")
_CHECKPOINT = (
    "attention",
    "smoothquant",
    "no_smoothquant",
    "selection",
    "ranges",
    "qat_epochs",
    "qat_steps",
    "qat_set",
)


def add_foreign_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what an ONNX file does not record: its preprocessing and its classes."""
    group = parser.add_argument_group("for MODEL.onnx", "An ONNX file records neither preprocessing nor classes.")
    group.add_argument(
        "--normalisation",
        metavar="NAME",
        help="imagenet: its mean and std; half: 0.5 and 0.5 (Google's ViTs); clip; unit: 0 and 1 (imagenet)",
    )
    group.add_argument("--mean", metavar="R,G,B", help="in place of --normalisation, in units of 1/255 of a pixel")
    group.add_argument("--std", metavar="R,G,B", help="likewise")
    group.add_argument("--resize", metavar="HOW", help="stretch, or crop:RATIO of the resized image (crop:0.875)")
    group.add_argument("--interpolation", choices=("bicubic", "bilinear"), help="of resizing (bicubic)")
    group.add_argument("--bgr", action="store_true", help="the graph takes blue, green, red")
    group.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="class names in the order of the outputs: one per line, or .csv or .json (the data's, if as many)",
    )
    group.add_argument(
        "--image-size",
        type=positive,
        metavar="N",
        help="pixels of the square input, for a graph that does not fix them",
    )


def require_no_foreign_arguments(args: argparse.Namespace) -> None:
    """Refuses arguments for ONNX files beside a checkpoint.

    Raises:
        ConfigError: naming the first of them.
    """
    _refuse(args, _FOREIGN, "is for an ONNX file; a checkpoint records its preprocessing and classes")


def _refuse(args: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(args, name, None):
            raise ConfigError(f"--{name.replace('_', '-')} {why}")


def quantize_onnx(args: argparse.Namespace, policy: QuantPolicy) -> int:
    """Runs the verb for an ONNX file."""
    from gft_edge.cli.common import calibration_callbacks, calibration_options, result_kept
    from gft_edge.cli.console import result
    from gft_edge.export.foreign.preprocessing import Pixels
    from gft_edge.export.foreign.quantize import ForeignOptions, quantize_foreign

    pixels = Pixels(
        args.normalisation,
        _triple(args.mean, "--mean"),
        _triple(args.std, "--std"),
        args.resize,
        args.interpolation,
        "bgr" if args.bgr else "rgb",
    )
    options = ForeignOptions(calibration_options(args), policy, pixels, args.labels, args.image_size)

    def show(done: ForeignQuantized) -> None:
        result(args, done.to_json(), _text(args, done))

    with result_kept(show):
        done = quantize_foreign(Path(args.checkpoint), options, args.out, calibration_callbacks())
    show(done)
    return 0


def require_onnx_arguments(args: argparse.Namespace) -> None:
    """Refuses arguments for checkpoints beside an ONNX file.

    Raises:
        ConfigError: naming the first of them.
    """
    _refuse(args, _CHECKPOINT, "is for a checkpoint, not for an ONNX file")
    if args.precision == "fp8":
        raise ConfigError("--precision fp8 is for a checkpoint; an ONNX file gets int8 or int8-weights")


def _triple(text: str | None, flag: str) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in comma_separated(text)]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise ConfigError(f"{flag} {text!r}: expected three numbers such as 0.485,0.456,0.406, or one for all")
    return values[0], values[1], values[2]


def _text(args: argparse.Namespace, done: ForeignQuantized) -> str:
    """Returns the result for people."""
    from gft_edge.cli.console import command, following, table

    model = done.model
    quantization, spec = model.quantization, model.preprocess
    assert quantization is not None
    assert spec is not None
    given = str(args.checkpoint)
    count = sum(layer.precision != "high" for layer in quantization.layers)
    kind = {"int8": "INT8", "int8-weights": "INT8 weights"}.get(quantization.precision, "mixed")
    crop = "stretched" if spec.resize == "stretch" else f"centre crop {spec.crop_ratio:g}"
    mean, std = ("/".join(f"{value:.3g}" for value in values) for values in (spec.mean, spec.std))
    lines = [f"{model.path}: {count} linear layers in {kind}"]
    if done.ranges is not None:
        lines += [
            f"calibrated on {quantization.images} images",
            done.card.describe(),
            done.ranges.describe(done.inputs),
        ]
    lines += [
        done.agreement.describe(),
        f"pixels: {spec.width} x {spec.height}, {crop}, {spec.interpolation}, mean {mean}, std {std}, {spec.color_order}",
        *done.notes,
        table(("layers", "of", "precision", "range", "why"), _rows(model)),
        "single layers: --json",
        following(
            command("verify", model.path, "--against", given, "--data", done.agreement.data),
            command("bench", given, model.path),
        ),
    ]
    return "\n".join(line for line in lines if line)


def _rows(model: ForeignModel) -> list[tuple[Any, ...]]:
    """Returns table rows; layers of one name in several blocks share a row if precision and reason are the same."""
    assert model.quantization is not None
    groups: dict[tuple[str, str, str], list[float]] = {}
    counts: dict[tuple[str, str, str], int] = {}
    for layer in model.quantization.layers:
        key = (re.sub(r"(?<=\.)\d+(?=\.|$)", "*", layer.name), layer.precision, layer.reason)
        counts[key] = counts.get(key, 0) + 1
        groups.setdefault(key, []).extend([] if layer.range is None else [layer.range])
    rows = []
    for (name, precision, reason), values in groups.items():
        span = "" if not values else f"{min(values):.4g} to {max(values):.4g}"
        rows.append((name, counts[name, precision, reason], precision, span, reason))
    return rows
