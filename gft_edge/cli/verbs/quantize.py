"""Calibrate activation ranges on training images, quantize the linear layers and optionally attention, and check the selection.

Without flags, INT8 layers get SmoothQuant and ranges of least square error; where the kept patches or the logits still change too
much, the layers that disturb them most go back to high precision, and the result says which.

With --qat-epochs or --qat-steps the quantized model is then trained (QAT), distilled from the FP32 model and reported next to
a control: the FP32 model trained for as many steps on the same images and quantized afterwards.

MODEL.onnx, a plain ViT of any exporter in float32, is quantized by the same policy into a folder of model.onnx and
quantization.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gft_edge.calibration.options import SELECTIONS
from gft_edge.cli.common import (
    add_calibration_arguments,
    add_checkpoint_output,
    add_ranges_argument,
    positive,
    share,
)
from gft_edge.cli.quantize_foreign import (
    add_foreign_arguments,
    quantize_onnx,
    require_no_foreign_arguments,
    require_onnx_arguments,
)
from gft_edge.errors import ConfigError
from gft_edge.quant.policy import AttentionPrecision, LayerPrecision

if TYPE_CHECKING:
    from torch import nn

    from gft_edge.calibration.options import Selection
    from gft_edge.calibration.qat_report import QatReport
    from gft_edge.calibration.quantize import QatOptions, QuantizeResult
    from gft_edge.checkpoint import Checkpoint
    from gft_edge.quant.policy import QuantPolicy

EXAMPLE = "gft-edge quantize builtin --images 256 --out runs/int8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "checkpoint", metavar="CKPT", help="checkpoint folder, 'builtin', or MODEL.onnx of another program"
    )
    add_calibration_arguments(parser, "mse for INT8 checkpoints, else max")
    parser.add_argument(
        "--precision",
        choices=[name for name in get_args(LayerPrecision) if name != "high"],
        default="int8",
        help="of the linear layers of the blocks (int8)",
    )
    parser.add_argument(
        "--attention",
        choices=get_args(AttentionPrecision),
        help="of both products of attention; INT8 up to 512 tokens, FP8 from compute capability 8.9 (high)",
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", help="rules (TOML or JSON) in place of --precision")
    parser.add_argument(
        "--smoothquant",
        type=share,
        nargs="?",
        const=0.5,
        metavar="ALPHA",
        help="even out the channels of LayerNorms first (0.5 for INT8 without --policy, --ranges or --qat-*)",
    )
    parser.add_argument("--no-smoothquant", action="store_true", help="leave the channels as they are")
    parser.add_argument(
        "--selection",
        choices=SELECTIONS,
        help="repair: raise layers until kept patches and logits are near those in full precision; exact: keep all layers high "
        "that selection reads; as-is: neither (repair; as-is with --policy or --qat-*)",
    )
    add_ranges_argument(parser)
    _add_qat_arguments(parser)
    add_foreign_arguments(parser)
    add_checkpoint_output(parser)


def _add_qat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--qat-epochs",
        type=positive,
        metavar="N",
        help="train the quantized model on the training images, N times each",
    )
    parser.add_argument("--qat-steps", type=positive, metavar="N", help="train it for N steps")
    parser.add_argument(
        "--qat-set",
        action="append",
        default=[],
        metavar="key=value",
        help="how: lr, batch_size, temperature, label_weight, augment, train_images, seed, grad_clip, num_workers",
    )
    parser.add_argument("--eval-images", type=positive, metavar="N", help="held-out images that evaluate QAT (1600)")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    import dataclasses

    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.common import calibration_callbacks, calibration_options, result_kept
    from gft_edge.cli.console import result
    from gft_edge.cli.early import checkpoint_info, require_data, require_file
    from gft_edge.export.foreign.model import is_foreign
    from gft_edge.files import require_free
    from gft_edge.storage.filekinds import require_graph

    foreign = is_foreign(args.checkpoint)
    (require_onnx_arguments if foreign else require_no_foreign_arguments)(args)
    _require_consistent(args)
    policy, calibration = _policy(args), calibration_options(args)
    if args.method is not None and all(rule.precision in ("high", "int8-weights") for rule in policy.rules):
        raise ConfigError("--method: weights alone are quantized, so no range is found; leave it out")
    require_file(args.ranges, "--ranges")
    require_free(args.out)
    if foreign:
        if not Path(args.checkpoint).is_dir():
            require_graph(Path(args.checkpoint))
        require_data(args.data)
        return quantize_onnx(args, policy)
    require_data(args.data, checkpoint_info(args.checkpoint, full_precision=True).data)
    from gft_edge.calibration.quantize import QuantizeOptions, quantize_checkpoint, recommended_method

    checkpoint = load_checkpoint(args.checkpoint)
    policy = _smoothed(args, checkpoint, policy)
    if args.method is None:
        calibration = dataclasses.replace(calibration, method=recommended_method(policy))
    selection: Selection | None = args.selection or ("as-is" if args.policy else None)
    options = QuantizeOptions(calibration, policy, args.ranges, _qat_options(args), selection)

    def show(done: QuantizeResult) -> None:
        result(args, done.to_json(), _text(checkpoint, done))

    with result_kept(show):
        done = quantize_checkpoint(checkpoint, options, args.out, calibration_callbacks())
    show(done)
    return 0


def _require_consistent(args: argparse.Namespace) -> None:
    """Refuses arguments that contradict each other.

    Raises:
        ConfigError: naming two of them.
    """
    qat = args.qat_epochs or args.qat_steps
    if args.no_smoothquant and args.smoothquant is not None:
        raise ConfigError("give --smoothquant or --no-smoothquant, not both")
    if args.policy and args.attention:
        raise ConfigError("--policy decides on attention too; give it a rule for '*.attend' in place of --attention")
    if args.attention not in (None, "high", args.precision):
        raise ConfigError(
            f"a graph has one 8-bit type; --attention {args.attention} goes with --precision {args.attention}, not "
            f"{args.precision}"
        )
    if args.ranges and args.smoothquant is not None:
        raise ConfigError("--smoothquant changes the ranges; leave out --ranges")
    if args.ranges and qat:
        raise ConfigError("--qat-* calibrates its control too; leave out --ranges")
    if args.selection == "repair" and qat:
        raise ConfigError("--selection repair: QAT changes the noise of every layer; give --selection exact or as-is")
    if args.qat_epochs and args.qat_steps:
        raise ConfigError("give --qat-epochs or --qat-steps, not both")
    for flag, given in (("--qat-set", args.qat_set), ("--eval-images", args.eval_images is not None)):
        if given and not qat:
            raise ConfigError(f"{flag} is for QAT; give --qat-epochs or --qat-steps too")


def _policy(args: argparse.Namespace) -> QuantPolicy:
    """Returns the rules that the arguments ask for, with SmoothQuant only where they name it."""
    import dataclasses

    from gft_edge.quant.policy import read_policy, uniform_policy

    policy = (
        read_policy(args.policy) if args.policy else uniform_policy(args.precision, attention=args.attention or "high")
    )
    if args.no_smoothquant or args.smoothquant is not None:
        policy = dataclasses.replace(policy, smoothquant=args.smoothquant)
    return policy


def _smoothed(args: argparse.Namespace, checkpoint: Checkpoint, policy: QuantPolicy) -> QuantPolicy:
    """Returns the policy, with SmoothQuant where it is recommended and the arguments leave it open."""
    from gft_edge.calibration.quantize import recommended_policy

    decided = args.no_smoothquant or args.smoothquant is not None
    if decided or args.policy or args.ranges or args.qat_epochs or args.qat_steps:
        return policy
    return recommended_policy(checkpoint.model, args.precision, args.attention or "high")


def _qat_options(args: argparse.Namespace) -> QatOptions | None:
    """Returns the training that the arguments ask for; None without QAT.

    Raises:
        ConfigError: a value cannot be used.
    """
    from gft_edge.calibration.qat import QatSettings
    from gft_edge.calibration.quantize import QatOptions
    from gft_edge.config.reader import load_dataclass, parse_scalar

    if not (args.qat_epochs or args.qat_steps):
        return None
    values: dict[str, Any] = {}
    for text in args.qat_set:
        key, separator, value = text.partition("=")
        if not separator or key.strip() == "steps":
            raise ConfigError(f"--qat-set {text!r}: expected key=value, for example lr=1e-5; steps are --qat-steps")
        values[key.strip()] = parse_scalar(value.strip())
    settings = load_dataclass(QatSettings, {**values, "steps": args.qat_steps or 1}, "--qat-set")
    return QatOptions(settings, args.qat_epochs, args.eval_images or QatOptions.eval_images)


def _text(checkpoint: Checkpoint, done: QuantizeResult) -> str:
    """Returns the result for people."""
    from gft_edge.cli.console import command, following, table
    from gft_edge.quant.policy import QuantPolicy

    summary, selection = done.summary, done.selection
    policy = QuantPolicy.from_json({"rules": summary["policy"], "smoothquant": summary["smoothquant"]})
    precisions = summary["precisions"]
    kind = {"int8": "INT8", "fp8": "FP8 (emulated)", "int8-weights": "INT8 weights"}.get(summary["precision"], "mixed")
    lines = [f"{done.out}: {_count(precisions)} in {kind}, {_calibration_in_words(done)}"]
    images = "held out" if selection.held_out else "the calibration images"
    lines[0] += f"\nquantized: {selection.quantized_macs:.0%} of the work of linear layers and convolutions"
    if selection.repair is not None:
        lines.append(selection.repair.describe())
    lines += [selection.safety.describe(), f"  on {selection.split} images of {selection.data}, {images}"]
    lines.append(selection.certificates.describe())
    lines.append(table(("layers", "of", "precision", "range", "why"), _layer_rows(checkpoint.model, policy, summary)))
    lines.append("single layers: --json")
    if done.qat is not None:
        lines.append(f"\n{_qat_text(done.qat)}")
    tensorrt = command("export", done.out, "--precision", "fp16", "--out", f"{done.out}-tensorrt")
    lines.append(following(tensorrt, command("export", done.out, "--out", f"{done.out}-onnxruntime")))
    return "\n".join(lines)


def _calibration_in_words(done: QuantizeResult) -> str:
    if done.ranges is None:
        return "which needs no calibration"
    lines = [
        f"calibrated on {done.ranges.images} images",
        done.ranges.describe({name: name for name in done.summary["ranges"]}),
    ]
    if done.card is not None:
        lines.insert(1, done.card.describe())
    return "\n".join(line for line in lines if line)


def _qat_text(report: QatReport) -> str:
    """Returns a table and the verdict, for people."""
    from gft_edge.calibration.qat_report import HEADER
    from gft_edge.cli.console import table

    training = report.training.to_json()
    return (
        f"QAT: {training['steps']} steps, {training['images']} images, distillation loss {training['distillation_first']:.4g} to "
        f"{training['distillation_last']:.4g}; evaluated on {report.images} {report.source}\n"
        f"{table(HEADER, report.rows())}\n{report.sentence}"
    )


def _layer_rows(model: nn.Module, policy: QuantPolicy, summary: dict[str, Any]) -> list[tuple[str, int, str, str, str]]:
    """Returns table rows; layers of one name in several blocks share a row if precision and reason are the same."""
    import re

    from gft_edge.quant.attention import MEASURED_PARTS, attention_names
    from gft_edge.quant.modules import QUANTIZABLE

    values, precisions = summary["ranges"], summary["precisions"]
    names = [name for name, module in model.named_modules() if isinstance(module, QUANTIZABLE)]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name in [*names, *attention_names(model)]:
        key = (re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), precisions.get(name, "high"), _reason(policy, name))
        groups.setdefault(key, []).append(name)
    rows = []
    for (pattern, precision, reason), members in groups.items():
        keys = [
            key for name in members for key in (name, *(f"{name}.{part}" for part in MEASURED_PARTS)) if key in values
        ]
        found = [values[key] for key in keys]
        span = "" if not found else f"{min(found):.4g}" if len(found) == 1 else f"{min(found):.4g} to {max(found):.4g}"
        rows.append((pattern if len(members) > 1 else members[0], len(members), precision, span, reason))
    return rows


def _reason(policy: QuantPolicy, name: str) -> str:
    rule = policy.rule_for(name)
    return "no rule matches: stays in high precision" if rule is None else rule.reason


def _count(precisions: dict[str, str]) -> str:
    """Returns the number of quantized layers and attentions in words."""
    from gft_edge.quant.policy import is_attend

    attentions = sum(map(is_attend, precisions))
    return f"{len(precisions) - attentions} layers" + (f" and {attentions} attentions" if attentions else "")
